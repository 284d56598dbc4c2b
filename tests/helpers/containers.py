"""Checkpoints in formats whose own writer these tests do without."""

import pathlib
import struct


def write_bundle(prefix, variables):
  """A TensorFlow checkpoint in one block, as bundle.py describes it."""
  varint = lambda n: bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)
  field = lambda number, value: varint(number << 3) + varint(value)
  nested = lambda number, message: varint(number << 3 | 2) + varint(len(message)) + message
  entry = lambda key, value: varint(0) + varint(len(key)) + varint(len(value)) + key + value
  block = entry(b"", field(1, 1))
  data = b""
  for name, tensor in sorted(variables.items()):
    shape = b"".join(nested(2, field(1, n)) for n in tensor.shape)
    proto = field(1, 1) + nested(2, shape) + field(4, len(data)) + field(5, tensor.nbytes)
    block += entry(name.encode(), proto)
    data += tensor.tobytes()
  restarts = struct.pack("<II", 0, 1)
  index = entry(b"~", varint(0) + varint(len(block) + 8)) + restarts
  at = len(block) + 8 + 5
  handles = varint(at) + varint(0) + varint(at) + varint(len(index))
  footer = handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
  pathlib.Path(f"{prefix}.index").write_bytes(block + restarts + bytes(5) + index + bytes(5) + footer)
  pathlib.Path(f"{prefix}.data-00000-of-00001").write_bytes(data)
