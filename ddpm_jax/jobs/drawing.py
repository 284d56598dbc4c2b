"""Draws images into a folder. Images are stored as they are drawn, so that an interrupted command can continue.

The folder also contains settings.json, so that samples with other settings do not overwrite these.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from ddpm_jax.errors import UserError
from ddpm_jax.files import arrays, atomic, tables
from ddpm_jax.jobs.trained import Trained


def settings(trained: Trained, upsampler: Trained | None = None) -> dict[str, Any]:
  """Everything except seeds and classes that determines the images, as JSON. The batch size does not."""

  def of(one: Trained) -> dict[str, Any]:
    sampling = one.config.sampling.to_dict()
    del sampling["batch_size"]
    files = {name: _digest(sampling[name]) for name in ("moments", "costs", "flow") if sampling.get(name)}
    return {"step": one.step, "weights": one.weights, "sampling": sampling, "files": files}

  found = of(trained) | ({} if upsampler is None else {"upsampler": {"run": str(upsampler.workdir), **of(upsampler)}})
  return tables.as_json(found)


def check(folder: pathlib.Path, wanted: dict[str, Any]) -> None:
  """Raises UserError if the folder holds samples of other settings."""
  if not os.path.lexists(folder / "settings.json"):
    return
  try:
    there = tables.read_json(folder / "settings.json")
    what = _difference(there, wanted)
  except UserError:
    there = None
    what = "its settings.json cannot be read"
  if there != wanted:
    raise UserError(f"{folder} has samples of other settings ({what}): choose another --out, or delete the folder.")


def record(folder: pathlib.Path, wanted: dict[str, Any]) -> None:
  """Writes the settings of a folder's samples."""
  with atomic.writing(folder / "settings.json") as temporary:
    temporary.write_text(json.dumps(wanted, indent=2))


def draw(
  trained: Trained,
  seeds: Sequence[int],
  labels: Sequence[int] | None,
  folder: pathlib.Path,
  *,
  upsampler: Trained | None = None,
  each: Callable[[Sequence[int], np.ndarray], None] = lambda seeds, images: None,
) -> np.ndarray:
  """Images uint8 [N,H,W,C] of `seeds`. Batches are stored in `folder` until all images are complete.

  The images are bitwise those of `Trained.sample`, whether or not the command was interrupted.

  Args:
    labels: as for Trained.sample.
    upsampler: enlarges the images.
    each: called with every batch when it is complete, in order.
  """
  size = trained.config.sampling.batch_size
  classes = trained.labels(seeds, labels)
  if len(seeds) <= size or jax.process_count() > 1:
    images = _drawn(trained, seeds, classes, upsampler, progress=True)
    each(seeds, images)
    return images
  identity = [settings(trained, upsampler), list(map(int, seeds)), None if classes is None else classes.tolist(), size]
  parts = folder / f".parts_{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]}"
  found = []
  with tqdm.tqdm(total=len(seeds), unit="image") as bar:
    for start in range(0, len(seeds), size):
      chosen = np.minimum(np.arange(start, start + size), len(seeds) - 1)  # one shape, so that one program draws all
      path = parts / f"{start:08d}.npy"
      images = _kept(path, trained if upsampler is None else upsampler, size)
      if images is None:
        of_batch = None if classes is None else classes[chosen]
        images = _drawn(trained, np.asarray(seeds)[chosen], of_batch, upsampler)
        with atomic.writing(path) as temporary:
          np.save(temporary, images)
      images = images[: len(seeds) - start]
      each(seeds[start : start + size], images)
      found.append(images)
      bar.update(len(images))
  shutil.rmtree(parts)
  return np.concatenate(found)


def _drawn(
  trained: Trained,
  seeds: Sequence[int],
  labels: np.ndarray | None,
  upsampler: Trained | None,
  *,
  progress: bool = False,
) -> np.ndarray:
  images = trained.sample(seeds, labels, progress=progress)
  if upsampler is None:
    return images
  wanted = labels if upsampler.config.train.class_conditional else None
  return upsampler.sample(seeds, wanted, low_res=images, progress=progress)


def _kept(path: pathlib.Path, last: Trained, size: int) -> np.ndarray | None:
  """A batch that an interrupted command stored, if it is intact."""
  try:
    images = arrays.read_npy(path)
  except UserError:
    return None
  whole = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape == (size, *last.image_shape)
  return images if whole else None


def _digest(path: str) -> str:
  """SHA-256 of a file of measurements, or of its name if there is no such file."""
  file = pathlib.Path(path)
  return hashlib.sha256(file.read_bytes() if file.is_file() else path.encode()).hexdigest()[:16]


def _difference(there: dict, here: dict, prefix: str = "") -> str:
  """The first field that differs, with both values."""
  for name in {**there, **here}:
    old = there.get(name)
    new = here.get(name)
    if isinstance(old, dict) and isinstance(new, dict) and old != new:
      return _difference(old, new, f"{prefix}{name}.")
    if old != new:
      return f"{prefix}{name} is {old} there, and {new} here"
  return "nothing"
