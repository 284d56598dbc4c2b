"""Objects by name: a section of a config calls `name` with the rest of the section as its arguments."""

import inspect
import numbers
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ddpm_jax.config import kind_name, nearest
from ddpm_jax.errors import UserError


def make(table: Mapping[str, Callable], section: Any, what: str, **more: Any) -> Any:
  """What `table` has under the section's name, called with the rest of the section and as much of `more` as it takes.

  Examples:
    >>> make({"half": lambda x, by=2.0: x / by}, {"name": "half", "by": 4.0}, "number", x=10)
    2.5

  Raises:
    UserError: for an unknown name or field, for a value of another type than the annotation says, or where one is missing.
  """
  fields = dict(section)
  name = fields.pop("name")
  if name not in table:
    raise UserError(f"{what}.name {name!r} is unknown; {nearest(name, table)}")
  parameters = inspect.signature(table[name]).parameters
  known = [p for p in parameters if p not in (*more, "parent", "name")]  # Flax modules have these two
  for field, value in fields.items():
    if field not in known:
      raise UserError(f"{what} {name!r} has no field {field!r}; {nearest(field, known) if known else 'it has none.'}")
    if not _fits(value, parameters[field].annotation):
      kinds = " or ".join(kind_name(kind) for kind in _kinds(parameters[field].annotation))
      raise UserError(f"{what}.{field} = {value!r} of {name!r} has to be {kinds}.")
  missing = [p for p in known if parameters[p].default is inspect.Parameter.empty and p not in fields]
  if missing:
    raise UserError(f"{what} {name!r} needs {', '.join(missing)}: set {what}.{missing[0]}.")
  return table[name](**fields, **{key: value for key, value in more.items() if key in parameters})


def _kinds(annotation: Any) -> tuple[type, ...]:
  return typing.get_args(annotation) if type(None) in typing.get_args(annotation) else (annotation,)


def _fits(value: Any, annotation: Any) -> bool:
  """Whether `value` may stand where a number, text or truth value is wanted; of other annotations anything may."""
  kinds = _kinds(annotation)
  if not {int, float, str, bool} & set(kinds):
    return True
  number = isinstance(value, numbers.Real if float in kinds else numbers.Integral) and not isinstance(value, bool)
  return type(value) in kinds or (number and bool({int, float} & set(kinds)))
