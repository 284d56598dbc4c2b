"""Images with random access: `Source`, in memory (`Arrays`) or decoded when read (`Encoded`)."""

import concurrent.futures
import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image, UnidentifiedImageError

from ddpm_jax.data import crops, viewing
from ddpm_jax.errors import UserError
from ddpm_jax.sizes import ImageSize, pair, text

log = logging.getLogger(__name__)

NO_LABEL = -1  # the label of every image of a set without labels


@dataclasses.dataclass(frozen=True)
class Info:
  """The description of a data set that networks and reports need."""

  name: str
  split: str
  image_size: ImageSize  # pixels: N, or (height, width)
  channels: int  # 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; any number of arrays
  num_classes: int | None  # None: no labels
  by_name: bool = False  # sorted by file name, so often class by class, instead of in random order
  class_names: tuple[str, ...] | None = None  # by class number; None: no labels, or numbers without names

  @property
  def shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of every image."""
    return (*pair(self.image_size), self.channels)


class Source:
  """Images by number: `len(source)`, `source.info`, `source[i] -> {"image": uint8 [H, W, C], "label": int}`.

  Attributes:
    info: the description.
    summary: lines for a reader: how many files of which kind there are, what is left out, and why.
  """

  info: Info
  summary: tuple[str, ...] = ()

  def __len__(self) -> int:
    raise NotImplementedError

  def gather(self, indices: np.ndarray, draws: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [b, H, W, C], int32 [b]): many images at once, in new arrays.

    Args:
      indices: [b] integers in 0 .. len - 1.
      draws: uint64 [b], random bits for sources that crop at random; None: center crops.
    """
    raise NotImplementedError

  def some(self, count: int | None = None) -> np.ndarray:
    """The numbers of at most `count` images (None: all), ascending and always the same.

    These are the first images, or a random choice where images are sorted by name and the first may be of one class.
    """
    count = min(count or len(self), len(self))
    if not self.info.by_name:
      return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(len(self))[:count])

  def __getitem__(self, index: int) -> dict:
    images, labels = self.gather(np.array([range(len(self))[index]]))  # a range knows negative and bad indices
    return {"image": images[0], "label": int(labels[0])}


class Arrays(Source):
  """A data set in memory: images uint8 [N, H, W, C], labels int32 [N]."""

  def __init__(self, info: Info, images: np.ndarray, labels: np.ndarray, summary: tuple[str, ...] = ()):
    self.info = info
    self.images = images
    self.labels = labels.astype(np.int32)
    self.summary = summary

  def __len__(self) -> int:
    return len(self.images)

  def gather(self, indices, draws=None):
    return self.images.take(indices, axis=0), self.labels.take(indices)


class Records(Protocol):
  """Encoded images in files, a zip, or array_record. Several threads read at once.

  Attributes:
    shape: (height, width, channels); None for what differs between images or is unknown without reading them.
    num_classes: None without labels.
    class_names: by class number; None if classes are numbers only.
  """

  shape: tuple[int | None, int | None, int | None]
  num_classes: int | None
  class_names: tuple[str, ...] | None

  def __len__(self) -> int: ...

  def __getitem__(self, number: int) -> tuple[bytes, int]:
    """The encoded image and its label."""

  def name(self, number: int) -> str:
    """The name of that image for messages."""


@runtime_checkable
class FilesOfImages(Records, Protocol):
  """Records that know the headers of their images, as those of folders do.

  Attributes:
    paths: of the images.
    headers: one per image; None for a broken one, which is reported when it is read.
    notes: what was left out or decided, one sentence each.
    warnings: the same, where it is probably not wanted.
  """

  paths: Sequence
  headers: Sequence
  notes: Sequence[str]
  warnings: Sequence[str]


class Renumbered:
  """Records whose classes have the numbers that a network knows, found by their names.

  Args:
    records: with class_names.
    class_names: of the network, by number.
  """

  def __init__(self, records: Records, class_names: Sequence[str]):
    self._records = records
    self._names = records.class_names or ()
    self._numbers = {name: number for number, name in enumerate(class_names)}
    self.shape = records.shape
    self.class_names = tuple(class_names)
    self.num_classes = len(self.class_names)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, number: int) -> tuple[bytes, int]:
    """The encoded image and the network's number of its class.

    Raises:
      UserError: if the network does not know the class.
    """
    data, label = self._records[number]
    name = self._names[label]
    if name not in self._numbers:
      raise UserError(f"{self.name(number)} is of the class {name!r}, which this network does not know: leave it out.")
    return data, self._numbers[name]

  def name(self, number: int) -> str:
    return self._records.name(number)


