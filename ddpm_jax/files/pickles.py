"""Pickles of strangers, read without running what they name and without allocating what they claim.

A pickle is a program for a small machine. This one is Python's own, with three restrictions:

- it knows only the opcodes that build dicts, lists, tuples, numbers and strings and that call the names on a list;
- a name that is not on the list is refused, or replaced by something harmless;
- numbers that claim a size (of strings, frames and the memo) are compared with the bytes that are there.

What it built is then measured: a structure that contains itself, or that is small in memory and huge when it is walked
through ("billion laughs"), is refused, so that readers can recurse without a thought.
"""

import io
import math
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ddpm_jax.files.limits import shown

OPERATIONS = 4_000_000  # of one pickle; each allocates about 100 bytes
DEPTH = 100  # of containers inside each other
NODES = 2_000_000  # parts of the structure when it is walked through

Names = Mapping[tuple[str, str], Any]

_OPCODES = (
  "MARK STOP POP POP_MARK DUP FLOAT BINFLOAT INT BININT BININT1 BININT2 LONG LONG1 LONG4 NONE NEWTRUE NEWFALSE "
  "STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
  "EMPTY_SET ADDITEMS APPEND APPENDS BUILD DICT EMPTY_DICT SETITEM SETITEMS LIST EMPTY_LIST TUPLE EMPTY_TUPLE "
  "TUPLE1 TUPLE2 TUPLE3 GLOBAL STACK_GLOBAL REDUCE NEWOBJ BINPERSID GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE "
  "PROTO FRAME"
).split()
_KEYS = (str, bytes, int, float, bool, type(None))  # hashing a deep tuple overflows the interpreter's stack


class Forbidden(Exception):
  """A name that a pickle asked for in vain."""


_Base: Any = pickle._Unpickler  # the interpreter in Python, whose table of opcodes can be changed


class Unpickler(_Base):
  """One pickle after the other from `file`, which must be in memory or give no more than it has.

  Args:
    file: at the first byte of a pickle.
    names: (module, name) -> what a pickle may call; each must do nothing but arrange its arguments.
    unknown: (module, name) -> what stands for any other name; None: they raise Forbidden.
    storage: called with the tuple of a persistent id, as PyTorch names its storages; None: there are none.
    encoding: of strings that Python 2 wrote.
  """

  def __init__(
    self,
    file: "Bounded",
    names: Names,
    *,
    unknown: Callable[[str, str], Any] | None = None,
    storage: Callable[[tuple], Any] | None = None,
    encoding: str = "utf-8",
  ):
    super().__init__(file, encoding=encoding)
    self._names = names
    self._replacement = unknown
    self._storage = storage
    self.dispatch = _Counted(type(self).dispatch)

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in self._names:
      return self._names[module, name]
    if self._replacement is not None:
      return self._replacement(module, name)
    raise Forbidden(shown(f"{module}.{name}"))

  def persistent_load(self, pid: Any) -> Any:
    if self._storage is None or not isinstance(pid, tuple):
      raise pickle.UnpicklingError("a persistent id")
    return self._storage(pid)

  def _checked_setitem(self) -> None:
    _check_keys(self.stack[-2:-1])
    super().load_setitem()

  def _checked_setitems(self) -> None:
    _check_keys(self.stack[::2])
    super().load_setitems()

  def _checked_additems(self) -> None:
    _check_keys(self.stack)
    super().load_additems()

  def _checked_dict(self) -> None:
    _check_keys(self.stack[::2])
    super().load_dict()

  def _checked_build(self) -> None:
    if callable(self.stack[-2]):  # to set attributes of functions and classes would change them for everyone
      raise pickle.UnpicklingError("a state for a function")
    super().load_build()

  dispatch = {getattr(pickle, name)[0]: _Base.dispatch[getattr(pickle, name)[0]] for name in _OPCODES}
  dispatch[pickle.SETITEM[0]] = _checked_setitem
  dispatch[pickle.SETITEMS[0]] = _checked_setitems
  dispatch[pickle.ADDITEMS[0]] = _checked_additems
  dispatch[pickle.DICT[0]] = _checked_dict
  dispatch[pickle.BUILD[0]] = _checked_build


class _Counted(dict):
  """A table of opcodes that may be looked up OPERATIONS times."""

  left = OPERATIONS

  def __getitem__(self, opcode: int) -> Any:
    self.left -= 1
    if self.left < 0:
      raise pickle.UnpicklingError(f"more than {OPERATIONS:,} operations")
    return super().__getitem__(opcode)


