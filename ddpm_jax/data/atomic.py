"""Files that are either whole or absent."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a temporary path beside `path`, renamed to `path` when the block ends well and removed when it does not.

  The suffix is kept, so that writers which choose a format by it see the right one. Missing folders are made.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   with writing(f"{folder}/new/note.txt") as temporary:
  ...     _ = temporary.write_text("whole")
  ...   [file.name for file in pathlib.Path(folder, "new").iterdir()]
  ['note.txt']
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
