"""Images with random access: `Source`, in memory (`Arrays`) or decoded when read (`Encoded`)."""

import concurrent.futures
import dataclasses
import io
import logging
import os
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from ddpm_jax.data import crops
from ddpm_jax.errors import UserError

log = logging.getLogger(__name__)

NO_LABEL = -1  # the label of every image of a set without labels


@dataclasses.dataclass(frozen=True)
class Info:
  """What a data set is: all that a network and a report have to know of it."""

  name: str
  split: str
  image_size: int  # height and width in pixels
  channels: int  # 1 grey, 3 RGB
  num_classes: int | None  # None: no labels
  by_name: bool = False  # in the order of file names, and so often class by class, instead of in a random one


class Source:
  """Images by number: `len(source)`, `source.info`, `source[i] -> {"image": uint8 [H, W, C], "label": int}`."""

  info: Info

  def __len__(self) -> int:
    raise NotImplementedError

  def gather(self, indices: np.ndarray, draws: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [b, H, W, C], int32 [b]): many images at once, in fresh arrays.

    Args:
      indices: [b] integers in 0 .. len - 1.
      draws: uint64 [b], random bits for sources that crop at random; None reads without chance.
    """
    raise NotImplementedError

  def some(self, count: int | None = None) -> np.ndarray:
    """Numbers of `count` images (None: of all that there are, and never more), ascending, the same ones always.

    The first ones; of images in the order of their names random ones, since the first may be of one class.
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

  def __init__(self, info: Info, images: np.ndarray, labels: np.ndarray):
    self.info, self.images, self.labels = info, images, labels.astype(np.int32)

  def __len__(self) -> int:
    return len(self.images)

  def gather(self, indices, draws=None):
    return self.images.take(indices, axis=0), self.labels.take(indices)


class Records(Protocol):
  """Encoded images somewhere: in files, a zip, array_record. Read by several threads at once.

  Attributes:
    shape: (height, width, channels), None for what is not the same in all images or not known without reading them.
    num_classes: None without labels.
  """

  shape: tuple[int | None, int | None, int | None]
  num_classes: int | None

  def __len__(self) -> int: ...

  def __getitem__(self, number: int) -> tuple[bytes, int]:
    """The encoded image and its label."""

  def name(self, number: int) -> str:
    """What a person would call that image."""


class CorruptImage(UserError):
  """An image that cannot be decoded."""


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Encoded bytes -> uint8 [image_size, image_size, channels]; `crop` names how an image of another size is fitted."""

  image_size: int
  channels: int
  crop: str | None  # a key of crops.CROPS; None: images have to have that size

  def __call__(self, data: bytes, draw: int | None = None) -> np.ndarray:
    """Decodes one image; raises whatever Pillow raises for broken data, and UserError for a size that may not be."""
    with Image.open(io.BytesIO(data)) as image:
      return self.fit(image, draw)

  def fit(self, image: Image.Image, draw: int | None = None) -> np.ndarray:
    """The pixels of a PIL image, converted to grey or RGB and cropped."""
    if image.mode.startswith(("I", "F")):
      raise UserError(f"an image has more than 8 bits a channel (mode {image.mode}): convert it to 8 bits.")
    mode = "L" if self.channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if self.crop == "random" and draw is not None:
      image = crops.random(image, self.image_size, draw)
    elif self.crop is not None:
      image = crops.CROPS[self.crop](image, self.image_size)
    if image.size != (self.image_size, self.image_size):
      raise UserError(
        f"an image is {image.width}x{image.height} where {self.image_size}x{self.image_size} is expected: "
        "give image_size, and all are resized and cropped to it."
      )
    return np.asarray(image).reshape(self.image_size, self.image_size, self.channels)


class Encoded(Source):
  """A data set that is decoded when it is read, by several threads when its images are large."""

  def __init__(self, info: Info, records: Records, decoder: Decoder, kept: np.ndarray, threads: int | None = None):
    self.info, self.records, self.decoder = info, records, decoder
    self.kept = kept  # [N] numbers of the records that make up this source
    # Pillow holds the interpreter's lock for most of the time that a small image takes: threads slow it down.
    small = info.image_size < 64 and decoder.crop is None
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
      raise UserError(f"None of the {len(self)} images of {self.info.name} can be decoded: is it the right place?")
    if not good.all():
      log.warning("%s: skipped %d of %d images that cannot be decoded.", self.info.name, (~good).sum(), len(self))
    return Encoded(self.info, self.records, self.decoder, self.kept[good], self.threads)

  def in_memory(self, chunk: int = 1024) -> Arrays:
    """All images, decoded once."""
    size, channels = self.info.image_size, self.info.channels
    images = np.empty((len(self), size, size, channels), np.uint8)
    labels = np.empty(len(self), np.int32)
    for start in range(0, len(self), chunk):
      part = slice(start, start + chunk)
      images[part], labels[part] = self.gather(np.arange(len(self))[part])
    return Arrays(self.info, images, labels)

  def _read(self, number: int, draw: int | None) -> tuple[np.ndarray, int]:
    data, label = self.records[number]
    try:
      return self.decoder(data, draw), label
    except UserError as error:
      raise UserError(f"{self.records.name(number)}: {error}") from None
    except Exception as error:  # Pillow's errors have no common base: OSError, SyntaxError, ValueError, ...
      reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
      raise CorruptImage(
        f"{self.records.name(number)} cannot be decoded ({reason}): mend or remove it, or set corrupt='skip'."
      ) from error

  def _is_readable(self, number: int) -> bool:
    try:
      self._read(number, None)
    except CorruptImage as error:
      log.warning("skipped: %s", error)
      return False
    return True
