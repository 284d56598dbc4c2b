"""The images on either side of a comparison, with their description for results."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_jax import data
from ddpm_jax.data.sources import NO_LABEL, Arrays, Encoded, Info, Source
from ddpm_jax.errors import UserError
from ddpm_jax.files import npz
from ddpm_jax.files.digest import digests
from ddpm_jax.sizes import channels_first, simplest, text

MOST_CLASSES = 1_000_000
DRAWN = 1024  # samples drawn at a time


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """Images and where they come from.

  Attributes:
    name: the name to display.
    source: the images.
    sha256: hash of the pixels. For images decoded on the fly: of the files and how they are processed. For samples: of the
      network, settings and seeds.
    preprocessing: how the pixels were made.
  """

  name: str
  source: Source
  sha256: str
  preprocessing: str

  def __len__(self) -> int:
    return len(self.source)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C)."""
    return self.source.info.shape

  def describe(self) -> dict[str, Any]:
    """A description of this side for results."""
    return {
      "name": self.name,
      "count": len(self),
      "image_shape": list(self.image_shape),
      "sha256": self.sha256,
      "preprocessing": self.preprocessing,
    }


def open_set(name: str, split: str = "train", **options) -> ImageSet:
  """The images of an .npz file (`arr_0`), or of a data set, folder or zip by the name and options of `data.load`.

  Raises:
    UserError: if they cannot be read.
  """
  if name.endswith(".npz"):
    return of_arrays(name, npz.read_npz(name))
  return of_source(data.load(name, split, **options))


def of_source(source: Source) -> ImageSet:
  """A data set's images, unchanged."""
  name = f"{source.info.name} {source.info.split}"
  if isinstance(source, Arrays):
    return ImageSet(name, source, pixel_digest(source.images), "pixels as stored")
  if isinstance(source, Encoded):
    decoder = source.decoder
    total = hashlib.sha256(f"{decoder}".encode())
    for number in source.kept.tolist():
      total.update(source.records[number][0])
    made = "pixels as stored" if decoder.crop is None else f"crop {decoder.crop!r} to {text(decoder.image_size)}"
    return ImageSet(name, source, total.hexdigest(), made)
  raise UserError(f"{name} is read by {type(source).__name__}, whose images have no hash: give a folder or an .npz.")


def of_arrays(name: str, arrays: dict[str, np.ndarray]) -> ImageSet:
  """The images `arr_0` (and labels `arr_1`) of a file of that name, in the layout of OpenAI's evaluator.

  Raises:
    UserError: if they are not uint8 [N, H, W, C].
  """
  if "arr_0" not in arrays:
    raise UserError(f"{name} holds {', '.join(arrays) or 'nothing'}, but images must be in arr_0.")
  images = arrays["arr_0"]
  check_pixels(name, images)
  labels = arrays.get("arr_1", np.full(len(images), NO_LABEL))
  if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
    raise UserError(
      f"{name} has {len(images)} images, but labels (arr_1) of shape {labels.shape}, {labels.dtype}: give "
      "each image an integer, or leave them out."
    )
  if not -1 <= int(labels.min()) <= int(labels.max()) < MOST_CLASSES:
    raise UserError(f"{name} has labels (arr_1) from {labels.min()} to {labels.max()}: classes are numbered from 0.")
  size = simplest(*images.shape[1:3])
  info = Info(name, "", size, images.shape[3], int(labels.max()) + 1 if "arr_1" in arrays else None)
  return ImageSet(name, Arrays(info, images, labels), pixel_digest(images), "uint8 pixels of the file")


def check_pixels(name: str, images: np.ndarray) -> None:
  """Raises UserError unless `images` are uint8 [N, H, W, C], at least one, saying what they are."""
  if not images.size:
    raise UserError(f"{name} holds no images: its array of them has shape {images.shape}.")
  if np.issubdtype(images.dtype, np.floating):
    finite = np.isfinite(images)
    if not finite.all():
      bad = int(np.argmin(finite.reshape(len(images), -1).all(axis=1)))
      raise UserError(f"Image {bad} of {name} has pixels that are not finite: check the program that wrote it.")
    raise UserError(
      f"The images of {name} are {images.dtype} from {images.min():g} to {images.max():g}; they must be uint8 from "
      "0 to 255: convert them with ddpm_jax.data.images.to_uint8, which takes [-1, 1]."
    )
  if images.dtype != np.uint8:
    raise UserError(f"The images of {name} are {images.dtype}; they must be uint8 from 0 to 255.")
  if images.ndim != 4:
    raise UserError(f"The images of {name} have shape {images.shape}; they must be [N, height, width, channels].")
  if channels_first(images.shape[1:]):
    raise UserError(f"The images of {name} have their channels first: store them as [N, height, width, channels].")


def pixel_digest(images: np.ndarray) -> str:
  """SHA-256 of the shape and the pixels."""
  return npz.digest({"images": images})


def drawn(
  draw: Callable[[np.ndarray], np.ndarray],
  count: int,
  image_shape: tuple[int, int, int],
  *,
  name: str,
  sha256: str,
  preprocessing: str,
) -> ImageSet:
  """The images of seeds 0 ... count - 1, drawn when they are read.

  Args:
    draw: seeds [b] -> uint8 [b, H, W, C]; each image depends on its seed alone.
    count: the number of images.
    image_shape: (H, W, C).
    sha256: hash of everything that determines the images.
  """
  height, width, channels = image_shape
  info = Info(name, "", simplest(height, width), channels, None)
  return ImageSet(name, _Drawn(draw, count, info), sha256, preprocessing)


class _Drawn(Source):
  """Images by seed, drawn in blocks of seeds. The last block is kept."""

  def __init__(self, draw, count: int, info: Info):
    self._draw = draw
    self._count = count
    self.info = info
    self._start = 0
    self._block = np.zeros((0, *info.shape), np.uint8)

  def __len__(self) -> int:
    return self._count

  def gather(self, indices, draws=None):
    images = np.stack([self._image(int(index)) for index in indices])
    return images, np.full(len(images), NO_LABEL, np.int32)

  def _image(self, index: int) -> np.ndarray:
    if not self._start <= index < self._start + len(self._block):
      self._start = index - index % DRAWN
      self._block = self._draw(np.arange(self._start, min(self._start + DRAWN, self._count)))
    return self._block[index - self._start]


def of_run(trained: Any, count: int) -> ImageSet:
  """Samples 0 ... count - 1 of `trained` (a jobs.trained.Trained), its classes in turn, with equal shares."""
  labels = trained.labels(range(count))
  networks = [digests(network.params) for network in (trained.network, trained.guide) if network is not None]
  return drawn(
    lambda seeds: trained.sample(seeds, None if labels is None else labels[seeds]),
    count,
    trained.image_shape,
    name=f"samples of {trained.config.data.name}, step {trained.step}, {trained.weights}",
    sha256=npz.text_digest([networks, trained.config.to_dict()]),
    preprocessing=f"drawn on [-1, 1], to uint8 by {trained.config.sampling.rounding!r}" + _balance(labels),
  )


def _balance(labels: np.ndarray | None) -> str:
  if labels is None:
    return ""
  counts = np.unique_counts(labels).counts
  each = " or ".join(f"{count:,}" for count in sorted({*counts.tolist()}))
  return f", {each} of each of {len(counts)} classes"
