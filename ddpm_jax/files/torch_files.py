"""PyTorch's files, read and written without PyTorch. Tensors are NumPy arrays, mapped from disk where possible.

Since version 1.6 a file is a zip archive, uncompressed: a pickle `data.pkl`, and one member per storage, with a CRC that
is verified here. Before, it was a sequence of pickles, with the storages at the end.

A pickle is a program. This one may call nothing but the handful of functions below, none of which does more than
arrange numbers; a file that asks for anything else is refused, as by `torch.load(weights_only=True)`.
"""

import collections
import io
import pathlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ddpm_jax.errors import UserError

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


def load(path: str | pathlib.Path, unknown: Callable[[str, str], Any] | None = None) -> Any:
  """What `torch.save` wrote to `path`, with NumPy arrays in the place of tensors.

  Args:
    unknown: (module, name) -> what stands for a class or function that is not allowed; None refuses the file. With it
      TorchScript and pickled modules can be read, too.

  Raises:
    UserError: if the file wants to run code, or is damaged, cut short or of another kind.
  """
  path = pathlib.Path(path)
  try:
    if zipfile.is_zipfile(path):
      return _load_zip(path, unknown)
    with path.open("rb") as file:
      return _load_legacy(file, unknown)
  except _Code as error:
    raise UserError(f"{path} wants to run {error}; only files of plain tensors are read.") from None
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}.") from None
  except Exception:  # damaged bytes are instructions to an unpickler, and fail in every way there is
    raise UserError(f"{path} is damaged or cut short, or no PyTorch file; fetch it again.") from None


def _load_zip(path, unknown):
  with zipfile.ZipFile(path) as archive:
    members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    storages: dict[str, np.ndarray] = {}

    def storage(dtype, key, count):
      if key not in storages:
        storages[key] = _member(path, members[f"data/{key}"], dtype)
      return storages[key]

    with archive.open(members["data.pkl"]) as file:
      return _Unpickler(file, storage, unknown).load()


def _member(path, info, dtype):
  """The bytes of an uncompressed member, mapped and verified."""
  if info.compress_type != zipfile.ZIP_STORED:
    raise ValueError("compressed")
  with path.open("rb") as file:
    file.seek(info.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
  if not info.file_size:
    return np.zeros(0, dtype)
  start = info.header_offset + 30 + name + extra
  array = np.memmap(path, dtype, "r", start, (info.file_size // np.dtype(dtype).itemsize,))
  if zlib.crc32(array.view(np.uint8)) != info.CRC:
    raise ValueError("CRC")
  return array


def _load_legacy(file, unknown=None):
  storages: dict[str, np.ndarray] = {}

  def storage(dtype, key, count):
    return storages.setdefault(key, np.empty(count, dtype))

  magic = _Unpickler(file, storage, unknown).load()
  if unknown is not None and magic != _LEGACY_MAGIC:
    return magic  # a plain pickle of a module: its storages are files of this kind, inside
  _, system, loaded, keys = (_Unpickler(file, storage, unknown).load() for _ in range(4))
  if magic != _LEGACY_MAGIC or not system["little_endian"]:
    raise ValueError("magic")
  for key in keys:
    (count,) = struct.unpack("<q", file.read(8))
    if count != storages[key].size or file.readinto(storages[key].view(np.uint8)) != storages[key].nbytes:
      raise ValueError("size")
  return loaded


# ---------------------------------------------------------------- the only functions that a pickle may call


class _Code(Exception):
  """A name that a pickle asked for in vain."""


class _Unpickler(pickle.Unpickler):
  def __init__(self, file, storage, unknown):
    super().__init__(file, encoding="utf-8")
    self._storage, self._unknown = storage, unknown

  def find_class(self, module, name):
    if (module, name) in _ALLOWED:
      return _ALLOWED[module, name]
    if module == "torch" and name in _STORAGES:
      return _STORAGES[name]
    if self._unknown is not None:
      return self._unknown(module, name)
    raise _Code(f"{module}.{name}")

  def persistent_load(self, pid):
    _, dtype, key, _, count, *_ = pid
    return self._storage(dtype, key, count)


def _rebuild_tensor(storage, offset, size, stride, *_):
  """A view into a storage, inside its bounds."""
  end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  if min(offset, *size, *stride, 0) < 0 or (0 not in size and end > storage.size):
    raise ValueError("bounds")
  steps = [step * storage.itemsize for step in stride]
  return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _rebuild_array(_, __, dtype):
  return np.ndarray.__new__(np.ndarray, (0,), dtype)


_ALLOWED = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
  ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
  ("torch.storage", "_load_from_bytes"): lambda content: _load_legacy(io.BytesIO(content)),
  ("torch", "Size"): tuple,
  ("numpy.core.multiarray", "_reconstruct"): _rebuild_array,
  ("numpy._core.multiarray", "_reconstruct"): _rebuild_array,
  ("numpy", "ndarray"): np.ndarray,
  ("numpy", "dtype"): np.dtype,
  ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
}


# ---------------------------------------------------------------- writing


def save(path: str | pathlib.Path, tensors: Mapping[str, np.ndarray]):
  """A state dict of float32 tensors, for `torch.load(path, weights_only=True)`."""
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    archive.writestr("model/data.pkl", _state_dict(tensors))
    archive.writestr("model/byteorder", "little")
    for i, tensor in enumerate(tensors.values()):
      archive.writestr(f"model/data/{i}", np.ascontiguousarray(tensor, "<f4").tobytes())
    archive.writestr("model/version", "3\n")


def _state_dict(tensors):
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


def _text(value):
  return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _int(value):
  return b"J" + struct.pack("<i", value)
