"""The classes of a data set, decided once over all its splits: names, order, counts."""

import collections
import dataclasses
import pathlib
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ddpm_jax.data import tables
from ddpm_jax.data.containers import Container, read
from ddpm_jax.data.splits import Layout
from ddpm_jax.errors import UserError

TABLES = {
  "labels.csv": "paths and classes",
  "labels.tsv": "paths and classes",
  "dataset.json": "EDM's labels",
  "metadata.csv": "Hugging Face's metadata",
  "metadata.jsonl": "Hugging Face's metadata",
}
"""Tables that are recognized by their name, at the top or in the folder of a split."""

_TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".json", ".jsonl")

RULES = {
  "auto": "those of a table with a known name, else folders if there are at least two and every image is in one",
  "folders": "the folder that holds the file",
  "top": "the first folder below the split",
  "prefix": 'the file name before its first "_" (OpenAI\'s rule)',
  "none": "none",
}
"""What data.labels may be, beside the name of a table."""


@dataclasses.dataclass(frozen=True)
class Classes:
  """The class of every image.

  Attributes:
    rule: where classes come from, for a reader.
    numbers: path -> class number, for images that have one.
    names: by number; None where classes are numbers only.
    count: how many there are; None: no classes.
    unknown: path -> name, of images in other splits whose class is not in the training split.
    notes: what a reader should know.
  """

  rule: str
  numbers: Mapping[str, int] = dataclasses.field(default_factory=dict)
  names: tuple[str, ...] | None = None
  count: int | None = None
  unknown: Mapping[str, str] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()

  def of(self, title: str, paths: Sequence[str]) -> list[int]:
    """The numbers of these images.

    Raises:
      UserError: if one has no class, or one that training does not have.
    """
    if odd := next((path for path in paths if path in self.unknown), None):
      raise UserError(
        f"{odd} is of the class {self.unknown[odd]!r}, which the training split of {title} lacks: add it there, or set "
        "labels='none'."
      )
    missing = [path for path in paths if path not in self.numbers]
    if missing:
      raise UserError(f"{self.rule} has no class for {len(missing):,} of {len(paths):,} images, e.g. {missing[0]}.")
    return [self.numbers[path] for path in paths]

  def described(self, labels: Sequence[int]) -> str:
    """The line of a summary: names and counts of these labels."""
    if self.count is None:
      return f"no classes ({self.rule})"
    counts = collections.Counter(labels)
    shown = [f"{self.names[k] if self.names else k} {counts[k]:,}" for k in range(min(self.count, 12))]
    return f"{self.count:,} classes by {self.rule}: {', '.join(shown)}{', ...' * (self.count > 12)}"


def class_numbers(text: str, names: Sequence[str] | None, count: int | None) -> list[int]:
  """The classes of "cat,dog" or "3,5,8-10" on the command line, by name where there is one, else by number.

  Args:
    text: names or numbers, separated by commas.
    names: by number; None: numbers only.
    count: how many classes there are.

  Examples:
    >>> class_numbers("dog,0", ("cat", "dog", "emu"), 3), class_numbers("0-2", None, 3)
    ([1, 0], [0, 1, 2])

  Raises:
    UserError: for a class that does not exist.
  """
  found: list[int] = []
  for part in text.split(","):
    if names is not None and part.strip() in names:
      found.append(names.index(part.strip()))
    elif match := re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip()):
      first = int(match[1])
      last = int(match[2] or match[1])
      if count is None or not first <= last < count:
        raise UserError(f"--classes {part.strip()!r}: classes are numbered from 0 to {(count or 0) - 1}.")
      found += range(first, last + 1)
    else:
      known = (
        f": choose from {', '.join(names[:20])}{', ...' * (len(names) > 20)}" if names else ", and this run has no names"
      )
      raise UserError(f"--classes {part.strip()[:40]!r} is neither a class name nor a number{known}.")
  return found


def decide(name: str, container: Container, layout: Layout, labels: str) -> Classes:
  """The classes of a data set by the rule `labels`, see `image_files.FileRecords`.

  Raises:
    UserError: for a rule that does not fit, and for tables that contradict themselves or each other.
  """
  splits = layout.all_splits()
  train = set(splits["train"][1]) if "train" in splits else {path for _, paths in splits.values() for path in paths}
  below = {path: path[len(folder) :] for folder, paths in splits.values() for path in paths}  # path -> path in its split
  if labels == "auto":
    found = _tables_in(container, layout)
    kinds = {TABLES[posixpath.basename(path)] for path in found}
    if len(kinds) > 1:
      both = " and ".join({TABLES[posixpath.basename(path)]: path for path in found}.values())
      raise UserError(f"{name} holds {both}: choose one of them by data.labels, such as {posixpath.basename(found[0])}.")
    if found:
      return _from_tables(name, container, layout, found, below, train)
    classes = _by_folder(below, train)
    return dataclasses.replace(classes, notes=(*classes.notes, *_unread_tables(container, layout)))
  if labels == "none":
    return Classes("labels='none'")
  if labels == "prefix":
    names = {path: posixpath.basename(path).partition("_")[0] for path in below}
    return _numbered('the file name before its first "_"', names, train)
  if labels in ("folders", "top"):
    if flat := next((path for path, inner in below.items() if "/" not in inner), None):
      raise UserError(f"{flat} in {name} is in no class folder: use other labels than {labels!r}.")
    which = (lambda inner: posixpath.dirname(inner).rpartition("/")[2]) if labels == "folders" else _top
    return _numbered("folder", {path: which(inner) for path, inner in below.items()}, train)
  if labels.endswith(_TABLE_ENDINGS):
    places = [*layout.folders.values(), layout.top, ""]
    found = [place + labels for place in dict.fromkeys(places) if place + labels in container.paths]
    return _from_tables(name, container, layout, found or [labels], below, train)
  raise UserError(f"labels must be {', '.join(RULES)} or a .csv, .json or .jsonl file, not {labels!r}.")


