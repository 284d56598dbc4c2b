"""The .safetensors format: a JSON header with names, types, shapes and places, then the bytes of the tensors."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ddpm_jax.files import limits, tables
from ddpm_jax.files.limits import PathLike, damaged

_HEADER = 100_000_000  # bytes, the limit of the format
_TYPES = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E5M2": ml_dtypes.float8_e5m2,
  "I64": np.int64,
  "I32": np.int32,
  "I16": np.int16,
  "I8": np.int8,
  "U64": np.uint64,
  "U32": np.uint32,
  "U16": np.uint16,
  "U8": np.uint8,
  "BOOL": np.bool_,
}


def read(path: PathLike) -> dict[str, np.ndarray]:
  """Every tensor of a .safetensors file, mapped from disk.

  Raises:
    UserError: if there is no such file, or it is damaged or cut short.
  """
  return read_with_metadata(path)[0]


def read_with_metadata(path: PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """(every tensor, mapped from disk; the header's `__metadata__`). Raises UserError as `read`."""
  size = limits.check_regular(path).st_size
  with limits.opened(path) as file, damaged(path, ".safetensors file"):
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _HEADER):
      raise ValueError("it is cut short")
    header = tables.parse_json(file.read(length), path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
      raise ValueError("__metadata__ is not an object")
    return {key: _tensor(path, size, 8 + length, key, entry) for key, entry in header.items()}, metadata


def _tensor(path: PathLike, size: int, start: int, key: str, entry: Mapping[str, Any]) -> np.ndarray:
  dtype = np.dtype(_TYPES[entry["dtype"]])
  shape = tuple(entry["shape"])
  first, end = entry["data_offsets"]
  if any(type(number) is not int or number < 0 for number in (*shape, first, end)):
    raise ValueError(f"{key} has a shape or a place that is not made of numbers")
  if end - first != dtype.itemsize * math.prod(shape) or start + end > size:
    raise ValueError(f"{key} is not inside the file")
  if first == end:
    return np.zeros(shape, dtype)
  return np.memmap(limits.path_of(path), dtype, "r", start + first, shape)


def write(path: PathLike, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a .safetensors file of float32 tensors; not whole-or-absent by itself, see `atomic.writing`."""
  header: dict[str, Any] = {}
  offset = 0
  for key, tensor in tensors.items():
    end = offset + 4 * tensor.size
    header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
    offset = end
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  with pathlib.Path(path).open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
      file.write(np.ascontiguousarray(tensor, "<f4").tobytes())
