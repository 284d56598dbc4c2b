"""Image files in a folder or a zip, and where their labels come from."""

import csv
import io
import os
import pathlib
import posixpath
import threading
import zipfile
import zlib

from ddpm_jax.data.sources import NO_LABEL, CorruptImage
from ddpm_jax.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}
LABELS_FILE = "labels.csv"


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
    self._files = _Zip(root) if root.suffix == ".zip" else _Folder(root)
    paths = [path for path in self._files.paths if _is_image(path)]
    below = f"{split}/"
    if any(path.startswith(below) for path in paths):
      paths = [path for path in paths if path.startswith(below)]
    elif split in ("train", "all"):
      below = ""
    else:
      raise UserError(f"{root} has no folder {split!r} and therefore no such split: use 'train' for all of it.")
    if not paths:
      raise UserError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))}), in any folder below it.")
    self.paths, self._root = sorted(paths), root
    classes = self._classes([path.removeprefix(below) for path in self.paths], below, labels)
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

  def _classes(self, paths: list[str], below: str, labels: str) -> list[str] | list[int] | None:
    """The class of every path."""
    folders = [posixpath.basename(posixpath.dirname(path)) for path in paths]
    if labels == "auto":
      if below + LABELS_FILE in self._files.paths:
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
      return [posixpath.basename(path).partition("_")[0] for path in paths]
    if labels.endswith(".csv"):
      inside = below + labels in self._files.paths
      return _from_table(labels, self._files.read(below + labels) if inside else _read_file(labels), paths)
    raise UserError(f"labels must be 'auto', 'folders', 'prefix', 'none' or a .csv file, not {labels!r}.")


class _Folder:
  def __init__(self, root: pathlib.Path):
    self._root = root
    self.paths = {
      pathlib.Path(folder, file).relative_to(root).as_posix()
      for folder, _, files in os.walk(root, followlinks=True)
      for file in files
    }

  def read(self, path: str) -> bytes:
    return (self._root / path).read_bytes()


class _Zip:
  def __init__(self, root: pathlib.Path):
    try:
      self._zip = zipfile.ZipFile(root)
    except zipfile.BadZipFile:
      raise UserError(f"{root} is not a zip file, or only part of one: pack or copy it again.") from None
    self.paths = {name for name in self._zip.namelist() if not name.endswith("/")}
    self._lock = threading.Lock()

  def read(self, path: str) -> bytes:
    with self._lock:
      return self._zip.read(path)


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
