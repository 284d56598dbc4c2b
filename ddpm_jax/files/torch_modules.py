"""Tensors of whole PyTorch modules, without PyTorch and without running what the file names.

TorchScript archives (.pt) and pickled modules (.pkl; NVIDIA's bring their own source along) are pickles of objects.
Whatever class or function they ask for becomes a `Record`, which keeps what it is given and does nothing.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ddpm_jax.files import torch_files


class Record:
  """What stands for an object of a class that is not imported: its state, and its items if it is a container."""

  def __init__(self, *args):
    self.state, self.items = None, {}

  def __new__(cls, *args):
    record = super().__new__(cls)
    Record.__init__(record)
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


def tensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a file by their dotted names, as in the module's state dict; a file of tensors will do as well.

  Raises:
    UserError: if it is no file of PyTorch, or damaged.
  """
  return dict(_tensors(torch_files.load(path, _unknown), ()))


def _unknown(module: str, name: str):
  if name == "_reconstruct_persistent_obj":  # NVIDIA's torch_utils.persistence: {"module_src": ..., "state": ...}
    return lambda meta: meta["state"]
  return type(name, (Record,), {})


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
