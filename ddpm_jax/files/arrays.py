""".npy and .npz of any origin: plain arrays only, with sizes checked before memory is allocated."""

import io
import math
import warnings
import zipfile
from typing import IO

import numpy as np

from ddpm_jax.files import archives, limits
from ddpm_jax.files.limits import PathLike, damaged, shown

_HEADER = 2**12  # bytes
_KINDS = "biufUS"  # of types: numbers, booleans and text; no Python objects


def read_npy(path: PathLike) -> np.ndarray:
  """The array of a .npy file, in memory.

  Raises:
    UserError: if there is no such file, it is damaged, holds Python objects, or does not fit into memory.
  """
  size = limits.check_regular(path).st_size
  with limits.opened(path) as file:
    return parse_npy(file, size, path)


def read_npz(path: PathLike) -> dict[str, np.ndarray]:
  """All arrays of an .npz file by name, in memory. Raises UserError as `read_npy`."""
  with archives.Zip(path) as archive:
    infos = {name: archive.info(name) for name in archive.names}
    for name, info in infos.items():
      archives.check_expansion(info.file_size, info.compress_size, f"{shown(name)} in {shown(path)}", None)
    limits.check_size(sum(info.file_size for info in infos.values()), shown(path))
    return {name.removesuffix(".npy"): _member(archive, info, path) for name, info in infos.items()}


def _member(archive: archives.Zip, info: zipfile.ZipInfo, path: PathLike) -> np.ndarray:
  title = f"{shown(info.filename)} in {shown(path)}"
  with damaged(title, "array", "fetch or make the file again"), archive.open(info) as file:
    return parse_npy(file, info.file_size, title)


def parse_npy(file: IO[bytes], size: int, name: object) -> np.ndarray:
  """The array in a stream of `size` bytes; `name` is its file for messages. Raises UserError as `read_npy`."""
  with damaged(name, "array"):
    shape, fortran, dtype, start = _header(file)
    count = math.prod(shape)
    expected = count * dtype.itemsize
    if min(shape, default=0) < 0 or start + expected != size:
      raise ValueError(f"{dtype} {list(shape)} is not what its {size:,} bytes hold")
    limits.check_size(expected, shown(name))
    array = np.empty(count, dtype)
    if expected:
      _fill(file, memoryview(array.view(np.uint8)))
    if file.read(1):  # a zip checks the CRC of a member at its end
      raise ValueError("it goes on after its end")
    return array.reshape(shape[::-1]).transpose() if fortran else array.reshape(shape)


def _fill(file: IO[bytes], buffer: memoryview) -> None:
  done = 0
  while done < len(buffer):
    block = file.read(min(2**20, len(buffer) - done))
    if not block:
      raise ValueError("cut short")
    buffer[done : done + len(block)] = block
    done += len(block)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype, int]:
  """(shape, whether columns come first, type, bytes before the data) of a .npy."""
  start = file.read(8)
  version = tuple(start[6:])
  readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
  if start[:6] != np.lib.format.MAGIC_PREFIX or version not in readers:
    raise ValueError("it does not begin like a .npy file")
  length = file.read(2 * version[0])
  if int.from_bytes(length, "little") > _HEADER:
    raise ValueError("its header is too long")
  text = file.read(int.from_bytes(length, "little"))
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of headers that Python 2 wrote
    shape, fortran, dtype = readers[version](io.BytesIO(length + text))
  if dtype.kind not in _KINDS or dtype.subdtype is not None:
    raise ValueError("it holds Python objects" if dtype.hasobject else f"it holds {dtype}")
  return shape, fortran, dtype, len(start) + len(length) + len(text)
