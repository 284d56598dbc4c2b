"""A folder or a zip as a list of files that can be opened, hidden ones left out."""

import io
import os
import pathlib
import stat
from typing import BinaryIO

from ddpm_jax.files import archives


def is_hidden(path: str) -> bool:
  """Whether a part of a path begins with a dot (.ipynb_checkpoints, .cache) or is macOS's shadow folder in zips.

  Examples:
    >>> is_hidden("cat/.ipynb_checkpoints/0.png"), is_hidden("__MACOSX/0.png"), is_hidden("cat/0.png")
    (True, True, False)
  """
  return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


class Folder:
  """All files below a folder.

  Attributes:
    paths: relative, with "/", sorted.
    hidden: how many more there are that `is_hidden`.
  """

  def __init__(self, root: pathlib.Path):
    self.root = root
    self.hidden = 0
    found = []
    seen = {os.path.realpath(root)}
    for folder, folders, files in os.walk(root, followlinks=True):
      inner = pathlib.Path(folder).relative_to(root)
      for name in list(folders):
        real = os.path.realpath(os.path.join(folder, name))
        if is_hidden(name):
          self.hidden += sum(len(below) for _, _, below in os.walk(os.path.join(folder, name)))
        if is_hidden(name) or (real in seen and os.path.islink(os.path.join(folder, name))):  # a link in a circle
          folders.remove(name)
        seen.add(real)
      self.hidden += sum(is_hidden(name) for name in files)
      found += [(inner / name).as_posix() for name in files if not is_hidden(name)]
    self.paths = sorted(found)

  def open(self, path: str) -> BinaryIO:
    """The file, if it is a regular one: to open a pipe or a device could wait for ever.

    Raises:
      OSError: if it cannot be opened.
    """
    file = self.root / path
    if not stat.S_ISREG(file.stat().st_mode):
      raise OSError("it is not a regular file")
    return file.open("rb")

  def stamp(self, path: str) -> str:
    """The size and time of a file; another stamp means another content."""
    try:
      about = (self.root / path).stat()
    except OSError:
      return "unreadable"
    return f"{about.st_size} {about.st_mtime_ns}"


class Zip:
  """The same for a zip file."""

  def __init__(self, root: pathlib.Path):
    self.root = root
    self._zip = archives.Zip(root)
    names = self._zip.names
    visible = {name for name in names if not is_hidden(name)}
    self.paths = sorted(visible)
    self.hidden = len(names) - len(visible)

  def open(self, path: str) -> BinaryIO:
    return io.BytesIO(self._zip.read(path))

  def stamp(self, path: str) -> str:
    about = self._zip.info(path)
    return f"{about.file_size} {about.CRC}"


Container = Folder | Zip


def open_container(root: pathlib.Path) -> Container:
  """The files of a folder or of a .zip.

  Raises:
    UserError: if it is neither.
  """
  return Zip(root) if root.suffix.lower() == ".zip" else Folder(root)


def read(container: Container, path: str) -> bytes:
  """The content of one file."""
  with container.open(path) as file:
    return file.read()
