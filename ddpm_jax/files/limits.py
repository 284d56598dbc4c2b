"""Checks that every reader of a file makes first: a regular file, possible sizes, and no unexpected exception.

A file may come from a stranger. Its sizes are compared with what is there before memory is allocated, pipes and devices
are not opened, and whatever a library raises while it reads becomes one sentence.
"""

import contextlib
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import BinaryIO

from ddpm_jax.errors import UserError, printable, shortened

PathLike = str | os.PathLike

TEXT = 2**26  # bytes of a text file, such as JSON or CSV
_SHARE = 0.8  # of the memory that is free, for one file


def path_of(path: PathLike) -> pathlib.Path:
  """`path` with "~" expanded.

  Raises:
    UserError: if it cannot be the path of a file: an unknown user's "~", a NUL byte, a name that is too long.
  """
  try:
    expanded = pathlib.Path(path).expanduser()
    os.lstat(expanded)
  except (FileNotFoundError, NotADirectoryError, PermissionError):
    pass
  except (RuntimeError, ValueError, OSError) as error:
    raise UserError(f"{shown(path)} cannot be a path ({reason(error)}): check its spelling.") from None
  return expanded


def check_regular(path: PathLike) -> os.stat_result:
  """The size and times of a regular file.

  Raises:
    UserError: if there is no such file, or it is a folder, a pipe, a device or a socket.
  """
  place = path_of(path)
  try:
    found = place.stat()
  except (FileNotFoundError, NotADirectoryError):
    what = "a link to a file that does not exist" if place.is_symlink() else "no file"
    raise UserError(f"There is {what} at {shown(path)}: check the path.") from None
  except OSError as error:  # a link to itself, a folder without permission
    raise UserError(f"{shown(path)} cannot be read ({reason(error)}): check the path and its permissions.") from None
  if not stat.S_ISREG(found.st_mode):
    kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, device or socket"
    raise UserError(f"{shown(path)} is {kind}, not a file: give the path of a file.")
  return found


@contextlib.contextmanager
def opened(path: PathLike) -> Iterator[BinaryIO]:
  """A regular file, open for reading.

  Raises:
    UserError: as `check_regular`, or if it cannot be opened.
  """
  check_regular(path)
  try:
    file = os.open(path_of(path), os.O_RDONLY | os.O_NONBLOCK)  # a pipe put there meanwhile does not block
  except OSError as error:
    raise UserError(f"{shown(path)} cannot be read ({reason(error)}): check its permissions.") from None
  with os.fdopen(file, "rb") as stream:
    yield stream


def read_bytes(path: PathLike, most: int | None = None) -> bytes:
  """The content of a regular file.

  Args:
    path: the file.
    most: bytes that are allowed; None: what fits into the free memory.

  Raises:
    UserError: as `opened`, or if the file is larger.
  """
  size = check_regular(path).st_size
  check_size(size, shown(path), most)
  with opened(path) as file, damaged(path, "file"):
    return file.read(size)


def check_size(size: int, what: str, most: int | None = None) -> None:
  """Raises UserError if `what` needs more than `most` bytes, or more than the free memory."""
  if most is not None and size > most:
    raise UserError(f"{what} has {size:,} bytes; at most {most:,} are read: check that it is the right file.")
  free = free_memory()
  if free is not None and size > _SHARE * free:
    raise UserError(
      f"{what} needs {size / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB of memory are free: check that it is the right "
      "file, or use a machine with more memory."
    )


def free_memory() -> int | None:
  """Bytes of memory that are available to this process; None where the system does not report them."""
  try:
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
  except (OSError, ValueError, IndexError):
    return None
  free = 1024 * int(available)
  with contextlib.suppress(OSError, ValueError):  # a container's limit
    group = pathlib.Path("/sys/fs/cgroup")
    limit = int((group / "memory.max").read_text())
    free = min(free, limit - int((group / "memory.current").read_text()))
  return max(free, 0)


@contextlib.contextmanager
def damaged(path: object, kind: str, remedy: str = "fetch it or make it again") -> Iterator[None]:
  """Turns any exception of a library that reads `path` into a UserError of one sentence.

  Damaged bytes make parsers fail in every way: ValueError, struct.error, zlib.error, RecursionError, MemoryError and more.

  Raises:
    UserError: "PATH is not a readable KIND (REASON): REMEDY."
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    raise UserError(f"{shown(path)} is not a readable {kind} ({reason(error)}): {remedy}.") from error


def reason(error: BaseException) -> str:
  """The message of an exception: short, printable and on one line."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = printable(str(error)) if not isinstance(error, KeyError) else f"{printable(str(error))} is missing"
  return shortened(text or type(error).__name__, 120).rstrip(".:")


def shown(value: object) -> str:
  """A path or a value from a file, for a message: printable, at most 90 characters."""
  return shortened(printable(str(value)), 90)
