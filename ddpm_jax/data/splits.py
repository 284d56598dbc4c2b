"""Which files of a data set belong to which split."""

import hashlib
from collections.abc import Iterable, Sequence

from ddpm_jax.errors import UserError

NAMES = {
  "train": ("train", "training"),
  "val": ("val", "valid", "validation", "dev"),
  "test": ("test", "testing"),
}
"""What folders of each split are called, in any case."""


class NoSuchSplit(UserError):
  """A split without a folder of its name."""


def kind(name: str) -> str | None:
  """The key of NAMES that a folder's name stands for.

  Examples:
    >>> kind("Train"), kind("validation"), kind("cat")
    ('train', 'val', None)
  """
  return next((key for key, names in NAMES.items() if name.lower() in names), None)


class Layout:
  """The splits of a data set: sub-folders that are called train, val or test, or everything.

  Args:
    name: of the data set, for messages.
    paths: its files. One folder that holds all of them is looked into, as zips often have one.
    images: which of them are images.

  Attributes:
    top: that folder with a "/", or "".
    folders: split -> folder with a "/".
    outside: images beside the folders of splits.

  Raises:
    UserError: if two folders are the same split.
  """

  def __init__(self, name: str, paths: Sequence[str], images: Iterable[str]):
    images = list(images)
    self.name = name
    self.top = ""
    while inner := _only_folder(paths, self.top):
      self.top = inner
    self.folders = _split_folders(name, images, self.top)
    if not self.folders:
      inside = [top for top in _folders(images, self.top) if _split_folders(name, images, f"{self.top}{top}/")]
      if len(inside) > 1 or any(not path.startswith(f"{self.top}{top}/") for top in inside for path in images):
        raise UserError(f"{name} has splits below {inside[0]}/ and images beside it: give the path of one data set.")
      for top in inside:
        self.top += f"{top}/"
        self.folders = _split_folders(name, images, self.top)
    self._images = [path for path in images if path.startswith(self.top)]
    in_splits = tuple(self.folders.values())
    self.outside = [path for path in self._images if in_splits and not path.startswith(in_splits)]

  def files(self, split: str) -> tuple[str, list[str]]:
    """(the folder of a split with a "/", its images by full path, sorted).

    "train" is everything outside the other splits where it has no folder of its own; "all" is everything.

    Raises:
      NoSuchSplit: if there is none.
    """
    wanted = kind(split) or split
    if wanted in self.folders:
      folder = self.folders[wanted]
      return folder, sorted(path for path in self._images if path.startswith(folder))
    own = f"{self.top}{split}/"
    if wanted not in NAMES and (found := [path for path in self._images if path.startswith(own)]):
      return own, sorted(found)
    if wanted == "train":
      return self.top, sorted(self.outside if self.folders else self._images)
    if split == "all":
      return self.top, sorted(self._images)
    raise NoSuchSplit(
      f"{self.name} has no folder {split!r} and therefore no such split: "
      + (f"it has {', '.join(self.folders)}." if self.folders else "use 'train' for all of it, or set data.holdout=0.1.")
    )

  def all_splits(self) -> dict[str, tuple[str, list[str]]]:
    """Every split with an image -> what `files` gives; "train" alone where there are no folders of splits."""
    names = [*self.folders] if "train" in self.folders or not self.outside else ["train", *self.folders]
    return {name: self.files(name) for name in names or ["train"]}


def held_out(paths: Sequence[str], share: float) -> list[bool]:
  """Which files are held out for tests: a random share that is the same always, by the hash of their paths.

  Examples:
    >>> sum(held_out([f"{k}.png" for k in range(60)], 0.1))
    6
  """
  order = sorted(range(len(paths)), key=lambda k: hashlib.sha256(paths[k].encode(errors="surrogateescape")).digest())
  chosen = set(order[: round(share * len(paths))])
  return [number in chosen for number in range(len(paths))]


def _folders(paths: Iterable[str], top: str) -> list[str]:
  """The folders right below `top`."""
  return sorted({path[len(top) :].partition("/")[0] for path in paths if path.startswith(top) and "/" in path[len(top) :]})


def _only_folder(paths: Iterable[str], top: str) -> str:
  """The one folder below `top` that holds all files there, unless it is a split itself."""
  inner = {path[len(top) :].partition("/")[0] if "/" in path[len(top) :] else "" for path in paths}
  if len(inner) != 1 or "" in inner or kind(only := inner.pop()):
    return ""
  return f"{top}{only}/"


def _split_folders(name: str, images: Iterable[str], top: str) -> dict[str, str]:
  found: dict[str, str] = {}
  for folder in _folders(images, top):
    split = kind(folder)
    if split in found:
      raise UserError(f"{name} has two folders of the split {split!r}, {found[split][:-1]} and {top}{folder}: merge them.")
    if split:
      found[split] = f"{top}{folder}/"
  return found