def _tables_in(container: Container, layout: Layout) -> list[str]:
  present = set(container.paths)
  return [place + table for table in TABLES for place in _places(layout) if place + table in present]


def _places(layout: Layout) -> list[str]:
  """Where tables lie: at the top and in the folders of splits."""
  return list(dict.fromkeys([layout.top, *layout.folders.values()]))


def _unread_tables(container: Container, layout: Layout) -> list[str]:
  """A note about files beside the images that may be tables of classes under another name."""
  places = _places(layout)
  found = [path for path in container.paths if path.endswith(_TABLE_ENDINGS) and path[: path.rfind("/") + 1] in places]
  if not found:
    return []
  return [f"not read: {', '.join(found[:3])}; if it is a table of classes, set data.labels={posixpath.basename(found[0])}"]


def _top(path: str) -> str:
  return path.partition("/")[0]


def _by_folder(below: Mapping[str, str], train: set[str]) -> Classes:
  """Folders as torchvision's ImageFolder reads them, if there are at least two and every image is in one."""
  tops = {path: _top(inner) if "/" in inner else "" for path, inner in below.items()}
  different = set(tops.values())
  if "" in different or len(different) < 2:
    if "" in different and len(different) > 2:
      loose = sum(top == "" for top in tops.values())
      return Classes(
        "unlabeled", notes=(f"folders are not taken for classes, because {loose:,} images are in none of them",)
      )
    prefixes = {posixpath.basename(path).partition("_")[0] for path in below if "_" in posixpath.basename(path)}
    hint = f"; labels=prefix would take the {len(prefixes)} file name prefixes" if 1 < len(prefixes) < len(below) / 2 else ""
    return Classes(f"one folder{hint}")
  if all(re.fullmatch(r"\d{5}/img\d{8}\.\w+", inner) for inner in below.values()):
    return Classes("numbered folders of EDM's or StyleGAN's tools without labels in dataset.json")
  nearest = {path: posixpath.dirname(inner) for path, inner in below.items()}
  names = {path: inner.rpartition("/")[2] for path, inner in nearest.items()}
  pairs = set(zip(tops.values(), names.values(), strict=True))
  if len(set(names.values())) > 1 and not len(pairs) == len(different) == len(set(names.values())):
    odd = next(path for path in below if tops[path] != names[path])
    raise UserError(
      f"The class of {odd} may be {tops[odd]!r} or {names[odd]!r}: set labels='top' for the first folder, 'folders' for the "
      "last, or 'none'."
    )
  return _numbered("folder", tops, train)


def _from_tables(
  name: str, container: Container, layout: Layout, found: Sequence[str], below: Mapping[str, str], train: set[str]
) -> Classes:
  """Classes from one table, or one in each split."""
  paths = tables.Paths(below, [layout.top, *layout.folders.values()])
  classes: dict[str, Any] = {}
  notes = []
  absent = 0
  for table in found:
    folder = posixpath.dirname(table)
    folder = f"{folder}/" if folder and table in container.paths else ""
    rows, how = _rows(name, table, _content(container, table), paths, folder)
    title = f"{posixpath.basename(table)} ({how})"
    if rows is None:
      continue
    for written, label in rows:
      path = paths.find(written, folder)
      absent += path is None
      if path is None or label in ("", None):
        continue
      if not isinstance(label, int | str) or isinstance(label, bool):
        raise UserError(f"{table} gives {written!r} the class {str(label)[:40]!r}, which is neither a name nor a number.")
      if classes.setdefault(path, label) != label:
        raise UserError(f"{table} gives {written!r} two classes, {classes[path]!r} and {label!r}: keep one of them.")
  if not classes:
    return Classes(f"{title} gives none")
  if absent:
    notes.append(f"{posixpath.basename(found[0])} names {absent:,} files that are not there")
  return dataclasses.replace(_numbered(title, classes, train), notes=tuple(notes))


def _rows(name: str, table: str, data: bytes, paths: tables.Paths, folder: str) -> tuple[tables.Rows | None, str]:
  base = posixpath.basename(table)
  if base.endswith(".jsonl"):
    return tables.json_lines(table, data)
  if base.endswith(".json"):
    rows = tables.edm_rows(table, data)
    return rows, "EDM's labels" if rows is not None else '"labels": null'
  return tables.csv_rows(table, data, paths, folder, named_only=base == "metadata.csv")


def _content(container: Container, table: str) -> bytes:
  """A table in the data set, or a file anywhere."""
  try:
    return read(container, table) if table in container.paths else pathlib.Path(table).read_bytes()
  except FileNotFoundError:
    raise UserError(f"There is no table of labels {table!r}, in the data set or on its own.") from None
  except Exception as error:
    raise UserError(f"The table of labels {table!r} cannot be read ({str(error)[:80]}).") from None


def _numbered(rule: str, classes: Mapping[str, Any], train: set[str]) -> Classes:
  """Names in alphabetical order of those in training; numbers as they are."""
  numbers = tables.as_numbers(rule, classes.values()) if "." in rule else None  # folders called 0, 1, ... are names
  if numbers is not None:
    return Classes(rule, {path: numbers[label] for path, label in classes.items()}, None, max(numbers.values()) + 1)
  named = {path: str(label) for path, label in classes.items()}
  names = tuple(sorted({label for path, label in named.items() if path in train}))
  order = {label: number for number, label in enumerate(names)}
  return Classes(
    rule,
    {path: order[label] for path, label in named.items() if label in order},
    names,
    len(names),
    {path: label for path, label in named.items() if label not in order},
  )
