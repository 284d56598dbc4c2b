"""Tables of files and their classes: CSV in any usual encoding and separator, JSON lines, EDM's dataset.json."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ddpm_jax.errors import UserError
from ddpm_jax.files.tables import decode_any, parse_csv, parse_json

LABEL_COLUMNS = ("label", "labels", "class", "classes", "class_name", "class_id", "category", "target", "y")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "spaces"}
DEEPEST = 64  # folders inside each other, by whose names an image is found
LOOKED_AT = 500  # rows, to find out which column holds paths

_REMEDY = "repair it, or set data.labels to another rule"

Rows = list[tuple[str, Any]]  # (path as written, class)


class Paths:
  """Finds the file that a table means: "./0.png", "cat\\0.png", "/home/me/set/cat/0.png" or "0" for cat/0.png.

  Args:
    paths: of all images.
    folders: with a "/", to which a table's paths may be relative.
  """

  def __init__(self, paths: Iterable[str], folders: Iterable[str]):
    self._paths = set(paths)
    self._exact: dict[str, set[str]] = {}
    self._ends: dict[str, set[str]] = {}
    folders = {"", *folders}
    for path in self._paths:
      stem = path.rpartition(".")[0]
      for folder in folders:
        if path.startswith(folder):
          self._exact.setdefault(path[len(folder) :], set()).add(path)
          self._exact.setdefault(stem[len(folder) :], set()).add(path)
      for written in (path, stem):
        for end in _ends(written)[1:]:
          self._ends.setdefault(end, set()).add(path)

  def find(self, written: str, folder: str = "") -> str | None:
    """The one image that `written` names in a table that lies in `folder`; None if there is none.

    Raises:
      UserError: if it may be one of several.
    """
    written = written.strip().replace("\\", "/")
    while written.startswith("./"):
      written = written[2:]
    if folder + written in self._paths:
      return folder + written
    for found in (*(self._exact.get(end) for end in _ends(written)), self._ends.get(written)):
      here = {path for path in found or () if path.startswith(folder)} or found
      if here and len(here) > 1:
        raise UserError(
          f"A table of labels names {written!r}, which may be {' or '.join(sorted(here)[:2])}: write whole paths."
        )
      if here:
        return next(iter(here))
    return None


def csv_rows(title: str, data: bytes, paths: Paths, folder: str, named_only: bool = False) -> tuple[Rows | None, str]:
  """(rows, how the table was read) of a CSV; rows are None where there is no column of classes.

  The separator and the column of paths are those that name most images. The column of classes is the one that has such a
  heading, else the next one.

  Args:
    named_only: take classes from a column with a heading of LABEL_COLUMNS only, as in Hugging Face's metadata.csv.

  Raises:
    UserError: if the table names none of the images.
  """
  text, encoding = decode_any(data, title)
  best: tuple[int, int, str, list[list[str]]] = (0, 0, ",", [])
  for separator in SEPARATORS:
    lines = parse_csv(text, title, separator, skip_space=True)
    rows = [row for row in lines if len(row) > 1 and any(cell.strip() for cell in row)]
    sample = rows[:: -(-len(rows) // LOOKED_AT) or 1]
    for column in range(min(8, max(map(len, sample), default=0))):
      matches = sum(paths.find(row[column], folder) is not None for row in sample if column < len(row))
      if matches > best[0]:
        best = (matches, column, separator, rows)
  matches, column, separator, rows = best
  if not matches:
    first = text.strip().partition("\n")[0].strip()[:60]
    raise UserError(
      f"{title} ({encoding}) names none of the images: it begins with {first!r}. Give each a row of path and class, "
      "separated by a comma."
    )
  headings = [cell.strip().lower() for cell in rows[0]]
  if paths.find(rows[0][column], folder) is not None:
    headings = []
  named = [headings.index(name) for name in LABEL_COLUMNS if name in headings and headings.index(name) != column]
  how = f"{SEPARATORS[separator]}, {encoding}"
  if not named and named_only:
    return None, f"{how}, columns {', '.join(headings)}"
  wanted = named[0] if named else column + 1 if column + 1 < len(rows[-1]) else 0
  body = rows[1:] if headings else rows
  return [(row[column], row[wanted].strip() if wanted < len(row) else "") for row in body if column < len(row)], how


def json_lines(title: str, data: bytes) -> tuple[Rows | None, str]:
  """The same for Hugging Face's metadata.jsonl: an object with "file_name" on each line."""
  rows: Rows = []
  keys: dict[str, None] = {}
  for line in re.split(r"\r\n|\r|\n", decode_any(data, title)[0]):
    if not line.strip():
      continue
    entry = parse_json(line, title, object, _REMEDY)
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
      raise UserError(f'{title} should have an object with a text "file_name" on each line, not {line.strip()[:60]!r}.')
    keys |= dict.fromkeys(entry)
    label = next((entry[name] for name in LABEL_COLUMNS if name in entry), None)
    rows.append((entry["file_name"], label))
  if not any(name in keys for name in LABEL_COLUMNS):
    return None, f"fields {', '.join(keys)}"
  return rows, "JSON lines"


def edm_rows(title: str, data: bytes) -> Rows | None:
  """EDM's and StyleGAN's dataset.json, {"labels": null or [[path, number], ...]}; None for null.

  Raises:
    UserError: if it is something else.
  """
  content = parse_json(decode_any(data, title)[0], title, object, _REMEDY)
  if not isinstance(content, dict) or "labels" not in content:
    raise UserError(f'{title} has no field "labels" as EDM\'s has: rename it, or set data.labels to another rule.')
  labels = content["labels"]
  if labels is None:
    return None
  pairs = list(labels.items()) if isinstance(labels, Mapping) else labels
  is_pair = lambda entry: isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str)
  if not isinstance(pairs, list) or not all(map(is_pair, pairs)):
    raise UserError(f'{title} should list [path, number] for each image under "labels".')
  odd = next((label for _, label in pairs if type(label) is not int), None)
  if odd is not None:
    raise UserError(f"{title} has the label {str(odd)[:40]!r}, which is not the number of a class: set data.labels=none.")
  return [(path, label) for path, label in pairs]


def as_numbers(title: str, classes: Iterable[Any]) -> dict[Any, int] | None:
  """Class -> number if all classes are numbers written in digits; None if they are names.

  Raises:
    UserError: for numbers that cannot be classes.
  """
  classes = set(classes)
  if not all(type(name) is int or (isinstance(name, str) and re.fullmatch(r"-?\d{1,18}", name)) for name in classes):
    return None
  numbers = {name: int(name) for name in classes}
  low = min(numbers.values())
  high = max(numbers.values())
  if low < 0:
    raise UserError(f"{title} has the class {low}: classes are numbered from 0.")
  if high >= 100_000 and high > 100 * len(classes):
    raise UserError(f"{title} has {len(classes)} classes numbered up to {high}: number them from 0, or give them names.")
  return numbers


def _ends(path: str) -> list[str]:
  """The path, and what is left of it without the first folder, the first two, ...; of a deep one the last DEEPEST."""
  parts = path.split("/")
  return ["/".join(parts[start:]) for start in range(max(0, len(parts) - DEEPEST), len(parts))]
