"""TensorFlow's checkpoint format ("tensor bundle", version 2), read without TensorFlow.

    PREFIX.index                 a sorted table: name -> BundleEntryProto (type, shape, shard, offset, size)
    PREFIX.data-00000-of-0000N   the bytes of the tensors

The table is LevelDB's: blocks of prefix-compressed entries, an index block that points to them, and a footer of 48
bytes that points to the index block. TensorFlow writes it uncompressed.
"""

import math
import os
import struct
from collections.abc import Iterator

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.files import limits, protobuf
from ddpm_jax.files.protobuf import varint

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_INDEX = 2**26  # bytes of the index
_NAME = 4096  # bytes of a name
_TYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 19: np.float16}  # of tensorflow/core/.../types.proto


def read(prefix: limits.PathLike) -> dict[str, np.ndarray]:
  """Every numeric variable of the checkpoint, mapped from disk: name -> array.

  Raises:
    UserError: if a file is absent, cut short or not of this format.
  """
  prefix = str(prefix)
  index = f"{prefix}.index"
  if not os.path.lexists(index):
    raise UserError(
      f"There is no file at {limits.shown(index)}; a TensorFlow checkpoint is PREFIX.index and PREFIX.data-00000-of-00001."
    )
  data = limits.read_bytes(index, _INDEX)
  with limits.damaged(index, "index of a TensorFlow checkpoint", "it may be cut short; fetch the checkpoint again"):
    entries = [(name.decode(), _fields(value)) for name, value in _table(data)]
    shards = next((_int(header, 1) for name, header in entries if not name), 1)
    return {name: _tensor(prefix, shards, name, entry) for name, entry in entries if name and _int(entry, 1) in _TYPES}


def _tensor(prefix: str, shards: int, name: str, entry: dict[int, list]) -> np.ndarray:
  dtype = np.dtype(_TYPES[_int(entry, 1)])
  shape = tuple(_int(_fields(dim), 1) for dim in _fields(entry.get(2, [b""])[0]).get(2, []))
  shard, offset, size = (_int(entry, field) for field in (3, 4, 5))
  data = f"{prefix}.data-{shard:05d}-of-{shards:05d}"
  if not os.path.lexists(data):
    raise UserError(f"There is no file at {limits.shown(data)}; it holds {limits.shown(name)} of the TensorFlow checkpoint.")
  if size != dtype.itemsize * math.prod(shape) or offset + size > limits.check_regular(data).st_size:
    raise UserError(
      f"{limits.shown(data)} is damaged or cut short: {limits.shown(name)} {list(shape)} is not inside it; fetch the "
      "checkpoint again."
    )
  return np.memmap(data, dtype, "r", offset, shape) if size else np.zeros(shape, dtype)


# ---------------------------------------------------------------- LevelDB's table


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
    raise IndexError("no footer")
  _, _, at = _handle(data, len(data) - _FOOTER)  # of the metaindex block, which is empty
  offset, size, _ = _handle(data, at)
  end = 0
  for _, handle in _block(data, offset, size):
    start, length, _ = _handle(handle, 0)
    if start < end:
      raise ValueError("blocks overlap")
    end = start + length
    yield from _block(data, start, length)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
  if data[offset + size]:
    raise ValueError("it is compressed, which TensorFlow does not do")
  block = data[offset : offset + size]
  (restarts,) = struct.unpack("<I", block[-4:])
  end = size - 4 * (restarts + 1)
  at = 0
  key = b""
  while at < end:
    shared, at = varint(block, at)
    fresh, at = varint(block, at)
    length, at = varint(block, at)
    if shared + fresh > _NAME:
      raise ValueError(f"a name of {shared + fresh:,} bytes")
    key = key[:shared] + block[at : at + fresh]
    at += fresh
    yield key, block[at : at + length]
    at += length


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
  offset, at = varint(data, at)
  size, at = varint(data, at)
  return offset, size, at


def _fields(message: bytes | memoryview) -> dict[int, list]:
  """{field number: values} of a protocol buffer."""
  found: dict[int, list] = {}
  for number, value in protobuf.fields(message):
    found.setdefault(number, []).append(value)
  return found


def _int(fields: dict[int, list], number: int) -> int:
  return fields.get(number, [0])[0]
