"""Hugging Face data sets as Parquet files: encoded images in a column, labels in another. Needs pyarrow."""

import collections
import functools
import io
import pathlib
import posixpath
import threading
from typing import Any

from ddpm_jax.data import splits, tables, viewing
from ddpm_jax.data.sources import NO_LABEL, CorruptImage
from ddpm_jax.errors import UserError
from ddpm_jax.files.tables import parse_json

IMAGE_COLUMNS = ("image", "img", "images", "picture", "jpg", "png")
LABEL_COLUMNS = (*tables.LABEL_COLUMNS, "fine_label", "cls")


class ParquetDataset:
  """Parquet files in a folder. A file belongs to the split that its name begins with or that its folder is called.

  Args:
    root: of the data set, for messages.
    files: its .parquet files.
    labels: "auto" (the column of labels), "none", or the name of a column.

  Raises:
    UserError: if pyarrow is missing, or a file cannot be read, or has no column of images.
  """

  def __init__(self, root: pathlib.Path, files: list[pathlib.Path], labels: str = "auto"):
    self.root = root
    self.labels = labels
    self._of_split: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
    for file in sorted(files):
      words = [file.stem.split("-")[0], *(part.name for part in file.relative_to(root).parents)]
      self._of_split[next(filter(None, map(splits.kind, words)), "train")].append(file)

  def split(self, name: str) -> "ParquetRecords":
    """The images of a split.

    Raises:
      NoSuchSplit: if there is none of that name.
    """
    files = self._of_split.get(splits.kind(name) or name)
    if not files:
      raise splits.NoSuchSplit(f"{self.root} has no split {name!r}: it has {', '.join(self._of_split)}.")
    others = name != "train" and "train" in self._of_split
    return ParquetRecords(self.root, files, self.labels, self.split("train").class_names if others else None)

  def splits(self) -> dict[str, "ParquetRecords"]:
    """All splits that have files."""
    return {name: self.split(name) for name in self._of_split}


