"""PyTorch's files, read and written without PyTorch. Tensors are NumPy arrays, mapped from disk where possible.

Since version 1.6 a file is an uncompressed zip archive: a pickle `data.pkl`, and one member per storage, with a CRC that
is verified here. Older files are a sequence of pickles with the storages at the end.

A pickle is a program. The interpreter here (pickles.py) calls nothing but the functions below, each of which only arranges
numbers. Settings that lie beside weights become inert objects (harmless.py). A file that names anything else is refused, as
by `torch.load(weights_only=True)`.
"""

import collections
import io
import math
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ddpm_jax.errors import UserError, shortened
from ddpm_jax.files import archives, harmless, limits, pickles
from ddpm_jax.files.limits import PathLike, shown
from ddpm_jax.files.pickles import Bounded, Unpickler

_STORAGES = {
  "DoubleStorage": np.float64,
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_PICKLE = 2**26  # bytes of data.pkl
_SHARED = 2**20  # elements of a tensor that may repeat those of a smaller storage

Unknown = Callable[[str, str], Any]


def read(path: PathLike, unknown: Unknown | None = None, inside: Callable[[Any], list] | None = None) -> Any:
  """What `torch.save` wrote to `path`, with NumPy arrays in place of tensors.

  Args:
    path: the file.
    unknown: (module, name) -> what stands for a class or function that is not allowed; None refuses the file. With it
      TorchScript and pickled modules can be read, too.
    inside: the children of what `unknown` gives; None: they have none.

  Raises:
    UserError: if there is no such file, it names code, is damaged, contains itself, or is of another kind.
  """
  size = limits.check_regular(path).st_size
  try:
    with limits.opened(path) as file:
      zipped = zipfile.is_zipfile(file)
      file.seek(0)
      loaded = _load_zip(path, unknown) if zipped else _load_legacy(Bounded(file, size), unknown)
    pickles.check_structure(loaded, lambda node: _children(node, inside))
    return loaded
  except UserError:
    raise
  except pickles.Forbidden as error:
    raise UserError(
      f"{shown(path)} names {shortened(str(error), 45)}, which could run code: only files of plain tensors are read. "
      'Save the weights alone: weights = dict(model.state_dict()); torch.save(weights, "w.pt")'
    ) from None
  except Exception as error:  # damaged bytes are instructions to an unpickler, and fail in every way
    raise UserError(
      f"{shown(path)} is damaged or cut short, or no PyTorch file ({limits.reason(error)}); fetch it again."
    ) from None


def _children(node: Any, inside: Callable[[Any], list] | None) -> list:
  if isinstance(node, Mapping):
    return list(node.values())
  if isinstance(node, list | tuple):
    return list(node)
  return inside(node) if inside is not None else []


def _load_zip(path: PathLike, unknown: Unknown | None) -> Any:
  with archives.Zip(path) as archive:
    members = {name.partition("/")[2]: name for name in archive.names}
    storages: dict[str, np.ndarray] = {}

    def storage(dtype: type, key: str, count: int) -> np.ndarray:
      if key not in storages:
        storages[key] = _member(limits.path_of(path), archive.info(members[f"data/{key}"]), dtype)
      return storages[key]

    return _unpickle(Bounded.of(archive.read(members["data.pkl"], _PICKLE)), storage, unknown)


def _member(path: pathlib.Path, info: zipfile.ZipInfo, dtype: type) -> np.ndarray:
  """The bytes of an uncompressed member, mapped and verified."""
  if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
    raise ValueError("a storage is compressed")
  with path.open("rb") as file:
    file.seek(info.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
  if not info.file_size:
    return np.zeros(0, dtype)
  start = info.header_offset + 30 + name + extra
  array = np.memmap(path, dtype, "r", start, (info.file_size // np.dtype(dtype).itemsize,))
  if zlib.crc32(array.view(np.uint8)) != info.CRC:
    raise ValueError("a storage does not have its CRC")
  return array


def _load_legacy(file: Bounded, unknown: Unknown | None = None) -> Any:
  storages: dict[str, np.ndarray] = {}

  def storage(dtype: type, key: str, count: int) -> np.ndarray:
    if key not in storages:
      claimed = sum(array.nbytes for array in storages.values()) + count * np.dtype(dtype).itemsize
      if count < 0 or claimed > file.left:
        raise ValueError("the storages are larger than the file")
      storages[key] = np.empty(count, dtype)
    return storages[key]

  magic = _unpickle(file, storage, unknown)
  if unknown is not None and magic != _LEGACY_MAGIC:
    return magic  # a plain pickle of a module: its storages are files of this kind, inside
  if magic != _LEGACY_MAGIC:
    raise ValueError("it does not begin as one")
  _, system, loaded, keys = (_unpickle(file, storage, unknown) for _ in range(4))
  if not system["little_endian"]:
    raise ValueError("it is of a big-endian machine")
  for key in keys:
    (count,) = struct.unpack("<q", file.read(8))
    if count != storages[key].size or file.readinto(storages[key].view(np.uint8)) != storages[key].nbytes:
      raise ValueError("a storage is cut short")
  return loaded


# ---------------------------------------------------------------- the only functions that a pickle may call


def _unpickle(file: Bounded, storage: Callable[[type, str, int], np.ndarray], unknown: Unknown | None) -> Any:
  def persistent(pid: tuple) -> np.ndarray:
    _, dtype, key, _, count, *_ = pid
    if dtype not in _STORAGES.values() or not isinstance(key, str):
      raise ValueError("a storage without type or name")
    return storage(dtype, key, count)

  def other(module: str, name: str) -> Any:
    if (setting := harmless.stand_in(module, name)) is not None:
      return setting
    if unknown is None:
      raise pickles.Forbidden(shown(f"{module}.{name}"))
    return unknown(module, name)

  return Unpickler(file, _ALLOWED, unknown=other, storage=persistent).load()


def _rebuild_tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
  """A view into a storage, inside its bounds."""
  end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  if min(offset, *size, *stride, 0) < 0 or (0 not in size and end > storage.size):
    raise ValueError("a tensor ends outside its storage")
  if math.prod(size) > max(storage.size, _SHARED):
    raise ValueError("a tensor repeats its storage too often")
  steps = [step * storage.itemsize for step in stride]
  return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


_ALLOWED: pickles.Names = {
  **pickles.NUMPY,
  **{("torch", name): dtype for name, dtype in _STORAGES.items()},
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
  ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
  ("torch.storage", "_load_from_bytes"): lambda content: _load_legacy(Bounded.of(content)),
  ("torch", "Size"): tuple,
}


# ---------------------------------------------------------------- writing


def write(path: PathLike, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a state dict of float32 tensors, for `torch.load(path, weights_only=True)`."""
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    archive.writestr("model/data.pkl", _state_dict(tensors))
    archive.writestr("model/byteorder", "little")
    for i, tensor in enumerate(tensors.values()):
      archive.writestr(f"model/data/{i}", np.ascontiguousarray(tensor, "<f4").tobytes())
    archive.writestr("model/version", "3\n")


def _state_dict(tensors: Mapping[str, np.ndarray]) -> bytes:
  """The pickle (protocol 2) of OrderedDict((name, tensor i) …), in its own words."""
  empty_dict = b"ccollections\nOrderedDict\n)R"
  out = io.BytesIO()
  out.write(b"\x80\x02" + empty_dict + b"(")
  for i, (name, tensor) in enumerate(tensors.items()):
    strides = np.empty(tensor.shape, np.int8).strides  # in elements
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(str(i)) + _text("cpu") + _int(tensor.size) + b"tQ"
    shape, stride = (b"(" + b"".join(map(_int, values)) + b"t" for values in (tensor.shape, strides))
    arguments = storage + _int(0) + shape + stride + b"\x89" + empty_dict
    out.write(_text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR")
  out.write(b"u.")
  return out.getvalue()


def _text(value: str) -> bytes:
  return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _int(value: int) -> bytes:
  return b"J" + struct.pack("<i", value)


load = read  # the names of the first release, which programs of others use
save = write
