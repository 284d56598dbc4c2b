"""Image files in a folder or a zip: which there are, in which splits, and of which classes."""

import collections
import functools
import hashlib
import pathlib
import posixpath
from typing import BinaryIO

from ddpm_jax.data import headers, viewing
from ddpm_jax.data.classes import decide
from ddpm_jax.data.containers import Container, open_container, read
from ddpm_jax.data.sources import NO_LABEL, CorruptImage
from ddpm_jax.data.splits import Layout, NoSuchSplit, held_out
from ddpm_jax.errors import UserError

KIND_OF_ENDING = {ending: kind for kind, endings in viewing.ENDINGS.items() for ending in endings} | {viewing.ARRAYS: "npy"}
ORIGINALS = {
  "cifar10": ("data_batch_1", "cifar-10-python.tar.gz"),
  "mnist": ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"),
}  # files of published data sets that are not images


class FileDataset:
  """A folder or .zip of images, with its splits and classes.

  Args:
    root: a folder or a .zip file.
    labels: see FileRecords.
    holdout: the share of images that is held out as "test" where there is no such folder.
    container: its files, if they are known; None: they are listed.

  Raises:
    UserError: if there are no images, or splits or classes contradict each other.
  """

  def __init__(self, root: pathlib.Path, labels: str = "auto", holdout: float = 0.0, container: Container | None = None):
    self.root = root
    self.holdout = holdout
    self.container = container or open_container(root)
    images = [path for path in self.container.paths if is_image(path)]
    others = collections.Counter(_ending(path) for path in self.container.paths if _ending(path) not in KIND_OF_ENDING)
    self.not_read = {ending: count for ending, count in others.items() if ending in viewing.NOT_READ}
    if not images:
      raise UserError(_no_images(root, self.container.paths, self.not_read))
    self.layout = Layout(str(root), self.container.paths, images)
    self.classes = decide(str(root), self.container, self.layout, labels)

  def split(self, name: str) -> "FileRecords":
    """The images of a split.

    Raises:
      NoSuchSplit: if there is none of that name.
      UserError: if an image has no class, or one that training does not have.
    """
    if self.holdout and "test" not in self.layout.folders and name in ("train", "test"):
      folder, paths = self.layout.files("train")
      held = held_out([path[len(folder) :] for path in paths], self.holdout)
      paths = [path for path, out in zip(paths, held, strict=True) if out == (name == "test")]
      note = f"{sum(held):,} of {len(held):,} images are held out as test (holdout {self.holdout:g})"
      return FileRecords(self, folder, paths, (note,))
    return FileRecords(self, *self.layout.files(name))

  def splits(self) -> dict[str, "FileRecords"]:
    """All splits that have images."""
    names = list(self.layout.all_splits())
    if self.holdout and "test" not in names:
      names.append("test")
    return {name: self.split(name) for name in names}


class FileRecords:
  """The image files of one split, sorted by path, with labels. `FileDataset.split` makes them.

  The rules of classes (`labels`), whose numbers are the same in all splits:

  * "auto": a table of `classes.TABLES` if there is one, else "folders" if there are at least two and every image is in one.
  * "folders": the folder that holds the file; "top": the first folder below the split.
  * "prefix": the file name before the first "_" (OpenAI's rule).
  * a .csv, .json or .jsonl file: a table of paths and classes, in the data set or anywhere else.
  * "none": no labels.

  Names are numbered in alphabetical order; a table whose classes are all numbers is taken as it is.

  Attributes:
    paths: below the folder of the split.
    notes: facts for a summary.
    warnings: what is left out, and what may not be meant.
  """

  shape = (None, None, None)  # unknown before reading

  def __init__(self, dataset: FileDataset, folder: str, paths: list[str], notes: tuple[str, ...] = ()):
    if not paths:
      raise NoSuchSplit(f"{dataset.root} holds no images in that split ({folder or 'nothing is left'}).")
    classes = dataset.classes
    self._dataset = dataset
    self._full = paths
    self.paths = [path[len(folder) :] for path in paths]
    self.num_classes = classes.count
    self.class_names = classes.names
    title = str(dataset.root)
    self.labels = [NO_LABEL] * len(paths) if classes.count is None else classes.of(title, paths)
    hidden = dataset.container.hidden
    left_out = (f"{hidden:,} hidden files left out",) if hidden else ()
    self.notes = (classes.described(self.labels), *classes.notes, *notes, *left_out)
    self.warnings = tuple(_warnings(dataset, paths))

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, number: int) -> tuple[bytes, int]:
    try:
      return read(self._dataset.container, self._full[number]), self.labels[number]
    except Exception as error:  # of files, zips, their compression and encryption
      raise CorruptImage(f"{self.name(number)} cannot be read ({str(error)[:120]}).") from error

  def name(self, number: int) -> str:
    return f"{self._full[number]} in {self._dataset.root}"

  def open(self, number: int) -> BinaryIO:
    return self._dataset.container.open(self._full[number])

  def digest(self) -> str:
    """Of the names, sizes and times of all files."""
    total = hashlib.sha256(str(self._dataset.root.resolve()).encode(errors="surrogateescape"))
    for path in self._full:
      total.update(f"{path}\0{self._dataset.container.stamp(path)}\0".encode(errors="surrogateescape"))
    return total.hexdigest()

  @functools.cached_property
  def headers(self) -> list[viewing.Header | None]:
    """The header of every file; None where it cannot be read."""
    return headers.inspect(self)


def is_image(path: str) -> bool:
  """Whether a file is read as an image or an array, by its ending.

  Examples:
    >>> is_image("cat/0.JPG"), is_image("cat/0.npy"), is_image("cat/notes.txt")
    (True, True, False)
  """
  return _ending(path) in KIND_OF_ENDING


def _ending(path: str) -> str:
  return posixpath.splitext(path)[1].lower()


def _warnings(dataset: FileDataset, paths: list[str]) -> list[str]:
  found = []
  kinds = collections.Counter(KIND_OF_ENDING[_ending(path)] for path in paths)
  if len(kinds) > 1:
    endings = collections.Counter(_ending(path) for path in paths)
    mixed = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common())
    found.append(f"files of several formats are read together: {mixed}")
  if dataset.not_read:
    left_out = ", ".join(f"{count:,} {ending}" for ending, count in dataset.not_read.items())
    found.append(f"left out, because these formats are not read: {left_out}; convert them to .png")
  if dataset.layout.outside and "train" in dataset.layout.folders:
    first = dataset.layout.outside[0]
    found.append(f"left out, because they are in no split: {len(dataset.layout.outside):,} images, such as {first}")
  return found


def _no_images(root: pathlib.Path, paths: list[str], not_read: dict[str, int]) -> str:
  names = {posixpath.basename(path) for path in paths}
  for data_set, files in ORIGINALS.items():
    if names & set(files):
      return f"{root} holds the original files of {data_set}: run `ddpm-jax data prepare {data_set} {root}` first."
  readable = ", ".join(sorted(KIND_OF_ENDING))
  if not_read:
    there = ", ".join(f"{count:,} {ending}" for ending, count in not_read.items())
    return f"{root} holds no images that can be read ({readable}), only {there}: convert them."
  return f"{root} holds no images ({readable}), in any folder below it."
