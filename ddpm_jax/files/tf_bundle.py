"""TensorFlow's checkpoint format ("tensor bundle", version 2), read without TensorFlow.

    PREFIX.index                 a sorted table: name -> BundleEntryProto (type, shape, shard, offset, size)
    PREFIX.data-00000-of-0000N   the bytes of the tensors

The table is LevelDB's: blocks of prefix-compressed entries, an index block that points to them, and a footer of 48
bytes that points to the index block. TensorFlow writes it uncompressed.
"""

import pathlib
import struct
from collections.abc import Iterator

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.files import protobuf
from ddpm_jax.files.protobuf import varint

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 19: np.float16}  # of tensorflow/core/.../types.proto


def read(prefix: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Every numeric variable of the checkpoint, mapped from disk: name -> array.

  Raises:
    UserError: if a file is absent, cut short or not of this format.
  """
  prefix = str(prefix)
  index = pathlib.Path(f"{prefix}.index")
  if not index.is_file():
    raise UserError(f"{index} does not exist; a TensorFlow checkpoint is {prefix}.index and {prefix}.data-00000-of-00001.")
  try:
    entries = [(name.decode(), _fields(value)) for name, value in _table(index.read_bytes())]
  except UserError:
    raise
  except (ValueError, IndexError, struct.error):
    raise UserError(f"{index} is damaged or cut short; fetch the checkpoint again.") from None
  shards = next((_int(header, 1) for name, header in entries if not name), 1)
  return {name: _tensor(prefix, shards, name, entry) for name, entry in entries if name and _int(entry, 1) in _TYPES}


def _tensor(prefix, shards, name, entry):
  dtype = np.dtype(_TYPES[_int(entry, 1)])
  shape = tuple(_int(_fields(dim), 1) for dim in _fields(entry.get(2, [b""])[0]).get(2, []))
  shard, offset, size = (_int(entry, field) for field in (3, 4, 5))
  data = pathlib.Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}")
  if not data.is_file():
    raise UserError(f"{data} does not exist; it holds {name} of the TensorFlow checkpoint {prefix}.")
  if size != dtype.itemsize * int(np.prod(shape)) or offset + size > data.stat().st_size:
    raise UserError(f"{data} is damaged or cut short: {name} {shape} ends behind its end; fetch the checkpoint again.")
  return np.memmap(data, dtype, "r", offset, shape) if size else np.zeros(shape, dtype)


# ---------------------------------------------------------------- LevelDB's table


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
    raise IndexError("no footer")
  _, _, at = _handle(data, len(data) - _FOOTER)  # of the metaindex block, which is empty
  offset, size, _ = _handle(data, at)
  for _, handle in _block(data, offset, size):
    start, length, _ = _handle(handle, 0)
    yield from _block(data, start, length)


def _block(data, offset, size):
  if data[offset + size]:
    raise UserError("This TensorFlow checkpoint has a compressed index, which TensorFlow never writes.")
  block = data[offset : offset + size]
  (restarts,) = struct.unpack("<I", block[-4:])
  end = size - 4 * (restarts + 1)
  at, key = 0, b""
  while at < end:
    shared, at = varint(block, at)
    fresh, at = varint(block, at)
    length, at = varint(block, at)
    key = key[:shared] + block[at : at + fresh]
    at += fresh
    yield key, block[at : at + length]
    at += length


def _handle(data, at):
  offset, at = varint(data, at)
  size, at = varint(data, at)
  return offset, size, at


def _fields(message: bytes | memoryview) -> dict[int, list]:
  """{field number: values} of a protocol buffer."""
  found: dict[int, list] = {}
  for number, value in protobuf.fields(message):
    found.setdefault(number, []).append(value)
  return found


def _int(fields, number):
  return fields.get(number, [0])[0]
