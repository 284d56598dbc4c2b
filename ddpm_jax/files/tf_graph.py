"""Reads a frozen TensorFlow graph (GraphDef, .pb) without TensorFlow or protobuf.

Only what a frozen network needs is understood: nodes with their operation, inputs and attributes, and constant
tensors. Numbers below are the field numbers of tensorflow/core/framework/{graph,node_def,attr_value,tensor}.proto.
"""

import dataclasses
import pathlib
import struct

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.files import protobuf

DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 10: np.bool_, 19: np.float16}  # DataType
LISTED = {5: "<f4", 6: "<f8"}  # float_val, double_val


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

  def __init__(self, nodes: dict[str, Node]):
    self.nodes = nodes

  def constant(self, name: str) -> np.ndarray:
    """The tensor at the end of `name`, an input's or a node's, through any Identity nodes."""
    node = self.nodes[name.split(":")[0].lstrip("^")]
    return node.tensor() if node.op == "Const" else self.constant(node.inputs[0])


def read(path: str | pathlib.Path) -> Graph:
  """The graph in a .pb file.

  Raises:
    UserError: if it is not a GraphDef, or cut short.
  """
  try:
    nodes = dict(_node(value) for field, value in protobuf.fields(pathlib.Path(path).read_bytes()) if field == 1)
  except (ValueError, TypeError, IndexError, struct.error, UnicodeDecodeError) as error:
    raise UserError(f"{path} is not a frozen TensorFlow graph, or only part of one ({error}); fetch it again.") from error
  return Graph(nodes)


def _node(message: bytes) -> tuple[str, Node]:
  name, op, inputs, attributes = "", "", [], {}
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
  dtype, shape, content, numbers = None, [], b"", []
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
  size = int(np.prod(shape))
  if len(content):
    return np.frombuffer(content, dtype).reshape(shape)
  return np.append(numbers, [numbers[-1]] * (size - len(numbers))).astype(dtype).reshape(shape)