def _check_keys(keys: list) -> None:
  if not all(isinstance(key, _KEYS) for key in keys):
    raise pickle.UnpicklingError("a key that is neither a text nor a number")


class Bounded:
  """A file of which no read asks for more bytes than are left, whatever a length in it claims."""

  def __init__(self, file: Any, size: int) -> None:
    self._file = file
    self._left = size

  @classmethod
  def of(cls, data: bytes) -> "Bounded":
    """The file of bytes in memory."""
    return cls(io.BytesIO(data), len(data))

  @property
  def left(self) -> int:
    """Bytes that have not been read."""
    return self._left

  def read(self, size: int) -> bytes:
    self._take(size)
    return self._file.read(size)

  def readline(self) -> bytes:
    line = self._file.readline(min(self._left, 2**16))
    self._take(len(line))
    return line

  def readinto(self, buffer: Any) -> int:
    self._take(memoryview(buffer).nbytes)
    return self._file.readinto(buffer)

  def _take(self, size: int) -> None:
    if not 0 <= size <= self._left:
      raise EOFError(f"{size:,} bytes are claimed and {self._left:,} are left")
    self._left -= size


# ---------------------------------------------------------------- NumPy's arrays


class _Dtype:
  """A type by its code, such as "f4". NumPy's own objects trust a pickle with their flags."""

  def __init__(self, code: str | bytes, *_: Any) -> None:
    self._code = code.decode() if isinstance(code, bytes) else code
    self._order = "="

  def __setstate__(self, state: tuple) -> None:
    order = state[1]
    self._order = order.decode() if isinstance(order, bytes) else order

  def resolved(self) -> np.dtype:
    if not re.fullmatch(r"[<>=|]?[biufSU]\d{1,4}", str(self._code)) or self._order not in ("<", ">", "=", "|"):
      raise pickle.UnpicklingError(f"the type {self._code!r}")
    return np.dtype(self._code).newbyteorder("=" if self._order == "|" else self._order)


class _Array(np.ndarray):
  """An array whose bytes come from a pickle."""

  def __setstate__(self, state: tuple) -> None:
    _, shape, dtype, fortran, data = state
    data = data.encode("latin1") if isinstance(data, str) else data
    dtype = dtype.resolved()
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
      raise pickle.UnpicklingError("an array whose bytes do not fill its shape")
    super().__setstate__((1, tuple(shape), dtype, bool(fortran), data))


def _scalar(dtype: _Dtype, data: bytes | str) -> Any:
  return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype.resolved())[0]


_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")
NUMPY: Names = {
  ("numpy", "ndarray"): "ndarray",  # an argument of _reconstruct, and not to be called
  ("numpy", "dtype"): _Dtype,
  ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
  **{(core, "_reconstruct"): lambda *_: np.ndarray.__new__(_Array, (0,), np.uint8) for core in _CORES},
  **{(core, "scalar"): _scalar for core in _CORES},
}


# ---------------------------------------------------------------- the result


def check_structure(value: Any, children: Callable[[Any], list], depth: int = DEPTH, nodes: int = NODES) -> None:
  """Raises ValueError unless `value` is a tree, or shares parts, of limited depth and size when it is walked through.

  Args:
    value: the root.
    children: the children of a node; of a leaf the empty list.
    depth: containers inside each other.
    nodes: visits of a walk that does not know what it has seen.
  """
  sizes: dict[int, int] = {}  # of the finished nodes, by identity
  open_nodes: set[int] = set()
  stack = [(value, iter(children(value)))]
  open_nodes.add(id(value))
  totals = [1]
  while stack:
    node, rest = stack[-1]
    for child in rest:
      if id(child) in open_nodes:
        raise ValueError("it contains itself")
      if id(child) in sizes:
        totals[-1] += sizes[id(child)]
      elif below := children(child):
        if len(stack) >= depth:
          raise ValueError(f"it is nested more than {depth} deep")
        stack.append((child, iter(below)))
        open_nodes.add(id(child))
        totals.append(1)
        break
      else:
        totals[-1] += 1
      if totals[-1] > nodes:
        raise ValueError(f"it has more than {nodes:,} parts")
    else:
      stack.pop()
      open_nodes.remove(id(node))
      sizes[id(node)] = total = totals.pop()
      if totals:
        totals[-1] += total
        if totals[-1] > nodes:
          raise ValueError(f"it has more than {nodes:,} parts")
