"""JSON and CSV, read with limits on size and depth and a check of what they hold."""

import codecs
import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ddpm_jax.errors import UserError
from ddpm_jax.files import limits
from ddpm_jax.files.limits import PathLike, shown

DEPTH = 64  # of objects and lists inside each other
_AGAIN = "fetch it or make it again"
_MARKS = {
  codecs.BOM_UTF8: "utf-8-sig",
  codecs.BOM_UTF32_LE: "utf-32",  # begins with UTF-16's mark, so it comes first
  codecs.BOM_UTF32_BE: "utf-32",
  codecs.BOM_UTF16_LE: "utf-16",
  codecs.BOM_UTF16_BE: "utf-16",
}

Kind = TypeVar("Kind")


def read_json(path: PathLike, kind: type[Kind] = dict, most: int = limits.TEXT) -> Kind:
  """The value in a JSON file, which must be a `kind`: dict or list.

  Raises:
    UserError: if there is no such file, it is too large, not JSON, nested more than 64 deep, or of another kind.
  """
  return parse_json(limits.read_bytes(path, most), path, kind)


def parse_json(data: bytes | str, name: object, kind: type[Kind] = dict, remedy: str = _AGAIN) -> Kind:
  """The value in a JSON text; `name` is its file for messages. Raises UserError as `read_json`."""
  with limits.damaged(name, "JSON file", remedy):
    value = json.loads(data if isinstance(data, str) else data.decode("utf-8-sig"))
  check_depth(value, name)
  if not isinstance(value, kind):
    wanted, found = (_KINDS.get(each, each.__name__) for each in (kind, type(value)))
    raise UserError(f"{shown(name)} should hold {wanted} and holds {found}: {remedy}.")
  return value


def as_json(value: Any) -> Any:
  """`value` as it comes back from a JSON file: tuples are lists, keys are texts."""
  return json.loads(json.dumps(value))


_KINDS = {dict: "a JSON object", list: "a JSON list", str: "a text", int: "a number", float: "a number", type(None): "null"}


def check_depth(value: Any, name: object, deepest: int = DEPTH) -> None:
  """Raises UserError if dicts and lists are nested more than `deepest` deep."""
  level = [value]
  depth = 0
  while level := [child for node in level for child in _children(node)]:
    depth += 1
    if depth > deepest:
      raise UserError(f"{shown(name)} is nested more than {deepest} deep: fetch it or make it again.")


def _children(node: Any) -> Sequence[Any]:
  children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
  return [child for child in children if isinstance(child, Mapping | list | tuple)]


def read_text(path: PathLike, most: int = limits.TEXT) -> str:
  """A text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

  Raises:
    UserError: if there is no such file, it is too large, or in another encoding.
  """
  return decode(limits.read_bytes(path, most), path)


def decode(data: bytes, name: object) -> str:
  """The text that `data` encodes; `name` is its file for messages. Raises UserError as `read_text`."""
  encoding = next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), "utf-8")
  with limits.damaged(name, f"text in {encoding.upper().removesuffix('-SIG')}", "save it as UTF-8"):
    return data.decode(encoding)


def decode_any(data: bytes, name: object) -> tuple[str, str]:
  """(the text, its encoding): by its byte order mark, else UTF-16 if it has zeros, else UTF-8, else Windows-1252.

  Raises:
    UserError: if it is not in the encoding whose mark it has.
  """
  if any(data.startswith(mark) for mark in _MARKS):
    return decode(data, name), next(encoding for mark, encoding in _MARKS.items() if data.startswith(mark))
  zeros = b"\0" in data[:1000]
  guesses = ["utf-16-be" if data[:1] == b"\0" else "utf-16-le"] if zeros else ["utf-8", "cp1252"]
  for encoding in guesses:
    try:
      return data.decode(encoding), encoding
    except UnicodeDecodeError:
      continue
  return data.decode("latin-1"), "latin-1"  # which has a character for every byte


def read_csv(path: PathLike, most: int = limits.TEXT) -> list[list[str]]:
  """The rows of a CSV file with commas, whatever its line ends; encodings as in `read_text`. Raises UserError."""
  return parse_csv(limits.read_bytes(path, most), path)


def parse_csv(data: bytes | str, name: object, separator: str = ",", *, skip_space: bool = False) -> list[list[str]]:
  """The rows of a CSV text; `name` is its file for messages. Raises UserError as `read_csv`.

  Args:
    separator: the character between cells.
    skip_space: whether spaces after it do not count.
  """
  text = data if isinstance(data, str) else decode(data, name)
  with limits.damaged(name, "CSV table", "save it as CSV in UTF-8"):
    lines = io.StringIO(text, newline=None)  # None: all of \n, \r and \r\n end a line
    return list(csv.reader(lines, delimiter=separator, skipinitialspace=skip_space))
