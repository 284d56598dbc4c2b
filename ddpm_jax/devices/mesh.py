"""Array placement: one mesh of devices, one sharding rule for the state, one for batches.

    mesh        ('data', 'fsdp'); every device gets its own part of the batch for any sizes of the two axes
    a batch     [B, ...] is sharded into data * fsdp parts
    a state     each array is sharded over `fsdp` along its largest axis that fsdp divides, and replicated over `data`

fsdp = 1 is plain data parallelism, data = 1 is ZeRO-3. No other module depends on the difference. Axes have type Auto:
the compiler derives every other sharding from these.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddpm_jax.devices import processes
from ddpm_jax.errors import UserError

# Arrays of fewer elements (biases, counters) are replicated, since gathering them would cost more than storing them.
SMALLEST_CUT = 1024


def make_mesh(data: int = -1, fsdp: int = 1, *, devices: list | None = None) -> Mesh:
  """The mesh ('data', 'fsdp') over `devices` (default: all). data = -1 uses all devices that fsdp leaves.

  Raises:
    UserError: if data * fsdp is not the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  if fsdp < 1 or count % fsdp or data not in (-1, count // fsdp):
    raise UserError(
      f"A mesh of data = {data}, fsdp = {fsdp} does not fit {count} device{'s' * (count > 1)}: data * fsdp must be "
      f"{count}. Set fsdp to a divisor of {count} and data to -1."
    )
  return jax.make_mesh((count // fsdp, fsdp), ("data", "fsdp"), (AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding with a full copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
  """The sharding of the first axis over all devices."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def of_state(tree: Any, mesh: Mesh) -> Any:
  """The sharding of every leaf of a parameter, EMA or optimizer tree (arrays or ShapeDtypeStructs); see the module."""
  return jax.tree.map(lambda leaf: NamedSharding(mesh, _cut(leaf.shape, mesh.shape["fsdp"])), tree)


def _cut(shape: tuple[int, ...], parts: int) -> PartitionSpec:
  axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
  if parts == 1 or not axes or np.prod(shape) < SMALLEST_CUT:
    return PartitionSpec()
  longest = max(axes, key=lambda axis: shape[axis])
  return PartitionSpec(*[None] * longest, "fsdp")


def shaped(tree: Any, shardings: Any) -> Any:
  """ShapeDtypeStructs of a tree of arrays (or shapes), with one sharding for all leaves or a tree of shardings."""
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=s), tree, shardings)


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Transfers host arrays to the devices. Each of several processes passes its own [B / processes, ...]."""
  sharding = over_batch(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def put_whole(array: np.ndarray, mesh: Mesh) -> jax.Array:
  """Transfers [B, ...], known in full to every process: sharded if the devices divide B, replicated otherwise."""
  sharding = replicated(mesh) if len(array) % mesh.size else over_batch(mesh)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def to_host(tree: Any) -> Any:
  """`tree` as NumPy arrays in every process, gathered from all devices."""

  def whole(x: Any) -> np.ndarray:
    scattered = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    if scattered:
      processes.wait_for_all()
      x = process_allgather(x, tiled=True)
    return np.asarray(x)

  return jax.tree.map(whole, tree)


def accumulation(batch_size: int, mesh: Mesh, per_device: int | None = None) -> int:
  """The smallest number of equal microbatches with at most `per_device` images per device; None means one microbatch.

  The global batch size is then the same on a laptop and on a pod.

  Raises:
    UserError: if the devices do not divide the batch.
  """
  if batch_size % mesh.size:
    raise UserError(
      f"A batch of {batch_size} images cannot be shared equally by {mesh.size} devices. "
      f"Choose a multiple of {mesh.size}, or fewer devices."
    )
  local = batch_size // mesh.size
  return next(a for a in range(1, local + 1) if local % a == 0 and local // a <= (per_device or local))
