"""The wire format of protocol buffers, which TensorFlow's files consist of, without the library."""

from collections.abc import Iterator
from typing import Any

VARINT = 0  # wire types
FIXED64 = 1
BYTES = 2
FIXED32 = 5


def fields(message: bytes | memoryview) -> Iterator[tuple[int, Any]]:
  """(field number, value) of an encoded message; values are ints for varints, bytes otherwise.

  Raises:
    ValueError: if the bytes are not a message.
    IndexError: if they end inside a number.
  """
  message = memoryview(message)
  position = 0
  while position < len(message):
    tag, position = varint(message, position)
    kind = tag & 7
    if kind == VARINT:
      value, position = varint(message, position)
    else:
      if kind == BYTES:
        length, position = varint(message, position)
      elif kind in (FIXED64, FIXED32):
        length = 8 if kind == FIXED64 else 4
      else:
        raise ValueError(f"wire type {kind}")
      value = message[position : position + length]
      position += length
      if position > len(message):
        raise ValueError("a field ends after the end")
    yield tag >> 3, value


def varint(message: bytes | memoryview, position: int) -> tuple[int, int]:
  """(the number at `position`, the position after it): seven bits per byte, lowest first; the last has no highest bit."""
  value = 0
  shift = 0
  while True:
    byte = message[position]
    value |= (byte & 0x7F) << shift
    position += 1
    shift += 7
    if byte < 0x80:
      return value, position
    if shift > 63:
      raise ValueError("a number of more than 64 bits")


def varints(message: bytes | memoryview) -> list[int]:
  """The numbers of a packed field."""
  values = []
  position = 0
  while position < len(message):
    value, position = varint(message, position)
    values.append(value)
  return values
