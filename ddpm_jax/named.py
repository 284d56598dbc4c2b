"""Objects by name: a section of a config calls `name` with the rest of the section as its arguments.

A table maps names to values or to `Entry`s, which add a line of help. Anything that is not in a table can be named as
"package.module:Object"; see importable.py.
"""

import dataclasses
import inspect
import numbers
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ddpm_jax import importable
from ddpm_jax.config import nearest
from ddpm_jax.errors import UserError
from ddpm_jax.fields import kind_name


@dataclasses.dataclass(frozen=True)
class Entry:
  """A row of a table of choices: what the name stands for, and one line of help."""

  value: Any
  about: str


def find(table: Mapping[str, Any], name: str, what: str, *, remedy: str = "") -> Any:
  """What `name` stands for: an entry of the table, or an object to import.

  Examples:
    >>> find({"half": Entry(0.5, "one of two")}, "half", "share")
    0.5

  Raises:
    UserError: for an unknown name, with the nearest known one and the `remedy`, or code that cannot be imported.
  """
  if name in table:
    found = table[name]
    return found.value if isinstance(found, Entry) else found
  if importable.is_code(name):
    return importable.resolve(name)
  raise UserError(f"{what} {name!r} is unknown; {nearest(name, table)}{remedy}")


def make(table: Mapping[str, Any], section: Any, what: str, **more: Any) -> Any:
  """What the section's name stands for, called with the rest of the section and as much of `more` as it takes.

  Examples:
    >>> make({"half": lambda x, by=2.0: x / by}, {"name": "half", "by": 4.0}, "number", x=10)
    2.5

  Raises:
    UserError: for an unknown name or field, for a value of another type than the annotation says, or where one is missing.
  """
  fields = dict(section)
  name = fields.pop("name")
  call = find(table, name, f"{what}.name")
  parameters = inspect.signature(call).parameters
  known = fields_of(call, more)
  for field, value in fields.items():
    if field not in known:
      raise UserError(f"{what} {name!r} has no field {field!r}; {nearest(field, known) if known else 'it has none.'}")
    if not _fits(value, parameters[field].annotation):
      kinds = " or ".join(_kind_name(kind) for kind in _kinds(parameters[field].annotation))
      raise UserError(f"{what}.{field} = {value!r} of {name!r} has to be {kinds}.")
  missing = [p for p in known if parameters[p].default is inspect.Parameter.empty and p not in fields]
  if missing:
    raise UserError(f"{what} {name!r} needs {', '.join(missing)}: set {what}.{missing[0]}.")
  return call(**fields, **{key: value for key, value in more.items() if key in parameters})


def fields_of(call: Callable, without: Any = ()) -> list[str]:
  """The arguments of `call` that a config may set. Flax modules have two more, `parent` and `name`."""
  return [p for p in inspect.signature(call).parameters if p not in (*without, "parent", "name")]


def _kinds(annotation: Any) -> tuple[Any, ...]:
  return typing.get_args(annotation) if type(None) in typing.get_args(annotation) else (annotation,)


def _fits(value: Any, annotation: Any) -> bool:
  """Whether `value` may stand where a number, text, truth value, or sequence of them is wanted. Others allow anything."""
  kinds = _kinds(annotation)
  if typing.get_origin(annotation) is Sequence:
    return isinstance(value, (tuple, list)) and all(_fits(each, typing.get_args(annotation)[0]) for each in value)
  if not {int, float, str, bool} & set(kinds):
    return True
  number = isinstance(value, numbers.Real if float in kinds else numbers.Integral) and not isinstance(value, bool)
  return type(value) in kinds or (number and bool({int, float} & set(kinds)))


def _kind_name(kind: Any) -> str:
  if typing.get_origin(kind) is Sequence:
    of_what = "whole numbers" if typing.get_args(kind)[0] is int else "numbers"
    return f"a tuple of {of_what}, such as (1, 2)"
  return kind_name(kind)
