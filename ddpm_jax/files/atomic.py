"""Files that are either whole or absent."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from ddpm_jax.devices import processes
from ddpm_jax.errors import UserError


def check(path: str | os.PathLike) -> None:
  """Raises `writing`'s UserError if nothing can be written to `path`, rather than after hours of work. Leaves no trace."""
  path = pathlib.Path(path)
  if path.is_dir():
    raise UserError(f"{path} is a folder: give the name of a file in it.")
  missing = [folder for folder in path.parents if not folder.exists()]
  try:
    with contextlib.suppress(_Enough), writing(path) as temporary:
      temporary.touch()
      raise _Enough
  finally:
    for folder in missing:
      with contextlib.suppress(OSError):
        folder.rmdir()


class _Enough(Exception):
  """It can be written; so it is not."""


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a temporary path beside `path`, renamed to `path` when the block ends well and removed when it does not.

  The suffix is kept, so that writers which choose a format by it see the right one. Missing folders are made. Of several
  processes that are one run (devices/processes.py) the first one writes; what the others write is thrown away.

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
  path = pathlib.Path(path)
  if not processes.first():
    with tempfile.TemporaryDirectory(prefix="ddpm_jax_") as aside:
      yield pathlib.Path(aside, path.name)
    return
  temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    os.replace(temporary, path)
  except OSError as error:
    raise UserError(f"{path} cannot be written ({error.strerror or error}): make room or choose another place.") from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()
