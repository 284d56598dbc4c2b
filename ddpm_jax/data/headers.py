"""One look at the header of every file of a data set: what there is, before anything is trained on."""

import collections
import concurrent.futures
import json
import logging
import os
import time
from collections.abc import Sequence
from typing import BinaryIO, Protocol

from ddpm_jax.data import viewing
from ddpm_jax.data.viewing import Header
from ddpm_jax.errors import UserError
from ddpm_jax.files.atomic import writing
from ddpm_jax.files.download import cache_folder
from ddpm_jax.files.tables import read_json
from ddpm_jax.sizes import ImageSize, pair, simplest, text

log = logging.getLogger(__name__)

CACHED_FROM = 2_000  # files; fewer are looked at in less than a second
BLOCK = 1_000
REMEMBERED = 2**30  # bytes that a stored table of headers may take


class Files(Protocol):
  """Encoded images that can be opened one by one, by several threads at once."""

  paths: Sequence[str]

  def open(self, number: int) -> BinaryIO:
    """The file, so that a header can be read without the rest."""

  def digest(self) -> str:
    """A digest of the names, sizes and times of all files."""


def inspect(files: Files) -> list[Header | None]:
  """The header of every file, None where it cannot be read. Large sets are remembered in the cache folder."""
  count = len(files.paths)
  if count < CACHED_FROM:
    return _read(files)
  remembered = cache_folder() / "headers" / f"{files.digest()}.json"
  if (found := _remembered(remembered, count)) is not None:
    return found
  found = _read(files)
  different = list(dict.fromkeys(found))
  numbers = {header: number for number, header in enumerate(different)}
  try:
    remembered.parent.mkdir(parents=True, exist_ok=True)
    with writing(remembered) as temporary:
      temporary.write_text(json.dumps({"headers": different, "files": [numbers[header] for header in found]}))
  except (OSError, UserError) as error:
    log.debug("Headers are not remembered: %s", error)
  return found


def _remembered(file: os.PathLike, count: int) -> list[Header | None] | None:
  try:
    content = read_json(file, most=REMEMBERED)
    different = [None if values is None else Header(*values) for values in content["headers"]]
    found = [different[number] for number in content["files"]]
  except (UserError, TypeError, LookupError):
    return None
  return found if len(found) == count else None


def _read(files: Files) -> list[Header | None]:
  def one(number: int) -> Header | None:
    try:
      with files.open(number) as file:
        return viewing.header(file)
    except Exception:  # reported with its reason when it is decoded
      return None

  found: list[Header | None] = []
  count = len(files.paths)
  said = time.monotonic()
  with concurrent.futures.ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
    for start in range(0, count, BLOCK):
      found += pool.map(one, range(start, min(start + BLOCK, count)))
      if time.monotonic() > said + 10:
        said = time.monotonic()
        log.info("looked at %d of %d files", len(found), count)
  return found


def shape_of(
  name: str, paths: Sequence[str], headers: Sequence[Header | None], image_size: ImageSize | None, channels: int | None
) -> tuple[ImageSize, int, bool]:
  """(image size, channels, whether every image has that size already) for images with these headers.

  Raises:
    UserError: if no header can be read, or image_size or channels must be given and are not.
  """
  known = [header for header in headers if header is not None]
  if not known:
    raise UserError(f"None of the {len(headers)} images of {name} can be decoded: check the path.")
  sizes = collections.Counter((header.height, header.width) for header in known)
  channels = _channels(name, known, channels)
  if image_size is not None:
    return image_size, channels, list(sizes) == [pair(image_size)]
  if len(sizes) > 1:
    common = sizes.most_common()
    odd = next(path for path, header in zip(paths, headers, strict=True) if header and header[1:3] == common[-1][0])
    found = ", ".join(f"{count:,} of {text(size)}" for size, count in common[:3])
    raise UserError(
      f"The images of {name} have {len(sizes):,} sizes ({found}; {odd} is {text(common[-1][0])}): resize "
      "them, or choose one size, to which all are resized and cropped."
    )
  return simplest(*next(iter(sizes))), channels, True


def _channels(name: str, known: Sequence[Header], channels: int | None) -> int:
  arrays = {header.channels for header in known if header.kind == "npy"}
  if not arrays:
    if channels is not None and channels > 4:
      raise UserError(f"The images of {name} have at most 4 channels, not {channels}: store more of them as .npy arrays.")
    return channels or max(header.channels for header in known)
  if len(arrays) > 1 or any(header.kind != "npy" for header in known):
    raise UserError(
      f"{name} mixes .npy arrays with images or with other numbers of channels: keep them in separate folders."
    )
  (stored,) = arrays
  if channels not in (None, stored):
    raise UserError(f"The arrays of {name} have {stored} channels, not {channels}: leave data.channels out.")
  return stored


def summary(
  paths: Sequence[str], headers: Sequence[Header | None], image_size: ImageSize, channels: int, crop: str, background: str
) -> list[str]:
  """What there is and what is done with it, a line for each fact."""
  known = [header for header in headers if header is not None]
  kinds = [header.kind if header else "unreadable" for header in headers]
  endings = collections.Counter(os.path.splitext(path)[1].lower() or kind for path, kind in zip(paths, kinds, strict=True))
  lines = [f"{len(paths):,} images: {_counted(endings)}"]
  sizes = collections.Counter((header.width * header.height, header.height, header.width) for header in known)
  if list(sizes) and {size[1:] for size in sizes} != {pair(image_size)}:
    smallest, largest = (text(size[1:]) for size in (min(sizes), max(sizes)))
    between = smallest if len(sizes) == 1 else f"{len(sizes):,} sizes from {smallest} to {largest}"
    lines.append(f"{between}, fitted to {text(image_size)} by crop {crop!r}")
  else:
    lines.append(f"all {text(image_size)}")
  lines.append(f"modes: {_counted(collections.Counter(header.mode for header in known))}")
  colors = sum(header.channels == 3 for header in known)
  grey = sum(header.channels == 1 for header in known)
  facts = [
    (colors if channels in (1, 2) else 0, "in color, turned grey"),
    (grey if channels in (3, 4) and colors else 0, "grey, kept grey in RGB"),
    (0 if channels in (2, 4) else sum(header.transparent for header in known), f"transparent, laid over {background}"),
    (sum(header.bits > 8 for header in known), "with more than 8 bits a channel, rounded to 8"),
    (sum(header.turned for header in known), "turned upright as their EXIF orientation says"),
    (sum(header.animated for header in known), "with several frames, of which the first is read"),
    (sum(header.profile for header in known), "with a color profile other than sRGB, which is not applied"),
    (len(headers) - len(known), "that cannot be opened" + _first(paths, headers)),
  ]
  return lines + [f"{count:,} {what}" for count, what in facts if count]


def _counted(counts: collections.Counter) -> str:
  return ", ".join(f"{count:,} {what}" for what, count in counts.most_common())


def _first(paths: Sequence[str], headers: Sequence[Header | None]) -> str:
  bad = next((path for path, header in zip(paths, headers, strict=True) if header is None), None)
  return f", such as {bad}" if bad else ""
