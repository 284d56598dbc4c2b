"""Reading a checkpoint: every file is checked, and every array is compared with its digest.

A damaged checkpoint raises CheckpointError. `latest_sound` reports it and goes back to the one before.
"""

import functools
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from ddpm_jax.devices import processes
from ddpm_jax.errors import shortened
from ddpm_jax.files.digest import digests, finite
from ddpm_jax.training import manifest as manifests
from ddpm_jax.training.manifest import CheckpointError, Leaf, Manifest, Mismatch

log = logging.getLogger(__name__)


_PARTS = ("manifest", "params", "run", "_CHECKPOINT_METADATA")  # which other folders with a number as name do not have


def steps_in(directory: epath.PathLike) -> list[int]:
  """The steps of complete checkpoints, ascending. Leftovers of broken writes and damaged checkpoints are left out."""
  path = epath.Path(directory)
  entries = path.iterdir() if path.is_dir() else []
  numbered = [p for p in entries if re.fullmatch(r"[0-9]{1,12}", p.name) and any((p / part).exists() for part in _PARTS)]
  return sorted(int(p.name) for p in numbered if ocp.utils.is_checkpoint_finalized(p))


def latest_sound(path: epath.Path, read: Callable[[int], Any], candidates: list[int] | None = None) -> tuple[Any, list[int]]:
  """Reads the latest checkpoint that every process can read, and reports later ones, which are damaged.

  Args:
    path: the directory that holds the numbered steps.
    read: reads the checkpoint of a step.
    candidates: the steps to try; None: all.

  Returns:
    (read(step), the damaged steps).

  Raises:
    Mismatch: as `read` does.
    CheckpointError: if no checkpoint can be read.
  """
  damaged: dict[int, str] = {}
  steps = candidates or steps_in(path)
  for step in reversed(steps):
    result = None
    reason = None
    try:
      result = read(step)
    except Mismatch:
      raise
    except Exception as error:
      reason = first_line(error)
    if processes.agreed(reason is None):
      return result, list(damaged)
    if not candidates and not processes.agreed(steps_in(path)[-1:] == steps[-1:]):
      return latest_sound(path, read)  # a run is writing there, and has replaced this checkpoint by a later one
    damaged[step] = reason or "another process cannot read it"
    log.warning("Checkpoint %s is damaged: %s.", path / str(step), damaged[step])
  said = "; ".join(f"step {step}: {shortened(reason, 50)}" for step, reason in list(damaged.items())[:2])
  more = f"; and {len(damaged) - 2} more" if len(damaged) > 2 else ""
  raise CheckpointError(
    f"No checkpoint in {shortened(str(path), 70)} can be used: {said}{more}. Restore them from a copy, or start again in an "
    "empty directory."
  )


def restore(path: epath.Path, step: int, like: Any) -> tuple[Any, Manifest]:
  """A whole state, with the structure and the shardings of `like`, and its manifest.

  Raises:
    Mismatch: if an array is missing, or has another shape or type than in `like`.
    CheckpointError: if the checkpoint is damaged.
  """
  manifest = manifest_at(path, step)
  wanted = manifests.flatten(like)
  for name in [*wanted, *manifest.leaves]:
    here = manifest.leaves[name].kind if name in manifest.leaves else "nothing"
    there = f"{wanted[name].dtype} {list(wanted[name].shape)}" if name in wanted else "nothing"
    if here != there:
      raise Mismatch(
        f"Checkpoint {path / str(step)} has {here} at {name}, where this config has {there}: it belongs to another "
        "architecture or training recipe. Use the config it was made with, or another directory."
      )
  arrays = arrays_at(path, step, manifest.leaves, {name: leaf.sharding for name, leaf in wanted.items()})
  return manifests.unflatten(arrays, like), manifest


def manifest_at(path: epath.Path, step: int) -> Manifest:
  """The manifest of the checkpoint of `step`, verified. Raises CheckpointError."""
  _check_files(path / str(step))
  return manifests.parse(_item_of(path, step, "manifest", ocp.args.JsonRestore()))


def _check_files(directory: epath.Path) -> None:
  """Raises CheckpointError for pipes, devices and dangling links, on which Orbax hangs or fails."""
  for folder, _, files in os.walk(directory):  # finds nothing in a bucket
    for name in files:
      place = os.path.join(folder, name)
      if not os.path.isfile(place):
        raise CheckpointError(f"{os.path.relpath(place, directory)} is not a regular file")


def arrays_at(
  path: epath.Path, step: int, leaves: dict[str, Leaf], shardings: dict[str, jax.sharding.Sharding]
) -> dict[str, jax.Array]:
  """The arrays by name, verified. Raises CheckpointError if they are damaged or if weights are not finite."""
  items: dict[str, dict[str, Any]] = {}
  for name, leaf in leaves.items():
    struct = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name])
    items.setdefault(directory_of(leaf.stored), {})[leaf.stored] = struct
  stored: dict[str, jax.Array] = {}
  for item, part in items.items():
    args = ocp.args.PyTreeRestore(part, ocp.checkpoint_utils.construct_restore_args(part), partial_restore=True)
    stored |= _item_of(path, step, item, args)
  arrays = {name: stored[leaf.stored] for name, leaf in leaves.items()}
  for name, stamp in digests(arrays).items():
    if stamp != leaves[name].digest:
      raise CheckpointError(f"{name} differs from what was written (its digest is {stamp}, not {leaves[name].digest})")
  weights = {name: x for name, x in arrays.items() if name.startswith(("params/", "ema/"))}
  for name, sound in finite(weights).items():  # a digest proves integrity, not sense; training never saves such weights
    if not sound:
      raise CheckpointError(f"{name} has values that are not finite")
  return arrays


def _item_of(path: epath.Path, step: int, item: str, args: ocp.args.CheckpointArgs) -> Any:
  """One directory of a checkpoint, read by Orbax."""
  hush_orbax()
  try:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
      return reader.restore(path / str(step), ocp.args.Composite(**{item: args}))[item]
  except Exception as error:  # Orbax, TensorStore and json raise errors of many types for damaged files
    raise CheckpointError(f"{item}/ cannot be read ({first_line(error)})") from error


def directory_of(name: str) -> str:
  """The directory that holds an array."""
  top, *rest = name.split("/")
  return f"ema_{rest[0]}" if top == "ema" else top if top == "params" else "run"


@functools.cache
def hush_orbax() -> None:
  """Silences Orbax's own reports of failed reads and writes. They are pages long and would bury our one-line message."""
  before = sys.unraisablehook

  def hook(lost):
    code = getattr(lost.object, "cr_code", None)  # of an abandoned coroutine
    if not (code and "/orbax/" in code.co_filename or "Event loop is closed" in str(lost.exc_value)):
      before(lost)

  sys.unraisablehook = hook
  logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname)
  logging.getLogger("asyncio").addFilter(lambda record: "was never retrieved" not in record.getMessage())


def first_line(error: Exception) -> str:
  """An error in one line. TensorStore gives the file first, then the reason, then its whole specification."""
  while error.__cause__ and not isinstance(error, CheckpointError):
    error = error.__cause__
  line = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(" [")[0].rstrip(".")
  return line if len(line) <= 250 else f"{line[:100]} … {line[-140:]}"
