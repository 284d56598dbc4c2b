"""`load`: a data set by name or path."""

import contextlib
import difflib
import io
import os
import pathlib
import re
from collections.abc import Callable

import numpy as np
from PIL import Image

from ddpm_jax.data import crops
from ddpm_jax.data.digits import SPLITS, digits
from ddpm_jax.data.image_files import FileRecords
from ddpm_jax.data.sources import Arrays, CorruptImage, Decoder, Encoded, Info, Records, Source
from ddpm_jax.data.tfds_files import TfdsRecords, available, counts, find
from ddpm_jax.errors import UserError


def load(
  name: str,
  split: str = "train",
  *,
  data_dir: str | os.PathLike | None = None,
  image_size: int | None = None,
  channels: int | None = None,
  crop: str = "adm",
  labels: str = "auto",
  corrupt: str = "error",
  memory_limit: int = 512 * 2**20,
  threads: int | None = None,
) -> Source:
  """Opens a data set. Small ones are decoded once and kept in memory; nothing is ever downloaded or written.

  Args:
    name: "digits" (embedded) or another of SOURCES; a TFDS data set prepared as array_record under `data_dir`, as "mnist",
      "celeb_a_hq/256" or "mnist:3.0.1"; or a path to a folder or .zip of images: one that begins with
      "/", "./", "../" or "~" or ends in ".zip".
    split: "train", "test", ...; also a part of one: "train[:90%]", "test[1000:2000]". For folders see
      `image_files.FileRecords`; their order is that of sorted paths, but a part is a random sample of them, as in TFDS:
      the first files are often of one class.
    data_dir: see `data_root`.
    image_size: pixels; None: the images' own size, which then has to be one and square.
    channels: 1 or 3; None: 3 if a picture in colour is found, else 1.
    crop: how images of another size are fitted: "adm", "random", "lsun", "ddim" or "celeba" (see `crops`).
    labels: for folders and zips, see `image_files.FileRecords`.
    corrupt: "error" stops at an image that cannot be decoded; "skip" reads every image first and leaves out,
      logs and counts the bad ones.
    memory_limit: bytes of uint8 pixels that may be kept in memory; 0 decodes whenever images are read.
    threads: of decoding; None chooses by the size of the images.

  Raises:
    UserError: for whatever is wrong with the data or the arguments.
  """
  check_options(image_size, channels, crop, corrupt)
  if name in SOURCES:
    return SOURCES[name](split, image_size, channels, crop)

  if (path := _path(name)) is not None:
    base, part = _parse(split)
    records = FileRecords(path, base, labels)
    order = np.random.default_rng(0).permutation(len(records))
    kept = np.sort(order[_absolute(part, len(records))])
  else:
    records = TfdsRecords(_find(name, data_dir), split)  # TFDS cuts its splits itself
    kept = np.arange(len(records))
  if not len(kept):
    raise UserError(f"{name} {split} holds no images: choose another split.")
  size, channels, fits = wanted_shape(name, records, image_size, channels)
  decoder = Decoder(size, channels, None if fits and crop in ("adm", "lsun", "ddim") else crop)
  info = Info(name, split, size, channels, records.num_classes, by_name=path is not None)
  source = Encoded(info, records, decoder, kept, threads)
  if corrupt == "skip":
    source = source.readable()
  in_memory = crop != "random" and len(source) * size * size * channels <= memory_limit
  return source.in_memory() if in_memory else source


def check_options(image_size: int | None, channels: int | None, crop: str, corrupt: str) -> None:
  """Raises UserError for values that can mean nothing."""
  if crop not in crops.CROPS:
    raise UserError(f"There is no crop {crop!r}: {', '.join(crops.CROPS)} are known.")
  if corrupt not in ("error", "skip"):
    raise UserError(f"corrupt must be 'error' or 'skip', not {corrupt!r}.")
  if channels not in (None, 1, 3):
    raise UserError(f"channels must be 1 (grey) or 3 (RGB), not {channels}.")
  if image_size is not None and image_size < 1:
    raise UserError(f"image_size must be a positive number of pixels, not {image_size}.")


def prepared(data_dir: str | os.PathLike | None = None) -> dict[str, dict[str, int]]:
  """The data sets that `load` finds by name, with the number of images in each split."""
  folders = available(data_root(data_dir))
  return {"digits": dict(SPLITS)} | {name: counts(folder) for name, folder in folders.items()}


