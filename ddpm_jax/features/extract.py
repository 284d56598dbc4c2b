"""Feature extraction for a set of images, on all devices and resumable.

Images are read in batches of `batch_size` per device; the last batch is padded with zeros. Each device runs the same program
on the same number of images, so the features do not depend on the number of devices. Given a folder, the features of every
`CHUNK` images are written when they are complete; a second call reads these files and computes the rest.
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

CHUNK = 4096  # images per file: 84 MB for all outputs of Inception


class Extractor(Protocol):
  """Computes features of images: a frozen pytree, called inside jit.

  Attributes:
    name: the name to display.
    digest: SHA-256 of everything that determines the features.
  """

  name: str
  digest: str

  def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
    """uint8 [B, H, W, C] -> float32 [B, d] each: "features"; perhaps "spatial" (sFID) and "logits" (IS)."""

  def check(self, image_shape: tuple[int, ...]) -> None:
    """Raises UserError if the network does not take images of shape (H, W, C)."""

  def describe(self) -> dict[str, Any]:
    """A description of the features for results, as JSON."""


class Images(Protocol):
  """Images by number: a `data.sources.Source`, or anything with its `len` and `gather`."""

  def __len__(self) -> int: ...

  def gather(self, indices: np.ndarray) -> tuple[np.ndarray, Any]:
    """(the images with these indices, uint8 [b, H, W, C], anything else)."""


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
    outputs: which of the extractor's outputs to compute.
    batch_size: images per device and call.
    devices: the devices to use; None means all devices of all processes.
    folder: where to store features, in a subfolder named by a hash of everything that determines them.
    source: identifies the images for `folder`: a hash of their pixels, or of what generates them.
    progress: show a bar.

  Raises:
    UserError: if there are no images, the network does not take them, or `folder` is given without `source`.
  """
  if not len(images):
    raise UserError("There are no images to extract features from.")
  if folder is not None:
    if not source:
      raise UserError("Features are stored under a hash of their images: give `source` along with `folder`.")
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
      if processes.agreed(chunk is not None):  # drawing images needs all processes
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
  """{output: its dimension} of `extractor` for images (H, W, C), by shape inference alone."""
  extractor.check(image_shape)
  shapes = jax.eval_shape(extractor, jax.ShapeDtypeStruct((1, *image_shape), np.uint8))
  return {name: shape.shape[1] for name, shape in shapes.items()}


@functools.partial(jax.jit, static_argnames="outputs")
def _apply(extractor, images, outputs):
  every = extractor(images)
  return {name: every[name] for name in outputs}


def _read(images: Images, indices: np.ndarray, extractor: Extractor, size: int) -> np.ndarray:
  """The images of `indices`, checked and padded with zeros to `size`."""
  batch = images.gather(indices)[0]
  if batch.dtype != np.uint8:
    raise UserError(f"Features are extracted from uint8 images, not {batch.dtype}: convert them with to_uint8.")
  extractor.check(batch.shape[1:])
  return np.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))


def _stored(path: pathlib.Path | None) -> dict[str, np.ndarray] | None:
  """The features in that file; None if it does not exist or, with a warning, if it is damaged."""
  if path is None or not path.exists():
    return None
  try:
    return npz.read(path)[0]
  except UserError as error:
    log.warning("%s These features are computed again.", error)
    return None
