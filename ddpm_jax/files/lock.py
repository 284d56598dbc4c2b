"""One process at a time in a folder.

The lock is `.lock` in the folder, held by the kernel (flock) for as long as the process lives, so a killed process leaves
none. Its text names the holder for the others. Where the file system has no locks the text decides: it is stale if it
names a process of this machine that no longer runs.
"""

import contextlib
import fcntl
import itertools
import json
import logging
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import Any

from ddpm_jax.devices import processes
from ddpm_jax.errors import UserError
from ddpm_jax.files import atomic
from ddpm_jax.files.limits import reason, shown

log = logging.getLogger(__name__)

NAME = ".lock"
_AGAIN = 0.5  # seconds between attempts
_PATIENCE = 4  # attempts, for a holder that has not written its name yet


@contextlib.contextmanager
def alone(
  folder: str | os.PathLike, what: str, *, wait: bool = False, remedy: str = "choose another folder"
) -> Iterator[None]:
  """A block that one process at a time may enter per `folder`, which is created. Of a run's processes, the first locks.

  Args:
    folder: what is protected.
    what: the work, for the message of others: "training".
    wait: wait for the holder, who is logged; otherwise refuse.
    remedy: what to do if nothing can be written there.

  Raises:
    UserError: if another process holds the lock, or nothing can be written in `folder`. Leaves no trace then.
  """
  if not processes.first():
    yield
    return
  path = pathlib.Path(folder, NAME)
  missing = [each for each in (path.parent, *path.parent.parents) if not each.exists()]
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _acquire(path, what, wait)
  except BaseException as error:
    atomic.remove_empty(missing)
    if isinstance(error, OSError):
      raise UserError(f"{shown(folder)} cannot be written ({reason(error)}): {remedy}.") from error
    raise
  try:
    yield
  finally:
    with contextlib.suppress(OSError):
      path.unlink()  # while it is held: a waiting process sees that it is gone, and makes a new one
    os.close(file)
    atomic.remove_empty(missing)


def _acquire(path: pathlib.Path, what: str, wait: bool) -> int:
  """The open, locked file. Raises OSError if it cannot be made."""
  said = False
  for attempt in itertools.count():
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
      if _locked(file) and _is_at(file, path):
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "work": what}).encode(), 0)
        return file
      holder = _holder(file)
    except BaseException:
      os.close(file)
      raise
    os.close(file)
    if not wait and (holder or attempt > _PATIENCE) and path.exists():
      raise UserError(f"{shown(path.parent)} is in use by {_named(holder)}: wait until it ends, or choose another folder.")
    if not said and holder:
      log.info("Waiting for %s, which holds %s.", _named(holder), path.parent)
      said = True
    time.sleep(_AGAIN)
  raise AssertionError("unreachable")


def _locked(file: int) -> bool:
  """Whether this process now holds the lock."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:  # a file system without locks
    holder = _holder(file)
    return not holder or (holder.get("host") == socket.gethostname() and not _runs(holder.get("pid")))
  return True


def _is_at(file: int, path: pathlib.Path) -> bool:
  """Whether the open file is still the one at `path`, and not one that its holder has removed meanwhile."""
  try:
    return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
  except FileNotFoundError:
    return False


def _holder(file: int) -> dict[str, Any]:
  """The process that holds the lock, as it describes itself; empty if it has not written that yet."""
  try:
    found = json.loads(os.pread(file, 4096, 0))
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _runs(pid: Any) -> bool:
  return isinstance(pid, int) and pid > 0 and os.path.exists(f"/proc/{pid}")


def _named(holder: dict[str, Any]) -> str:
  if not holder:
    return "another process"
  return f"process {shown(holder.get('pid'))} on {shown(holder.get('host'))} ({shown(holder.get('work'))})"
