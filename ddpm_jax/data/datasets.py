"""`load`: a data set by name or path."""

import dataclasses
import difflib
import io
import logging
import math
import os
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ddpm_jax import importable
from ddpm_jax.config import is_path
from ddpm_jax.data import crops, headers, viewing
from ddpm_jax.data.containers import open_container
from ddpm_jax.data.digits import SPLITS, digits
from ddpm_jax.data.image_files import FileDataset, is_image
from ddpm_jax.data.parquet import ParquetDataset
from ddpm_jax.data.sources import Arrays, Decoder, Encoded, FilesOfImages, Info, Records, Renumbered, Source
from ddpm_jax.data.tfds_files import TfdsRecords, available, counts, find
from ddpm_jax.errors import UserError
from ddpm_jax.sizes import ImageSize, pair, simplest

log = logging.getLogger(__name__)

LOOKED_AT = 64  # headers of a prepared set that does not declare one size; each image is checked when it is read
MOST_CHANNELS = 4096
FILES = (".zip", ".parquet")  # files that are data sets


def load(
  name: str,
  split: str = "train",
  *,
  data_dir: str | os.PathLike | None = None,
  image_size: ImageSize | None = None,
  channels: int | None = None,
  crop: str = "adm",
  labels: str = "auto",
  corrupt: str = "error",
  background: str = "white",
  value_range: tuple[float, float] | None = None,
  holdout: float = 0.0,
  class_names: Sequence[str] | None = None,
  memory_limit: int = 512 * 2**20,
  threads: int | None = None,
) -> Source:
  """Opens a data set. A small one is decoded once and kept in memory. Nothing is downloaded or written.

  Args:
    name: "digits" (embedded) or another of SOURCES; "package.module:function", called like those; a TFDS data set prepared
      as array_record under `data_dir`, such as "mnist", "celeb_a_hq/256" or "mnist:3.0.1"; or the path of a folder or .zip
      of images, or of Hugging Face's Parquet files, which begins with "/", "./", "../" or "~" or ends in ".zip" or
      ".parquet".
    split: "train", "test", ..., or a part of one: "train[:90%]", "test[1000:2000]". For folders see
      `image_files.FileRecords`. A part of a folder is a random sample, as in TFDS, because the first files are often of
      one class.
    data_dir: see `data_root`.
    image_size: pixels, N or (height, width); None: the images' own size, which must then be one.
    channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; None: 3 if any image is in color, else 1. Arrays (.npy) keep theirs.
    crop: how images of another size are fitted: "adm", "random", "lsun", "ddim" or "celeba" (see `crops`).
    labels: for folders and zips, see `image_files.FileRecords`.
    corrupt: "error" stops at an image that cannot be decoded; "skip" reads every image first and leaves out, logs and
      counts the bad ones.
    background: the color that transparent pixels are laid over, as in CSS.
    value_range: (low, high), which become black and white in .npy arrays and in images of 16 or more bits; None: the
      range of their integer type.
    holdout: the share of a folder's images that is held out as "test", the same always, where there is no test folder.
    class_names: by number, as a trained network knows them; labels are renumbered to agree. None: as the data set says.
    memory_limit: bytes of uint8 pixels that may be kept in memory; 0 decodes whenever images are read.
    threads: for decoding; None chooses by the size of the images.

  Raises:
    UserError: for anything that is wrong with the data or the arguments.
  """
  image_size = check_options(image_size, channels, crop, corrupt, background, value_range)
  if not 0 <= holdout < 1:
    raise UserError(f"holdout must be a share from 0 to below 1, not {holdout}.")
  if name in SOURCES:
    return SOURCES[name](split, image_size, channels, crop)
  if importable.is_code(name):
    return importable.resolve(name)(split, image_size, channels, crop)

  path = _path(name)
  if path is not None:
    base, part = _parse(split)
    records = open_files(path, labels, holdout).split(base)
    order = np.random.default_rng(0).permutation(len(records))
    kept = np.sort(order[_absolute(part, len(records))])
  else:
    records = TfdsRecords(_find(name, data_dir), split)  # TFDS cuts its splits itself
    kept = np.arange(len(records))
  if not len(kept):
    raise UserError(f"{name} {split} holds no images: choose another split.")
  size, channels, fits = wanted_shape(name, records, image_size, channels)
  decoder = Decoder(size, channels, None if fits and crop in ("adm", "lsun", "ddim") else crop, background, value_range)
  info = Info(name, split, size, channels, records.num_classes, path is not None, records.class_names)
  summary = summarize(records, info, crop, background)
  if class_names and records.class_names and tuple(class_names) != records.class_names:
    records = Renumbered(records, class_names)
    info = dataclasses.replace(info, num_classes=records.num_classes, class_names=records.class_names)
  source = Encoded(info, records, decoder, kept, threads, summary)
  if corrupt == "skip":
    source = source.readable()
  in_memory = crop != "random" and len(source) * math.prod(info.shape) <= memory_limit
  return source.in_memory() if in_memory else source


