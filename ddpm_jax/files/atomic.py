"""Atomic writing: a file is complete or absent."""

import contextlib
import os
import pathlib
import secrets
import stat
import tempfile
from collections.abc import Iterator

from ddpm_jax.devices import processes
from ddpm_jax.errors import UserError
from ddpm_jax.files.limits import path_of, reason, shown

_NAME = 255  # bytes of a file's name on every usual file system


def check(path: str | os.PathLike) -> None:
  """Raises the UserError of `writing` if `path` cannot be written, before hours of work are lost. Leaves nothing behind."""
  missing = [folder for folder in path_of(path).parents if not folder.exists()]
  try:
    with contextlib.suppress(_Enough), writing(path) as temporary:
      temporary.touch()
      raise _Enough
  finally:
    remove_empty(missing)


class _Enough(Exception):
  """Ends a block of `writing` that has shown that it could write."""


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path beside `path`. It is renamed to `path` if the block succeeds, and removed otherwise.

  The suffix is kept, because some writers choose a format by it. Missing folders are made, and removed again if the block
  fails. A link to a file stays a link: the file that it names is written. Devices and pipes are refused. Of several
  processes that are one run (devices/processes.py) only the first writes.

  Examples:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   with writing(f"{folder}/new/note.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    ...   [file.name for file in pathlib.Path(folder, "new").iterdir()]
    ['note.txt']

  Raises:
    UserError: if nothing can be written there.
  """
  path = _target(path)
  if not processes.first():
    with tempfile.TemporaryDirectory(prefix="ddpm_jax_") as aside:
      yield pathlib.Path(aside, path.name)
    return
  temporary = _beside(path)
  missing = [folder for folder in path.parents if not folder.exists()]
  done = False
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    os.replace(temporary, path)
    done = True
  except OSError as error:
    raise UserError(f"{shown(path)} cannot be written ({reason(error)}): make room or choose another place.") from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()
    if not done:
      remove_empty(missing)


def _target(path: str | os.PathLike) -> pathlib.Path:
  """The file that `path` names, with links resolved.

  Raises:
    UserError: if a folder, a device or a pipe is there, or a link that leads to itself.
  """
  place = path_of(path)
  if place.is_symlink():
    place = pathlib.Path(os.path.realpath(place))
  try:
    mode = place.stat().st_mode
  except (FileNotFoundError, NotADirectoryError):
    return place
  except OSError as error:
    raise UserError(f"{shown(path)} cannot be written ({reason(error)}): choose another place.") from None
  if stat.S_ISDIR(mode):
    raise UserError(f"{shown(path)} is a folder: give the name of a file in it.")
  if not stat.S_ISREG(mode):
    raise UserError(f"{shown(path)} is a device, pipe or socket, which cannot be replaced by a file: give a file's name.")
  return place


def _beside(path: pathlib.Path) -> pathlib.Path:
  """A new name in the same folder, which cannot be guessed and so cannot be a link that somebody put there."""
  ending = f".{os.getpid()}.{secrets.token_hex(4)}.tmp{path.suffix}"
  stem = path.stem
  while len(os.fsencode(f".{stem}{ending}")) > _NAME and stem:
    stem = stem[:-1]
  return path.with_name(f".{stem}{ending}")


def remove_empty(folders: list[pathlib.Path]) -> None:
  """Removes folders, the innermost first, as long as they are empty."""
  for folder in folders:
    with contextlib.suppress(OSError):
      folder.rmdir()
