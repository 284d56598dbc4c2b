"""Features of a whole set of images: every image once, on all devices, and resumable.

Images are read in batches of `batch_size` per device; the last batch is filled up with zeros, which are cut off again.
Each device runs the same program on as many images however many devices there are, so the features do not depend
on their number. Given a folder, the features of every `CHUNK` images are written as they come; a second call reads
the files that are whole and computes the rest.
"""

import functools
import logging
import os
import pathlib
from typing import Any, Protocol

import jax
import numpy as np
import tqdm

from ddpm_jax.devices import mesh as layout
from ddpm_jax.devices import processes
from ddpm_jax.errors import UserError
from ddpm_jax.files import npz

log = logging.getLogger(__name__)

CHUNK = 4096  # images of one file: 84 MB of all that Inception gives


class Extractor(Protocol):
  """What turns images into features: a frozen pytree, called inside jit.

  Attributes:
    name: for people.
    digest: SHA-256 of what decides the features.
  """

  name: str
  digest: str

  def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
    """uint8 [B, H, W, C] -> float32 [B, d] each: "features"; perhaps "spatial" (sFID) and "logits" (IS)."""

  def check(self, image_shape: tuple[int, ...]) -> None:
    """Raises UserError if images of shape (H, W, C) are not for this network."""

  def describe(self) -> dict[str, Any]:
    """What a result says about its features; JSON-able."""


class Images(Protocol):
  """Images by number: a `data.sources.Source`, or anything with its `len` and `gather`."""

  def __len__(self) -> int: ...

  def gather(self, indices: np.ndarray) -> tuple[np.ndarray, Any]:
    """The images of these numbers, uint8 [b, H, W, C], and whatever else."""


def extract(
  extractor: Extractor,
  images: Images,
  *,
  outputs: tuple[str, ...] = ("features",),
  batch_size: int = 64,
  devices: list | None = None,
  folder: str | os.PathLike | None = None,
  source: str = "",
  progress: bool = False,
) -> dict[str, np.ndarray]:
  """The `outputs` of `extractor` for all images, each float32 [N, d], in the order of the images.

  Args:
    extractor: the network.
    images: the set.
    outputs: which of the extractor's outputs; what is not asked for is not computed.
    batch_size: images per device and call.
    devices: default all, of all processes.
    folder: where to keep features, in a folder named by a hash of all that decides them.
    source: for `folder`, what identifies the images: a hash of their pixels, or of what makes them.
    progress: show a bar.

  Raises:
    UserError: if there are no images, the network is not for them, or `folder` is given without `source`.
  """
  if not len(images):
    raise UserError("There are no images to extract features from.")
  if folder is not None:
    if not source:
      raise UserError("Features are kept under the hash of their images: give `source` along with `folder`.")
    decides = {"extractor": extractor.digest, "images": source, "outputs": sorted(outputs), "count": len(images)}
    folder = pathlib.Path(folder, npz.text_digest(decides)[:32])
  mesh = layout.make_mesh(devices=devices)
  size = batch_size * mesh.size
  on_devices = jax.device_put(extractor, layout.replicated(mesh))
  chunks: list[dict[str, np.ndarray]] = []
  with tqdm.tqdm(total=len(images), desc=f"{extractor.name} features", unit="img", disable=not progress) as bar:
    for start in range(0, len(images), CHUNK):
      indices = np.arange(start, min(start + CHUNK, len(images)))
      path = folder and folder / f"{start:09d}.npz"
      chunk = _stored(path)
      if processes.agreed(chunk is not None):  # who draws the images needs the others for it
        chunks.append(chunk)
        bar.update(len(indices))
        continue
      batches = []
      for part in np.split(indices, range(size, len(indices), size)):
        batch = layout.put_whole(_read(images, part, extractor, size), mesh)
        batches.append(_apply(on_devices, batch, outputs))
        jax.block_until_ready(batches[-2:-1])  # one batch computes while the next is read
        bar.update(len(part))
      found = layout.to_host(batches)
      chunk = {name: np.concatenate([batch[name] for batch in found])[: len(indices)] for name in outputs}
      if path:
        npz.write(path, chunk, decides)
      chunks.append(chunk)
  return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in outputs}


def outputs_of(extractor: Extractor, image_shape: tuple[int, ...]) -> dict[str, int]:
  """The outputs of `extractor` for images (H, W, C), and how many numbers each has; nothing is computed."""
  extractor.check(image_shape)
  shapes = jax.eval_shape(extractor, jax.ShapeDtypeStruct((1, *image_shape), np.uint8))
  return {name: shape.shape[1] for name, shape in shapes.items()}


@functools.partial(jax.jit, static_argnames="outputs")
def _apply(extractor, images, outputs):
  every = extractor(images)
  return {name: every[name] for name in outputs}


def _read(images: Images, indices: np.ndarray, extractor: Extractor, size: int) -> np.ndarray:
  """The images of `indices`, checked, filled up with zeros to `size`."""
  batch = images.gather(indices)[0]
  if batch.dtype != np.uint8:
    raise UserError(f"Images are uint8 where features are extracted, not {batch.dtype}: convert them with to_uint8.")
  extractor.check(batch.shape[1:])
  return np.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))


def _stored(path: pathlib.Path | None) -> dict[str, np.ndarray] | None:
  """The features in that file; None if it is not there yet, or damaged, which is said."""
  if path is None or not path.exists():
    return None
  try:
    return npz.read(path)[0]
  except UserError as error:
    log.warning("%s These features are computed again.", error)
    return None
