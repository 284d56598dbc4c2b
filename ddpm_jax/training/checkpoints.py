"""Checkpoints: complete, written atomically and verified when they are read (reading.py).

    DIR/<step>/manifest       config, names, shapes, types and digests (manifest.py)
    DIR/<step>/params         the parameters
    DIR/<step>/ema_<rate>     one average, so that sampling reads nothing else
    DIR/<step>/run            optimizer, time sampler, key, counters

Orbax writes them in the background and renames the directory when it is complete. It does not detect flipped bits (0 of 80
in a test), so each array is compared with the digest taken before it was written.
"""

import contextlib
import logging
import sys
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import struct
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint import multihost

from ddpm_jax.devices import processes
from ddpm_jax.errors import UserError
from ddpm_jax.training import manifest as manifests
from ddpm_jax.training import power_ema, reading
from ddpm_jax.training.manifest import CheckpointError, Manifest, Mismatch
from ddpm_jax.training.reading import steps_in

log = logging.getLogger(__name__)

_NEVER = 10 * 365 * 24 * 3600  # seconds. Orbax's timeouts use a clock that jumps when a laptop wakes up.


# ---------------------------------------------------------------------------------------------------------- a run's


class Checkpoints:
  """The checkpoints of one run, which this run writes.

  Args:
    directory: DIR above; made when the first checkpoint is written.
    keep: how many of the latest checkpoints stay, among those whose step is a multiple of `every`. Unless keep is 1, the
      latest two of all also stay, since one may be damaged.
    keep_every: every checkpoint whose step is a multiple of this also stays.
  """

  def __init__(self, directory: str, *, keep: int = 3, every: int = 1, keep_every: int | None = None):
    if keep < 1:
      raise UserError(f"keep = {keep} would delete every checkpoint: keep at least 1.")
    self.directory = epath.Path(directory).absolute()
    kept = [policies.LatestN(min(keep, 2)), policies.EveryNSteps(every, max_to_keep=keep)]
    kept += [policies.EveryNSteps(keep_every)] if keep_every else []
    self._options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(kept),
      cleanup_tmp_directories=True,
      async_options=ocp.AsyncOptions(timeout_secs=_NEVER, barrier_sync_fn=_meet),
    )
    self._manager: ocp.CheckpointManager | None = None

  def save(self, state: Any, step: int, config: dict, *, wait: bool = False) -> None:
    """Starts writing `state`, any pytree of arrays, as the checkpoint of `step`. The state may be donated right after.

    An existing checkpoint of `step` is kept as it is. The previous write is awaited first. A write that fails is tried once
    more, unless this is one of several processes.

    Raises:
      CheckpointError: if it fails again. Earlier checkpoints are unchanged.
    """
    try:
      self.wait()
      self._start(state, step, config)
      if wait:
        self.wait()
    except CheckpointError as error:
      if jax.process_count() > 1:  # the other processes wait in Orbax and would not join a second try
        raise
      log.warning("%s Trying once more.", error)
      self._start(state, step, config)
      self.wait()

  def latest(self) -> int:
    """The step of the latest checkpoint, damaged or not; 0 if there is none."""
    return max(steps_in(self.directory), default=0)

  def restore(self, like: Any) -> tuple[Any, Manifest] | None:
    """The latest sound checkpoint as (state, manifest), or None if there is no checkpoint.

    Damaged checkpoints are reported and moved to <step>.damaged, so that the run can write them again.

    Args:
      like: arrays or ShapeDtypeStructs with the shardings wanted, which may differ from those it was written with.

    Raises:
      CheckpointError: if it holds another architecture, or if every checkpoint is damaged.
    """
    if not steps_in(self.directory):
      return None
    found, damaged = reading.latest_sound(self.directory, lambda step: reading.restore(self.directory, step, like))
    for step in damaged:
      if jax.process_index() == 0:
        aside = self.directory / f"{step}.damaged"
        if aside.exists():  # this step was damaged before and was written again
          aside.rmtree()
        (self.directory / str(step)).rename(aside)
    processes.wait_for_all()
    return found

  def wait(self) -> None:
    """Returns when the last checkpoint is complete. Raises CheckpointError if it could not be written."""
    if self._manager is not None:
      with self._failing():
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

  def close(self) -> None:
    """Waits for the last write and frees Orbax's threads."""
    self.wait()
    if self._manager is not None:
      self._manager.close()
      self._manager = None

  def _start(self, state: Any, step: int, config: dict) -> None:
    arrays = manifests.flatten(state)
    manifest = Manifest(step, config, manifests.describe(arrays))
    items: dict[str, Any] = {}
    for name, x in arrays.items():
      items.setdefault(reading.directory_of(name), {})[name] = x
    args = {item: ocp.args.PyTreeSave(part) for item, part in items.items()}
    reading.hush_orbax()
    with self._failing():
      if self._manager is None:
        self._manager = ocp.CheckpointManager(self.directory, options=self._options, handler_registry=_handlers())
      if step not in self._manager.all_steps():
        self._manager.save(
          step, args=ocp.args.Composite(manifest=ocp.args.JsonSave(manifests.dump(manifest)), **args), force=True
        )

  @contextlib.contextmanager
  def _failing(self):
    """Turns what Orbax raises into one sentence, and drops its manager, whose list of steps is no longer right."""
    try:
      yield
    except Exception as error:
      manager = self._manager
      self._manager = None
      with contextlib.suppress(Exception):
        manager.close()
      last = max(steps_in(self.directory), default=None)
      raise CheckpointError(
        f"A checkpoint could not be written to {self.directory}: {reading.first_line(error)}. "
        + (f"The last complete one is step {last}. " if last is not None else "")
        + "Free space or repair the disk; the same command continues."
      ) from error


