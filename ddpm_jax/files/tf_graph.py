"""Reads a frozen TensorFlow graph (GraphDef, .pb) without TensorFlow or protobuf.

It reads what a frozen network needs: nodes with their operation, inputs and attributes, and constant tensors. Numbers below
are the field numbers of tensorflow/core/framework/{graph,node_def,attr_value,tensor}.proto.
"""

import dataclasses
import math
import struct
from typing import Any

import numpy as np

from ddpm_jax.files import limits, protobuf

DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 10: np.bool_, 19: np.float16}  # DataType
LISTED = {5: "<f4", 6: "<f8"}  # float_val, double_val
_FILE = 2**30  # bytes
_REPEATED = 2**22  # elements of a constant that is one number, repeated


@dataclasses.dataclass(frozen=True)
class Node:
  """One operation of the graph; `attributes` are encoded AttrValues by name."""

  op: str
  inputs: tuple[str, ...]
  attributes: dict[str, bytes]

  def number(self, name: str) -> float | int:
    """The value of a float, int or bool attribute."""
    for field, value in protobuf.fields(self.attributes[name]):
      if field == 4:
        return struct.unpack("<f", value)[0]
      if field in (3, 5):
        return value
    return 0  # protobuf leaves out what is zero

  def tensor(self) -> np.ndarray:
    """The value of a Const node."""
    (proto,) = (value for field, value in protobuf.fields(self.attributes["value"]) if field == 8)
    return _tensor(proto)


class Graph:
  """The nodes of a GraphDef by name."""

  def __init__(self, nodes: dict[str, Node]) -> None:
    self.nodes = nodes

  def constant(self, name: str) -> np.ndarray:
    """The tensor at the end of `name`, an input's or a node's, through any Identity nodes.

    Raises:
      ValueError: if there is none.
    """
    for _ in range(len(self.nodes) + 1):
      node = self.nodes.get(name.split(":")[0].lstrip("^"))
      if node is None:
        raise ValueError(f"there is no node {name}")
      if node.op == "Const":
        return node.tensor()
      if not node.inputs:
        raise ValueError(f"{name} is a {node.op} without inputs")
      name = node.inputs[0]
    raise ValueError(f"{name} is its own input")


def read(path: limits.PathLike) -> Graph:
  """The graph in a .pb file.

  Raises:
    UserError: if there is no such file, it is not a GraphDef, or it is cut short.
  """
  data = limits.read_bytes(path, _FILE)
  with limits.damaged(path, "frozen TensorFlow graph", "it may be cut short; fetch it again"):
    return Graph(dict(_node(value) for field, value in protobuf.fields(data) if field == 1))


def _node(message: bytes) -> tuple[str, Node]:
  name = ""
  op = ""
  inputs = []
  attributes = {}
  for field, value in protobuf.fields(message):
    if field == 1:
      name = bytes(value).decode()
    elif field == 2:
      op = bytes(value).decode()
    elif field == 3:
      inputs.append(bytes(value).decode())
    elif field == 5:  # a map is a list of messages {1: key, 2: value}
      entry = dict(protobuf.fields(value))
      attributes[bytes(entry[1]).decode()] = entry.get(2, b"")
  return name, Node(op, tuple(inputs), attributes)


def _tensor(message: bytes) -> np.ndarray:
  """A TensorProto: raw bytes, or a list of numbers of which the last one is repeated as often as needed."""
  dtype = np.dtype(np.float32)
  shape: list[int] = []
  content = b""
  numbers: list[Any] = []
  for field, value in protobuf.fields(message):
    if field == 1:
      dtype = np.dtype(DTYPES[value])
    elif field == 2:
      shape = [dict(protobuf.fields(dim)).get(1, 0) for number, dim in protobuf.fields(value) if number == 2]
    elif field == 4:
      content = value
    elif field in LISTED:
      numbers.extend(np.frombuffer(value, LISTED[field]))  # packed, or one by one
    elif field == 7:
      numbers.extend([value] if isinstance(value, int) else protobuf.varints(value))
  size = math.prod(shape)
  if len(content):
    return np.frombuffer(content, dtype).reshape(shape)
  if not len(numbers) <= size <= max(_REPEATED, len(numbers)) or not numbers:
    raise ValueError(f"a constant of shape {shape} has {len(numbers)} numbers")
  return np.append(numbers, [numbers[-1]] * (size - len(numbers))).astype(dtype).reshape(shape)