def open_files(path: pathlib.Path, labels: str = "auto", holdout: float = 0.0) -> FileDataset | ParquetDataset:
  """A folder or zip of images, or a folder of Parquet files or one of them."""
  if path.suffix.lower() == ".parquet":
    return ParquetDataset(path.parent, [path], labels)
  container = open_container(path)
  tables = [path / name for name in container.paths if name.lower().endswith(".parquet")]
  if path.is_dir() and tables and not any(map(is_image, container.paths)):
    return ParquetDataset(path, tables, labels)
  return FileDataset(path, labels, holdout, container)


def check_options(
  image_size: ImageSize | None,
  channels: int | None,
  crop: str,
  corrupt: str,
  background: str = "white",
  value_range: tuple[float, float] | None = None,
) -> ImageSize | None:
  """The image size in its simplest form.

  Raises:
    UserError: for values that cannot mean anything.
  """
  if crop not in crops.CROPS:
    raise UserError(f"There is no crop {crop!r}: choose from {', '.join(crops.CROPS)}.")
  if corrupt not in ("error", "skip"):
    raise UserError(f"corrupt must be 'error' or 'skip', not {corrupt!r}.")
  if channels is not None and not 0 < channels <= MOST_CHANNELS:
    raise UserError(f"channels must be 1 (grey), 2, 3 (RGB), 4 (RGBA) or the number of an array's, not {channels}.")
  viewing.color(background)
  if value_range is not None and not (len(value_range) == 2 and value_range[0] < value_range[1]):
    raise UserError(f"value_range must be (low, high), the values of black and white, not {value_range}.")
  return None if image_size is None else simplest(*pair(image_size))


def summarize(records: Records, info: Info, crop: str, background: str) -> tuple[str, ...]:
  """What a data set's files are and what is done with them, which is also logged; () for prepared sets."""
  if not isinstance(records, FilesOfImages):
    return ()
  lines = headers.summary(records.paths, records.headers, info.image_size, info.channels, crop, background)
  log.info("%s %s: %s", info.name, info.split, "; ".join([*lines, *records.notes]))
  for warning in records.warnings:
    log.warning("%s %s: %s", info.name, info.split, warning)
  return (*lines, *records.notes, *records.warnings)


def prepared(data_dir: str | os.PathLike | None = None) -> dict[str, dict[str, int]]:
  """The data sets that `load` finds by name, with the number of images in each split."""
  folders = available(data_root(data_dir))
  return {"digits": dict(SPLITS)} | {name: counts(folder) for name, folder in folders.items()}