class ParquetRecords:
  """The rows of one split, in order. Row groups are read whole, so reading in order is fast and at random is slow."""

  shape = (None, None, None)
  warnings: tuple[str, ...] = ()

  def __init__(self, root: pathlib.Path, files: list[pathlib.Path], labels: str, class_names: tuple[str, ...] | None = None):
    try:
      import pyarrow.parquet as pq
    except ImportError:
      raise UserError("Reading Parquet files needs the package pyarrow: pip install pyarrow.") from None
    self._root = root
    self._lock = threading.Lock()
    self._groups: list[tuple[Any, int, int, str]] = []  # (file, row group, its first row, name)
    self._starts: list[int] = []
    self.paths: list[str] = []
    found: list[Any] = []
    self.class_names = class_names  # those of training
    for path in files:
      try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        self._image = _image_column(path, schema)
        label = _label_column(path, schema, labels, self._image)
        found += file.read(columns=[label]).column(0).to_pylist() if label else []
        names = _names(schema, label)
        for group in range(file.num_row_groups):
          self._groups.append((file, group, len(self.paths), path.name))
          self._starts.append(len(self.paths))
          self.paths += [f"{path.stem}/{row}" for row in range(file.metadata.row_group(group).num_rows)]
      except UserError:
        raise
      except Exception as error:  # of Arrow, for damaged files
        raise UserError(f"{path} cannot be read as Parquet ({str(error)[:100]}): download it again.") from None
      if None not in (names, self.class_names) and names != self.class_names:
        raise UserError(f"{path} names its classes otherwise than other files: keep one data set in a folder.")
      self.class_names = names or self.class_names
    self._number(label, found)

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, number: int) -> tuple[bytes, int]:
    import bisect

    group = bisect.bisect_right(self._starts, number) - 1
    try:
      with self._lock:
        value = self._read(group)[number - self._starts[group]].as_py()
    except Exception as error:
      raise CorruptImage(f"{self.name(number)} cannot be read ({str(error)[:100]}): download the file again.") from error
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
      raise CorruptImage(f"{self.name(number)} holds no image, only a path: download the data set with its images.")
    return data, self.labels[number]

  def name(self, number: int) -> str:
    return f"row {self.paths[number]} in {self._root}"

  @functools.cached_property
  def headers(self) -> list[viewing.Header | None]:
    """The header of every image; None where it cannot be read."""
    found: list[viewing.Header | None] = []
    for number in range(len(self)):
      try:
        found.append(viewing.header(io.BytesIO(self[number][0])))
      except Exception:  # reported with its reason when it is decoded
        found.append(None)
    return found

  def _number(self, label: str | None, found: list[Any]) -> None:
    """Sets the labels of all rows, the number of classes and what a summary says about them."""
    if label is None:
      self.num_classes = None
      self.labels = [NO_LABEL] * len(self)
      self.notes = ("no classes (no column of labels)",)
      return
    if missing := sum(value is None or value == NO_LABEL for value in found):
      raise UserError(f"{missing:,} of {len(found):,} rows of {self._root} have no {label!r}: set labels='none'.")
    if self.class_names is None and all(isinstance(value, str) for value in found):
      self.class_names = tuple(sorted(set(found)))
    if self.class_names is not None and found and isinstance(found[0], str):
      order = {name: number for number, name in enumerate(self.class_names)}
      if odd := next((value for value in found if value not in order), None):
        raise UserError(f"{self._root} has the class {odd!r}, which its training split lacks: set labels='none'.")
      found = [order[value] for value in found]
    numbers = tables.as_numbers(f"The column {label!r} of {self._root}", found)
    if numbers is None:
      raise UserError(f"The column {label!r} of {self._root} holds no classes: set labels to another column, or 'none'.")
    self.labels = [numbers[value] for value in found]
    self.num_classes = len(self.class_names) if self.class_names else max(self.labels) + 1
    if max(self.labels) >= self.num_classes:
      raise UserError(f"{self._root} has the class {max(self.labels)} but names for {self.num_classes} only.")
    counts = collections.Counter(self.labels)
    shown = [f"{self.class_names[k] if self.class_names else k} {counts[k]:,}" for k in range(min(self.num_classes, 12))]
    self.notes = (f"{self.num_classes} classes by the column {label!r}: {', '.join(shown)}",)

  @functools.lru_cache(maxsize=2)  # noqa: B019  # a source lives as long as the process
  def _read(self, group: int) -> Any:
    file, index, _, _ = self._groups[group]
    return file.read_row_group(index, columns=[self._image]).column(0)


def _image_column(path: pathlib.Path, schema: Any) -> str:
  import pyarrow as pa

  def holds(kind: Any) -> bool:
    if pa.types.is_struct(kind):
      return any(field.name == "bytes" for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

  able = [field.name for field in schema if holds(field.type)]
  named = [name for name in IMAGE_COLUMNS if name in able] or able
  if not named:
    raise UserError(f"{posixpath.basename(path)} has no column of images, only {', '.join(schema.names)}.")
  return named[0]


def _label_column(path: pathlib.Path, schema: Any, labels: str, image: str) -> str | None:
  if labels == "none":
    return None
  if labels == "auto":
    return next((name for name in LABEL_COLUMNS if name in schema.names), None)
  if labels not in schema.names:
    columns = ", ".join(name for name in schema.names if name != image)
    raise UserError(f"{posixpath.basename(path)} has no column {labels!r}: set labels to 'none' or one of {columns}.")
  return labels


def _names(schema: Any, label: str | None) -> tuple[str, ...] | None:
  """The names of classes in the description that Hugging Face's datasets write."""
  try:
    about = parse_json((schema.metadata or {})[b"huggingface"], "Parquet metadata")["info"]["features"][label]["names"]
  except (UserError, LookupError, TypeError):
    return None
  return tuple(map(str, about)) if isinstance(about, list) else None