def _meet(*, key: str, timeout_ms: int) -> None:
  """Orbax's barrier. A process whose write has failed raises the error instead of waiting 20 minutes for the others."""
  if jax.process_count() > 1 and (failed := sys.exception()) is not None:
    raise failed
  multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
  """Orbax's handlers, except that replicas share the writing of an array only if each has at least 1 MiB to write.

  Slicing hundreds of small arrays would delay the run by seconds.
  """
  arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)
  whole = ocp.type_handlers.NumpyHandler()  # as converters write
  types = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays), (np.ndarray, whole))
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  registry.add(None, ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(type_handler_registry=types))
  registry.add(None, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
  return registry


# ---------------------------------------------------------------------------------------------------------- anyone's


@struct.dataclass
class Weights:
  """The part of a checkpoint that sampling needs."""

  params: Any
  config: dict = struct.field(pytree_node=False)
  step: int = struct.field(pytree_node=False)
  source: str = struct.field(pytree_node=False)  # "EMA 0.9999" or "raw parameters", as shown to the user


def load_weights(
  directory: str, *, ema: str | None = None, step: int | None = None, sharding: jax.sharding.Sharding | None = None
) -> Weights:
  """One set of weights and its config, verified.

  Args:
    ema: which average: a rate such as "0.9999", or "raw" for the parameters themselves. None: the slowest average. In a run
      with ema.widths, any other number is a relative width, reconstructed from all checkpoints (power_ema.py).
    step: which checkpoint; None: the latest sound one.
    sharding: the sharding of the weights; None: the first device.

  Raises:
    CheckpointError: if there is no checkpoint, no sound one, or none with that average.
  """
  path = epath.Path(directory).absolute()
  available = steps_in(path)
  if not available:
    raise CheckpointError(
      f"There is no checkpoint in {path}. Train first, or name the directory that holds the numbered steps."
    )
  if step is not None and step not in available:
    raise CheckpointError(f"There is no checkpoint of step {step} in {path}; there are {_listed(available)}.")
  sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def load(step: int) -> Weights:
    manifest = reading.manifest_at(path, step)
    which = ema or max(_rates(manifest), key=float, default="raw")
    if which not in ("raw", *_rates(manifest)) and _widths(manifest) and _is_number(which):
      params = _of_width(path, step, float(which), sharding)
      return Weights(params, manifest.config, step, f"EMA of relative width {which}")
    prefix, source = ("params/", "raw parameters") if which == "raw" else (f"ema/{which}/", f"EMA {which}")
    wanted = {name: leaf for name, leaf in manifest.leaves.items() if name.startswith(prefix)}
    if not wanted:
      raise Mismatch(
        f"Checkpoint {path / str(step)} has no {source}; it has EMA rates {_listed(_rates(manifest)) or 'none'}"
        + (" and raw parameters." if any(name.startswith("params/") for name in manifest.leaves) else ".")
      )
    arrays = reading.arrays_at(path, step, wanted, dict.fromkeys(wanted, sharding))
    return Weights(
      manifests.nest({name.removeprefix(prefix): x for name, x in arrays.items()}), manifest.config, step, source
    )

  return reading.latest_sound(path, load, [step] if step is not None else None)[0]


def load_config(directory: str) -> dict:
  """The config stored in the latest checkpoint whose manifest can be read. Raises CheckpointError."""
  return load_manifest(directory).config


def load_manifest(directory: str) -> Manifest:
  """The manifest of the latest checkpoint whose manifest can be read. Raises CheckpointError."""
  path = epath.Path(directory).absolute()
  if not steps_in(path):
    raise CheckpointError(f"There is no checkpoint in {path}.")
  return reading.latest_sound(path, lambda step: reading.manifest_at(path, step))[0]


def _rates(manifest: Manifest) -> list[str]:
  names = {name.split("/")[1] for name in manifest.leaves if name.startswith("ema/")}
  return sorted((name for name in names if not name.startswith(power_ema.PREFIX)), key=float)


def _widths(manifest: Manifest) -> list[str]:
  """The relative widths of the power-function averages in a checkpoint."""
  names = {name.split("/")[1] for name in manifest.leaves if name.startswith("ema/")}
  return sorted((name.removeprefix(power_ema.PREFIX) for name in names if name.startswith(power_ema.PREFIX)), key=float)


def _of_width(path: epath.Path, step: int, width: float, sharding: jax.sharding.Sharding) -> Any:
  """The average of that relative width at `step`, from the power-function averages of all checkpoints until then."""
  stored = []
  for at in steps_in(path):
    if 0 < at <= step:
      manifest = reading.manifest_at(path, at)
      stored += [(at, name, manifest) for name in _widths(manifest)]
  times = np.array([at for at, *_ in stored])
  widths = np.array([float(name) for _, name, _ in stored])
  total: dict[str, jax.Array] = {}
  for (at, name, manifest), share in zip(stored, power_ema.coefficients(times, widths, step, width), strict=True):
    prefix = f"ema/{power_ema.PREFIX}{name}/"
    wanted = {leaf: x for leaf, x in manifest.leaves.items() if leaf.startswith(prefix)}
    for leaf, x in reading.arrays_at(path, at, wanted, dict.fromkeys(wanted, sharding)).items():
      short = leaf.removeprefix(prefix)
      total[short] = share * x + total.get(short, 0.0)
  return manifests.nest(total)


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


def _listed(values: list) -> str:
  return ", ".join(map(str, values))
