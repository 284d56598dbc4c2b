"""Placeholders for the settings beside the weights in a pickle: paths, dates, an `argparse.Namespace`.

Nothing of theirs is imported or called. An `Inert` object takes their place and keeps nothing.
"""

import collections
from collections.abc import Callable
from typing import Any


def stand_in(module: str, name: str) -> Callable[..., Any] | None:
  """The placeholder for a class or function that a pickle names; None unless it is known to be harmless."""
  if (module, name) in _MADE:
    return _MADE[module, name]
  return Inert if name in _HARMLESS.get(module, ()) or module.partition(".")[0] in _SETTINGS else None


class Inert:
  """A placeholder for a setting. It accepts everything that a pickle does to an object, and stores nothing."""

  def __new__(cls, *args: object, **kwargs: object) -> "Inert":
    return super().__new__(cls)

  def __init__(self, *args: object, **kwargs: object) -> None:
    pass

  def __setstate__(self, state: object) -> None:
    pass

  def __setitem__(self, key: object, value: object) -> None:
    pass

  def append(self, value: object) -> None:
    pass

  def extend(self, values: object) -> None:
    pass

  def add(self, value: object) -> None:
    pass


# Classes by module. As values they do nothing here; as functions they are not called, since `Inert` stands for them.
_HARMLESS: dict[str, set[str]] = {
  "argparse": {"Namespace"},
  "types": {"SimpleNamespace"},
  "collections": {"Counter", "deque"},
  "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
  "decimal": {"Decimal"},
  "fractions": {"Fraction"},
  "uuid": {"UUID", "SafeUUID"},
  "random": {"Random"},
  "typing": {"Any"},
  "copyreg": {"_reconstructor"},
  "copy_reg": {"_reconstructor"},
  "torch": {"device", "dtype", "Generator", "strided", "per_tensor_affine", "contiguous_format", "channels_last"},
}
_HARMLESS["torch"] |= {f"{kind}{bits}" for kind in ("float", "int", "uint", "complex") for bits in (8, 16, 32, 64, 128)}
_HARMLESS["torch"] |= {"bfloat16", "bool", "half", "float", "double", "long", "float8_e4m3fn", "float8_e5m2"}
_HARMLESS |= dict.fromkeys(
  ("pathlib", "pathlib._local"), {"Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath", "PureWindowsPath"}
)
_HARMLESS |= dict.fromkeys(
  ("builtins", "__builtin__"),
  {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range", "set", "slice"}
  | {"str", "tuple", "unicode", "long", "xrange"},
)
# Packages whose objects in a checkpoint are settings, progress and callbacks.
_SETTINGS = {
  "omegaconf",
  "easydict",
  "ml_collections",
  "yacs",
  "addict",
  "munch",
  "pytorch_lightning",
  "lightning",
  "lightning_fabric",
}


_MADE: dict[tuple[str, str], Callable[..., Any]] = {
  ("collections", "defaultdict"): lambda *_: collections.OrderedDict(),
}