def data_root(data_dir: str | os.PathLike | None = None) -> pathlib.Path:
  """Where prepared data sets are: `data_dir`, else $DDPM_JAX_DATA, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
  variables = os.environ.get("DDPM_JAX_DATA") or os.environ.get("TFDS_DATA_DIR")
  return pathlib.Path(data_dir or variables or "~/tensorflow_datasets").expanduser()


def _digits(split: str, image_size: ImageSize | None, channels: int | None, crop: str) -> Arrays:
  base, part = _parse(split)
  if base not in SPLITS:
    raise UserError(f"digits has no split {base!r}; it has {', '.join(SPLITS)}.")
  if crop == "random":
    raise UserError("digits has no room for random crops: use another crop.")
  source = digits(base)
  part = _absolute(part, len(source))
  if not len(source.labels[part]):
    raise UserError(f"digits {split} holds no images: choose another split.")
  if channels not in (None, 1, 3):
    raise UserError(f"digits are grey: channels must be 1 or 3, not {channels}.")
  decoder = Decoder(image_size or source.info.image_size, channels or source.info.channels, crop)
  mode = "L" if decoder.channels == 1 else "RGB"
  images = np.stack([decoder.fit(Image.fromarray(image[..., 0]).convert(mode)) for image in source.images[part]])
  info = Info("digits", split, decoder.image_size, decoder.channels, source.info.num_classes)
  return Arrays(info, images, source.labels[part])


# Data sets made by a program, by name: (split, image_size, channels, crop) -> Source. Add your own here.
SOURCES: dict[str, Callable[[str, ImageSize | None, int | None, str], Source]] = {"digits": _digits}


def _path(name: str) -> pathlib.Path | None:
  """The folder or zip that a name stands for; None for the name of a data set."""
  if not is_path(name):
    return None
  path = pathlib.Path(name).expanduser()
  if not path.exists():
    raise UserError(f"There is no folder or zip {path}: check the path.")
  if path.is_file() and path.suffix.lower() not in FILES:
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


def wanted_shape(
  name: str, records: Records, image_size: ImageSize | None, channels: int | None
) -> tuple[ImageSize, int, bool]:
  """The wanted image size and channels, and whether all images are known to have that size already."""
  if isinstance(records, FilesOfImages):
    return headers.shape_of(name, records.paths, records.headers, image_size, channels)
  height, width, declared = records.shape
  channels = channels or (declared and (1 if declared < 3 else 3))  # 2 and 4 have transparency
  if channels is not None and channels > 4:
    raise UserError(f"The images of {name} have at most 4 channels, not {channels}: store more of them as .npy arrays.")
  if height is not None and channels is not None:
    stored = simplest(height, width)
    return image_size or stored, channels, image_size in (None, stored)
  if image_size is not None and channels is not None:
    return image_size, channels, False
  numbers = np.unique(np.linspace(0, len(records) - 1, LOOKED_AT).astype(int)).tolist()
  return headers.shape_of(name, [records.name(number) for number in numbers], _look(records, numbers), image_size, channels)


def _look(records: Records, numbers: list[int]) -> list[viewing.Header | None]:
  """The headers of some images; None for a broken one, which is reported when it is read."""
  found: list[viewing.Header | None] = []
  for number in numbers:
    try:
      found.append(viewing.header(io.BytesIO(records[number][0])))
    except Exception:
      found.append(None)
  return found


def _parse(split: str) -> tuple[str, slice]:
  """The name of a split and the part that is wanted; percentages are strings until the length is known."""
  match = re.fullmatch(r"([\w-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
  if not match:
    raise UserError(f"{split!r} is not a split: write 'train', 'train[:90%]' or 'train[100:200]'.")
  return match[1], slice(match[2], match[3])


def _absolute(part: slice, length: int) -> slice:
  """A part with its bounds as numbers of images; percentages are rounded to the nearest, as TFDS does."""

  def bound(text: str | None) -> int | None:
    if text is None or not text.endswith("%"):
      return None if text is None else int(text)
    return round(int(text[:-1]) * length / 100)

  return slice(bound(part.start), bound(part.stop))
