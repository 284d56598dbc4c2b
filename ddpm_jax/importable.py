"""Names of code in a config: "package.module:Object" or "path/to/file.py:Object".

Importing a module runs it, so a name is imported only if the user gave it: on the command line, in a config file, or by
trusting a checkpoint that somebody else made. `trust` records what the user gave, for this process.
"""

import importlib
import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ddpm_jax.errors import UserError

_NAME = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|.+\.py):(?P<attribute>[A-Za-z_]\w*)")
_EVERYTHING = "*"

_trusted: set[str] = set()


def is_code(value: Any) -> bool:
  """Whether a value of a config names an object to import.

  >>> is_code("my_nets:Perceptron"), is_code("./my_nets.py:Perceptron"), is_code("cifar10:3.0.2"), is_code("linear")
  (True, True, False, False)
  """
  return isinstance(value, str) and _NAME.fullmatch(value) is not None


def names(values: Any) -> Iterator[str]:
  """Every name of code among the values of nested mappings and sequences."""
  if is_code(values):
    yield values
  elif isinstance(values, Mapping) or hasattr(values, "items"):
    for value in values.values():
      yield from names(value)
  elif isinstance(values, (list, tuple)):
    for value in values:
      yield from names(value)


def trust(values: Any) -> None:
  """Records that the user gave every name of code among these values."""
  _trusted.update(names(values))


def trust_everything() -> None:
  """Records that the user trusts every checkpoint that this process reads."""
  _trusted.add(_EVERYTHING)


def check(values: Any) -> None:
  """Raises UserError for a name of code in the config of a checkpoint that the user did not give."""
  if _EVERYTHING in _trusted:
    return
  for name in names(values):
    if name not in _trusted:
      raise UserError(
        f"The checkpoint wants to import {name!r}, which runs that code. Add --trust (in Python trust=True) if you trust "
        "its author, or name the same code yourself by --config."
      )


def resolve(name: str) -> Any:
  """The object that a name of code stands for. Modules are found on Python's path and in the current directory.

  Raises:
    UserError: if the module cannot be imported, or has no such object.
  """
  match = _NAME.fullmatch(name)
  assert match is not None, name
  module = _of_file(match["module"]) if match["module"].endswith(".py") else _of_package(match["module"])
  if not hasattr(module, match["attribute"]):
    raise UserError(f"{match['module']} has no object {match['attribute']!r}: {name!r} should be MODULE:OBJECT.")
  return getattr(module, match["attribute"])


def _of_package(module: str) -> Any:
  here = os.getcwd()
  if here not in sys.path and "" not in sys.path:
    sys.path.append(here)
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise UserError(f"Module {module!r} cannot be imported ({error}). Install it, or start in its directory.") from error


def _of_file(path: str) -> Any:
  file = pathlib.Path(path).expanduser().resolve()
  if not file.is_file():
    raise UserError(f"There is no file {path}, which the config names as code.")
  key = f"ddpm_jax_file_{file}"
  if key not in sys.modules:  # one module per file, so that its classes compare equal wherever they are named
    spec = importlib.util.spec_from_file_location(key, file)
    assert spec and spec.loader  # as for every .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
      spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
      del sys.modules[key]
      raise UserError(f"{path} cannot be imported ({error}).") from error
  return sys.modules[key]
