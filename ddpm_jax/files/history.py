"""Records the commands that were run on a working directory, one line each in its commands.log, for the report."""

import contextlib
import datetime
import os
import pathlib
import shlex
from collections.abc import Sequence

from ddpm_jax.devices import processes

LOG = "commands.log"


def add(workdir: str | os.PathLike | None, argv: Sequence[str]) -> None:
  """Appends a finished command with the date. Does nothing where `workdir` is not a run's directory that can be written.

  Of several processes the first one writes.
  """
  if workdir is None or not (pathlib.Path(workdir) / "checkpoints").is_dir() or not processes.first():
    return
  now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
  line = f"{now}  ddpm-jax {shlex.join(argv)}\n".encode(errors="replace")
  with contextlib.suppress(OSError):
    descriptor = os.open(pathlib.Path(workdir) / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "ab") as log:
      log.write(line)
