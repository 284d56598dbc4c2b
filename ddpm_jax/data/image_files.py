"""Image files in a folder or a zip, and where their labels come from."""

import csv
import io
import os
import pathlib
import posixpath
import threading
import zipfile
import zlib
from typing import Any

from ddpm_jax.data.sources import NO_LABEL, CorruptImage
from ddpm_jax.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}
LABELS_FILE = "labels.csv"


class NoSuchSplit(UserError):
  """A split without a folder of its name."""


class FileRecords:
  """The image files below a folder (or in a zip), sorted by path, with labels.

  Args:
    root: a folder or a .zip file.
    split: files below a sub-folder of this name if there is one; otherwise "train" (or "all") is everything.
    labels: where classes come from.
      "folders": the folder that holds the file; "prefix": the file name before the first "_" (OpenAI's rule);
      "<file>.csv": a table of paths below the split and classes, in the folder or zip or anywhere else;
      "none": no labels; "auto": labels.csv if it is there, else folders if there are two or more, else none.
      Names are numbered in alphabetical order; a table whose classes are all numbers is taken as it is.
  """

  shape = (None, None, None)  # nobody knows before reading

  def __init__(self, root: pathlib.Path, split: str, labels: str = "auto"):
    self._root, self._files = root, (_Zip if root.suffix == ".zip" else _Folder)(root, split)
    if not self._files.has_split and split not in ("train", "all"):
      raise NoSuchSplit(f"{root} has no folder {split!r} and therefore no such split: use 'train' for all of it.")
    self.paths = sorted(path for path in self._files.paths if _is_image(path))  # below the split
    if not self.paths:
      raise UserError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))}), in any folder below it.")
    classes = self._classes(labels)
    if classes is None:
      self.num_classes, self._labels = None, [NO_LABEL] * len(self.paths)
    else:
      if not all(isinstance(name, int) for name in classes):
        number = {name: index for index, name in enumerate(sorted(set(classes)))}
        classes = [number[name] for name in classes]
      self.num_classes, self._labels = max(classes) + 1, classes

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, number: int) -> tuple[bytes, int]:
    try:
      return self._files.read(self.paths[number]), self._labels[number]
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # encrypted zips: RuntimeError
      raise CorruptImage(f"{self.name(number)} cannot be read ({error}).") from error

  def name(self, number: int) -> str:
    return f"{self.paths[number]} in {self._root}"

  def _classes(self, labels: str) -> list[Any] | None:
    """The class of every path, a name or a number."""
    folders = [posixpath.basename(posixpath.dirname(path)) for path in self.paths]
    if labels == "auto":
      if LABELS_FILE in self._files.paths:
        labels = LABELS_FILE
      else:
        labels = "folders" if "" not in folders and len(set(folders)) > 1 else "none"
    if labels == "none":
      return None
    if labels == "folders":
      if "" in folders:
        raise UserError(f"{self.name(folders.index(''))} is in no class folder: use other labels than 'folders'.")
      return folders
    if labels == "prefix":
      return [posixpath.basename(path).partition("_")[0] for path in self.paths]
    if labels.endswith(".csv"):
      table = self._files.read(labels) if labels in self._files.paths else _read_file(labels)
      return _from_table(labels, table, self.paths)
    raise UserError(f"labels must be 'auto', 'folders', 'prefix', 'none' or a .csv file, not {labels!r}.")


class _Folder:
  """Files below root/split, or below root where there is no such folder; paths are relative and use /."""

  def __init__(self, root: pathlib.Path, split: str):
    self.has_split = (root / split).is_dir()
    self._top = root / split if self.has_split else root
    self.paths = {
      pathlib.Path(folder, file).relative_to(self._top).as_posix()
      for folder, _, files in os.walk(self._top, followlinks=True)
      for file in files
    }

  def read(self, path: str) -> bytes:
    return (self._top / path).read_bytes()


class _Zip:
  """The same for a zip."""

  def __init__(self, root: pathlib.Path, split: str):
    try:
      self._zip = zipfile.ZipFile(root)
    except zipfile.BadZipFile:
      raise UserError(f"{root} is not a zip file, or only part of one: pack or copy it again.") from None
    paths = [name for name in self._zip.namelist() if not name.endswith("/")]
    self.has_split = any(path.startswith(f"{split}/") for path in paths)
    self._top = f"{split}/" if self.has_split else ""
    self.paths = {path.removeprefix(self._top) for path in paths if path.startswith(self._top)}
    self._lock = threading.Lock()

  def read(self, path: str) -> bytes:
    with self._lock:
      return self._zip.read(self._top + path)


def _is_image(path: str) -> bool:
  """By its suffix; what begins with a dot (and macOS's shadows of files in zips) is none."""
  return posixpath.splitext(path)[1].lower() in SUFFIXES and not posixpath.basename(path).startswith(".")


def _read_file(path: str) -> bytes:
  try:
    return pathlib.Path(path).read_bytes()
  except OSError:
    raise UserError(f"There is no table of labels {path!r}, in the data set or on its own.") from None


def _from_table(title: str, table: bytes, paths: list[str]) -> list[str] | list[int]:
  """The second column of a CSV table for the paths in its first; a row of headings matches no path."""
  rows = csv.reader(io.StringIO(table.decode("utf-8-sig")))
  classes = {row[0].strip(): row[1].strip() for row in rows if len(row) >= 2}
  missing = [path for path in paths if path not in classes]
  if missing:
    raise UserError(f"{title} has no class for {len(missing)} of {len(paths)} images, e.g. {missing[0]}.")
  found = [classes[path] for path in paths]
  return [int(name) for name in found] if all(name.isdecimal() for name in found) else found
