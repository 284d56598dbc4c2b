"""Where arrays live: one mesh of devices, one rule for state, one for batches.

    mesh        ('data', 'fsdp'); every device sees its own part of the batch, whatever the two sizes are
    a batch     [B, ...] is cut into data * fsdp parts
    a state     each array is cut over `fsdp` along its largest axis that fsdp divides, and copied along `data`

With fsdp = 1 this is plain data parallelism, with data = 1 it is ZeRO-3; nothing else in the package knows the
difference. Axes are of type Auto: the compiler derives every other layout from the ones given here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddpm_jax.devices import processes
from ddpm_jax.errors import UserError

# Arrays of fewer elements (biases, counters) are copied: gathering them would cost more than they weigh.
SMALLEST_CUT = 1024


def make_mesh(data: int = -1, fsdp: int = 1, *, devices: list | None = None) -> Mesh:
  """The mesh ('data', 'fsdp') over `devices` (default: all). data = -1 takes what fsdp leaves.

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
  """A full copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
  """The first axis is cut over all devices."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def of_state(tree: Any, mesh: Mesh) -> Any:
  """The sharding of every leaf of a parameter, EMA or optimizer tree (arrays or ShapeDtypeStructs), by the rule above."""
  return jax.tree.map(lambda leaf: NamedSharding(mesh, _cut(leaf.shape, mesh.shape["fsdp"])), tree)


def _cut(shape: tuple[int, ...], parts: int) -> PartitionSpec:
  axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
  if parts == 1 or not axes or np.prod(shape) < SMALLEST_CUT:
    return PartitionSpec()
  longest = max(axes, key=lambda axis: shape[axis])
  return PartitionSpec(*[None] * longest, "fsdp")


def shaped(tree: Any, shardings: Any) -> Any:
  """ShapeDtypeStructs for the arrays (or shapes) of a tree, with one sharding, or a tree of them."""
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=s), tree, shardings)


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Host arrays to the devices. With several processes each gives its own [B / processes, ...] part, in process order."""
  sharding = over_batch(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def put_whole(array: np.ndarray, mesh: Mesh) -> jax.Array:
  """[B, ...] that every process has all of, cut over the devices where they divide B, else a copy on each."""
  sharding = replicated(mesh) if len(array) % mesh.size else over_batch(mesh)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def to_host(tree: Any) -> Any:
  """NumPy arrays with everything that is in `tree`, in each process, wherever its parts are."""

  def whole(x):
    scattered = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    if scattered:
      processes.wait_for_all()
      x = process_allgather(x, tiled=True)
    return np.asarray(x)

  return jax.tree.map(whole, tree)


def accumulation(batch_size: int, mesh: Mesh, per_device: int | None = None) -> int:
  """The least number of equal microbatches that leaves at most `per_device` images at a time on each device.

  So the global batch is the same on one laptop core and on a pod. None: everything at once.

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
