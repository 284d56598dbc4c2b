"""Tensors of whole PyTorch modules, without PyTorch and without running what the file names.

TorchScript archives (.pt) and pickled modules (.pkl; NVIDIA's bring their own source along) are pickles of objects.
Every class or function that they name becomes a `Record`, which keeps what it is given and does nothing.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ddpm_jax.files import limits, torch_files


class Record:
  """A stand-in for an object of a class that is not imported: its state, and its items if it is a container."""

  state: Any
  items: dict[Any, Any]

  def __new__(cls, *args: Any) -> "Record":
    record = super().__new__(cls)
    record.state = None
    record.items = {}
    return record

  def __setstate__(self, state: Any) -> None:
    self.state = state

  def __setitem__(self, key: Any, value: Any) -> None:
    self.items[key] = value

  def append(self, value: Any) -> None:
    self.items[len(self.items)] = value

  def extend(self, values: Iterable[Any]) -> None:
    for value in values:
      self.append(value)


def tensors(path: limits.PathLike) -> dict[str, np.ndarray]:
  """All tensors of a file by their dotted names, as in the module's state dict. Files of tensors are read, too.

  Raises:
    UserError: if it is not a file of PyTorch, or damaged.
  """
  return dict(_tensors(torch_files.read(path, _unknown, _children), ()))


def _children(node: Any) -> list:
  return [node.state, node.items] if isinstance(node, Record) else []


def _unknown(module: str, name: str) -> Any:
  if name == "_reconstruct_persistent_obj":  # NVIDIA's torch_utils.persistence: {"module_src": ..., "state": ...}
    return lambda meta: meta["state"]
  return Record


def _tensors(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
  """(dotted name, array) of all arrays in `node`; a module's tables of children leave no trace in the names."""
  if isinstance(node, np.ndarray):
    yield ".".join(path), node
  elif isinstance(node, Record):
    yield from _tensors(node.state, path)
    yield from _tensors(node.items, path)
  elif isinstance(node, dict):
    for key, child in node.items():
      inner = path if key in ("_parameters", "_buffers", "_modules") else (*path, str(key))
      yield from _tensors(child, inner)