def data_root(data_dir: str | os.PathLike | None = None) -> pathlib.Path:
  """Where prepared data sets are: `data_dir`, else $DDPM_JAX_DATA, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
  variables = os.environ.get("DDPM_JAX_DATA") or os.environ.get("TFDS_DATA_DIR")
  return pathlib.Path(data_dir or variables or "~/tensorflow_datasets").expanduser()


def _digits(split: str, image_size: int | None, channels: int | None, crop: str) -> Arrays:
  base, part = _parse(split)
  if base not in SPLITS:
    raise UserError(f"digits has no split {base!r}; it has {', '.join(SPLITS)}.")
  if crop == "random":
    raise UserError("digits has no room for random crops: use another crop.")
  source = digits(base)
  part = _absolute(part, len(source))
  if not len(source.labels[part]):
    raise UserError(f"digits {split} holds no images: choose another split.")
  decoder = Decoder(image_size or source.info.image_size, channels or source.info.channels, crop)
  images = np.stack([decoder.fit(Image.fromarray(image[..., 0])) for image in source.images[part]])
  info = Info("digits", split, decoder.image_size, decoder.channels, source.info.num_classes)
  return Arrays(info, images, source.labels[part])


# What is made by a program, by name: (split, image_size, channels, crop) -> Source. Add your own here.
SOURCES: dict[str, Callable[[str, int | None, int | None, str], Source]] = {"digits": _digits}


def _path(name: str) -> pathlib.Path | None:
  """The folder or zip that a name stands for; None if it is the name of a data set."""
  if not (name.startswith(("./", "../", "~")) or name.endswith(".zip") or os.path.isabs(name)):
    return None
  path = pathlib.Path(name).expanduser()
  if not path.exists():
    raise UserError(f"There is no folder or zip {path}: check the path.")
  if path.is_file() and path.suffix != ".zip":
    raise UserError(f"{path} is a file: give the folder that holds it, or a .zip of images.")
  return path


def _find(name: str, data_dir: str | os.PathLike | None) -> pathlib.Path:
  """The folder of a prepared TFDS data set."""
  root = data_root(data_dir)
  if (folder := find(root, name)) is not None:
    return folder
  there = [*SOURCES, *available(root)]
  near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
  near += [other for other in there if other.startswith(f"{name}/")]
  remedies = [f"Did you mean {near[0]!r}?"] if near else []
  if pathlib.Path(name).exists():
    remedies.append(f"A folder of images is given by its path: ./{name}.")
  remedies.append("`ddpm-jax data prepare` makes data sets; data_dir or $DDPM_JAX_DATA says where they are.")
  raise UserError(f"There is no data set {name!r} in {root}; there is {', '.join(there)}. {' '.join(remedies)}")


def wanted_shape(name: str, records: Records, image_size: int | None, channels: int | None) -> tuple[int, int, bool]:
  """Pixels and channels that are wanted, and whether the images are known to have that size already."""
  height, width, declared = records.shape
  sizes = {(width, height)}
  channels = channels or (declared and (1 if declared < 3 else 3))  # 2 and 4 have transparency, which is dropped
  if channels is None or (image_size is None and height is None):
    found, colours = _look(name, records)
    sizes, channels = found if height is None else sizes, channels or colours
  if image_size is not None:
    return image_size, channels, height == width == image_size
  if len(sizes) > 1 or len(set(*sizes)) > 1:
    found = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
    raise UserError(
      f"The images of {name} are not all square and of one size ({found}): "
      "give image_size, and all are resized and cropped to it."
    )
  return min(sizes)[0], channels, True


def _look(name: str, records: Records) -> tuple[set[tuple[int, int]], int]:
  """Sizes (width, height) and channels in the headers of up to 64 images, spread over the set."""
  sizes, modes = set(), set()
  for number in np.unique(np.linspace(0, len(records) - 1, 64).astype(int)).tolist():
    with contextlib.suppress(CorruptImage, OSError):  # a broken image is reported when it is read
      with Image.open(io.BytesIO(records[number][0])) as image:
        sizes.add(image.size)
        modes.add(image.mode)
  if not sizes:
    raise UserError(f"None of the images of {name} that were tried can be decoded: is it the right place?")
  grey = all(mode in ("1", "L", "LA") or mode.startswith("I") for mode in modes)
  return sizes, 1 if grey else 3


def _parse(split: str) -> tuple[str, slice]:
  """The name of a split and the part that is wanted; percentages are strings until the length is known."""
  match = re.fullmatch(r"([\w-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
  if not match:
    raise UserError(f"{split!r} is no split: write 'train', 'train[:90%]' or 'train[100:200]'.")
  return match[1], slice(match[2], match[3])


def _absolute(part: slice, length: int) -> slice:
  """A part with its bounds as numbers of images; percentages are rounded to the nearest, as TFDS does."""

  def bound(text: str | None) -> int | None:
    if text is None or not text.endswith("%"):
      return None if text is None else int(text)
    return round(int(text[:-1]) * length / 100)

  return slice(bound(part.start), bound(part.stop))