class CorruptImage(UserError):
  """An image that cannot be decoded."""


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Encoded bytes -> uint8 [H, W, channels]."""

  image_size: ImageSize
  channels: int
  crop: str | None  # a key of crops.CROPS: how an image of another size is fitted; None: images must have the size
  background: str = "white"  # what transparent pixels are laid over
  value_range: tuple[float, float] | None = None  # see viewing.pixels

  def __call__(self, data: bytes, draw: int | None = None) -> np.ndarray:
    """Decodes one image.

    Raises:
      UserError: for a size that cannot be fitted.
      Exception: whatever Pillow or NumPy raises for broken data.
    """
    return self.fit(viewing.pixels(data, self.channels, self.background, self.value_range), draw)

  def fit(self, image: Image.Image | np.ndarray, draw: int | None = None) -> np.ndarray:
    """An 8-bit image of the right channels, cropped."""
    height, width = pair(self.image_size)
    if isinstance(image, np.ndarray):
      if image.shape[:2] == (height, width) and not (self.crop == "random" and draw is not None):
        return image
      planes = [self.fit_picture(Image.fromarray(np.ascontiguousarray(plane)), draw) for plane in np.moveaxis(image, -1, 0)]
      return np.stack(planes, -1)
    return self.fit_picture(image, draw).reshape(height, width, self.channels)

  def fit_picture(self, image: Image.Image, draw: int | None) -> np.ndarray:
    """A PIL image, cropped, as an array."""
    if self.crop == "random" and draw is not None:
      image = crops.random(image, self.image_size, draw)
    elif self.crop is not None:
      image = crops.CROPS[self.crop](image, self.image_size)
    height, width = pair(self.image_size)
    if image.size != (width, height):
      raise UserError(
        f"an image is {image.width}x{image.height} where {text(self.image_size)} is expected: "
        "resize it, or choose one size, to which all are resized and cropped."
      )
    return np.asarray(image)


class Encoded(Source):
  """A data set that is decoded when it is read, by several threads if its images are large."""

  def __init__(
    self,
    info: Info,
    records: Records,
    decoder: Decoder,
    kept: np.ndarray,
    threads: int | None = None,
    summary: tuple[str, ...] = (),
  ):
    self.info = info
    self.records = records
    self.decoder = decoder
    self.kept = kept  # [N] numbers of the records that make up this source
    self.summary = summary
    # Pillow holds the interpreter's lock for most of the time that a small image takes: threads slow it down.
    small = max(pair(info.image_size)) < 64 and decoder.crop is None
    self.threads = threads or (1 if small else min(8, os.cpu_count() or 1))
    self._map = map if self.threads == 1 else concurrent.futures.ThreadPoolExecutor(self.threads, "decode").map

  def __len__(self) -> int:
    return len(self.kept)

  def gather(self, indices, draws=None):
    numbers = self.kept[indices].tolist()
    draws = [None] * len(numbers) if draws is None else draws.tolist()
    images, labels = zip(*self._map(self._read, numbers, draws), strict=True)
    return np.stack(images), np.array(labels, np.int32)

  def readable(self) -> "Encoded":
    """This source without the images that cannot be decoded, which are logged and counted. Reads every image."""
    log.info("%s: reading all %d images to find those that cannot be decoded", self.info.name, len(self))
    good = np.array(list(self._map(self._is_readable, self.kept.tolist())), bool)
    if not good.any():
      raise UserError(f"None of the {len(self)} images of {self.info.name} can be decoded: check the path.")
    summary = self.summary
    if not good.all():
      skipped = f"skipped {(~good).sum()} of {len(self)} images that cannot be decoded"
      log.warning("%s: %s.", self.info.name, skipped)
      summary = (*summary, skipped)
    return Encoded(self.info, self.records, self.decoder, self.kept[good], self.threads, summary)

  def in_memory(self, chunk: int = 1024) -> Arrays:
    """All images, decoded once."""
    images = np.empty((len(self), *self.info.shape), np.uint8)
    labels = np.empty(len(self), np.int32)
    for start in range(0, len(self), chunk):
      part = slice(start, start + chunk)
      images[part], labels[part] = self.gather(np.arange(len(self))[part])
    return Arrays(self.info, images, labels, self.summary)

  def _read(self, number: int, draw: int | None) -> tuple[np.ndarray, int]:
    data, label = self.records[number]
    try:
      return self.decoder(data, draw), label
    except UserError as error:
      raise UserError(f"{self.records.name(number)}: {error}") from None
    except Exception as error:  # Pillow's errors have no common base: OSError, SyntaxError, ValueError, ...
      reason = "no known image format" if isinstance(error, UnidentifiedImageError) else str(error)[:120]
      raise CorruptImage(
        f"{self.records.name(number)} cannot be decoded ({reason}): repair or remove it, or set corrupt='skip'."
      ) from error

  def _is_readable(self, number: int) -> bool:
    try:
      self._read(number, None)
    except CorruptImage as error:
      log.warning("skipped: %s", error)
      return False
    return True
