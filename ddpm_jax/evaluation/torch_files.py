"""Tensors out of PyTorch's files, without PyTorch and without running anything that the file names.

    .pth .pt     torch.save since 1.6, and TorchScript: a zip with data.pkl and one file per storage
    .pth         torch.save before 1.6: pickles one after the other, then the storages
    .pkl         a pickled module (NVIDIA's persistent classes too): storages are files of the kind above, inside

All three are pickles. Whatever a pickle asks to import becomes a `Record`, which keeps what it is given and does
nothing; only what builds tensors is known by name.
"""

import io
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ddpm_jax.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C  # begins a file of torch.save before 1.6

STORAGES = {
  "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
  "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}


class Record:
  """What stands for an object of a class that is not imported: its arguments, state and items."""

  def __init__(self, *args):
    self.args, self.state, self.items = args, None, {}

  def __new__(cls, *args):
    record = super().__new__(cls)
    Record.__init__(record, *args)
    return record

  def __setstate__(self, state):
    self.state = state

  def __setitem__(self, key, value):
    self.items[key] = value

  def append(self, value):
    self.items[len(self.items)] = value

  def extend(self, values):
    for value in values:
      self.append(value)


class Storage:
  """One buffer that tensors look into; `data` is filled in by who reads the file."""

  def __init__(self, dtype: np.dtype, data: np.ndarray | None = None):
    self.dtype, self.data = np.dtype(dtype), data


class Tensor(NamedTuple):
  """A strided view into a storage, in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def array(self) -> np.ndarray:
    last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
    data = self.storage.data
    if 0 in self.shape:
      return np.zeros(self.shape, data.dtype)
    if min(self.offset, *self.strides, 0) < 0 or last >= len(data):
      raise ValueError("a tensor reaches beyond its storage")
    strides = [stride * data.itemsize for stride in self.strides]
    return np.lib.stride_tricks.as_strided(data[self.offset:], self.shape, strides).copy()


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a file by their dotted names, as in a state dict.

  Raises:
    UserError: if it is no file of PyTorch, or damaged.
  """
  try:
    with open(path, "rb") as file:
      content = _read_zip(file) if zipfile.is_zipfile(file) else _read_pickles(file)
    return dict(_tensors(content, ()))
  except FileNotFoundError:
    raise UserError(f"There is no file {path}.") from None
  except Exception as error:  # damaged bytes are instructions to an unpickler, and fail in every way there is
    raise UserError(f"{path} is no file of PyTorch, or damaged ({error!r}); fetch it again.") from error


class _Unpickler(pickle.Unpickler):
  def __init__(self, file, storage_of: Callable[[str, np.dtype, int], Storage]):
    super().__init__(file, encoding="latin1")
    self._storage_of = storage_of

  def find_class(self, module: str, name: str):
    if name in STORAGES:
      return STORAGES[name]
    return KNOWN.get(name) or type(name, (Record,), {})

  def persistent_load(self, identity):
    kind, dtype, key, _, size, *view = identity
    if kind != "storage" or any(view):
      raise ValueError(f"storage {identity}")
    return self._storage_of(str(key), np.dtype(dtype), size)


def _read_zip(file) -> Any:
  archive = zipfile.ZipFile(file)
  (pickled,) = (name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"])
  folder = pickled.removesuffix("data.pkl") + "data/"
  storages = {}

  def storage_of(key, dtype, size):
    if key not in storages:
      storages[key] = Storage(dtype, np.frombuffer(archive.read(folder + key), dtype))
    return storages[key]

  return _Unpickler(io.BytesIO(archive.read(pickled)), storage_of).load()


def _read_pickles(file) -> Any:
  """A file of torch.save before 1.6; or one pickle, whose storages are such files themselves."""
  file.seek(0)
  storages: dict[str, Storage] = {}
  load = _Unpickler(file, lambda key, dtype, size: storages.setdefault(key, Storage(dtype))).load
  first = load()
  if not isinstance(first, int) or first != MAGIC:
    return first
  load(), load()  # the protocol, and sizes of integers on the machine that wrote it
  content = load()
  for key in load():
    size = int.from_bytes(file.read(8), "little")
    dtype = storages[key].dtype
    storages[key].data = np.frombuffer(file.read(size * dtype.itemsize), dtype, size)
  return content


def _tensors(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
  """(dotted name, array) of all tensors in `node`; a module's tables of children leave no trace in the names."""
  if isinstance(node, Tensor):
    yield ".".join(path), node.array()
  elif isinstance(node, Record):
    yield from _tensors(node.state, path)
    yield from _tensors(node.items, path)
  elif isinstance(node, dict):
    for key, child in node.items():
      inner = path if key in ("_parameters", "_buffers", "_modules") else (*path, str(key))
      yield from _tensors(child, inner)


KNOWN = {
  "OrderedDict": dict,
  "_rebuild_tensor": Tensor,
  "_rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: Tensor(storage, offset, shape, strides),
  "_rebuild_parameter": lambda tensor, *_: tensor,
  "_load_from_bytes": lambda content: _read_pickles(io.BytesIO(content)),
  "_reconstruct_persistent_obj": lambda meta: meta["state"],  # NVIDIA's torch_utils.persistence
}
