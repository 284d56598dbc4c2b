"""Published files in a cache of one's own: downloaded once, whole, and checked.

The cache is $DDPM_JAX_CACHE, else $XDG_CACHE_HOME/ddpm_jax, else ~/.cache/ddpm_jax. A file that is put there by hand,
under its name, is used like a downloaded one. An interrupted download goes on where it stopped. Of processes that want the
same file at once, one downloads it and the others wait.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import http.client
import logging
import os
import pathlib
import urllib.error
import urllib.request
from collections.abc import Iterator

import tqdm

from ddpm_jax.errors import UserError

log = logging.getLogger(__name__)

BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class File:
  """A published file.

  Attributes:
    name: in the cache.
    url: where it is published.
    checksum: "sha256:..." or "md5:...", hexadecimal; None if it is not known, then the one found is logged.
    by_hand: the URL is a page that gives the file to a person, not to a program.
  """

  name: str
  url: str
  checksum: str | None = None
  by_hand: bool = False


def cache_folder() -> pathlib.Path:
  """Where fetched files lie; it need not exist yet."""
  if own := os.environ.get("DDPM_JAX_CACHE"):
    return pathlib.Path(own)
  return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "ddpm_jax"


def fetch(file: File, *, progress: bool = True, timeout: float = 30.0) -> pathlib.Path:
  """The path of `file` in the cache, downloaded if it is not there.

  Args:
    file: what to fetch.
    progress: show a bar while downloading.
    timeout: seconds without an answer.

  Raises:
    UserError: if it can neither be found nor downloaded, or has the wrong checksum.
  """
  path = cache_folder() / file.name
  if not path.exists() and file.by_hand:
    raise UserError(f"{path.name} has to be fetched by hand: download {file.url} and put it at {path}.")
  if not path.exists():
    with _alone_in(path.parent):
      if not path.exists():  # nobody else has downloaded it meanwhile
        _download(file, path, progress, timeout)
  if file.checksum is not None and (found := checksum(path, file.checksum)) != file.checksum:
    raise UserError(f"{path} has the checksum {found}, but {file.checksum} was published; remove it and try again.")
  return path


def checksum(path: str | os.PathLike, kind: str = "sha256") -> str:
  """Of a file, as "sha256:..."; `kind` may be a checksum of the same kind."""
  algorithm = kind.partition(":")[0]
  with open(path, "rb") as file:
    return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


@contextlib.contextmanager
def _alone_in(folder: pathlib.Path) -> Iterator[None]:
  """Lets one process at a time in, by a lock that ends with the process; `folder` is made.

  Raises:
    UserError: if nothing can be written there.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / ".lock", "w")
  except OSError as error:
    raise UserError(f"{folder} cannot be written ({error.strerror}): set DDPM_JAX_CACHE to another folder.") from error
  with lock:
    with contextlib.suppress(OSError):  # a file system without locks
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _download(file: File, path: pathlib.Path, progress: bool, timeout: float) -> None:
  partial = path.with_name(f"{path.name}.partial")
  try:
    _append(file.url, partial, progress, timeout)
  except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError; so is a broken connection
    raise UserError(f"{file.url} could not be downloaded ({error}); try again, or save that file as {path}.") from error
  if file.checksum is None:
    log.info("%s has the checksum %s.", file.url, checksum(partial))
  elif (found := checksum(partial, file.checksum)) != file.checksum:
    partial.unlink()
    raise UserError(
      f"{file.url} has the checksum {found}, but {file.checksum} was published; "
      f"it is not kept. Save the right file as {path}."
    )
  os.replace(partial, path)


def _append(url: str, partial: pathlib.Path, progress: bool, timeout: float) -> None:
  """Downloads what `partial` does not hold yet.

  Raises:
    OSError: if the server does not answer, or fewer bytes came than it announced.
  """
  start = partial.stat().st_size if partial.exists() else 0
  request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
  try:
    response = urllib.request.urlopen(request, timeout=timeout)
  except urllib.error.HTTPError as error:
    if error.code != 416 or not start:  # 416: nothing is left to send, or the file there has become shorter
      raise
    partial.unlink()
    return _append(url, partial, progress, timeout)
  with response:
    resumed = response.status == 206
    length = response.headers.get("Content-Length")
    total = None if length is None else int(length) + (start if resumed else 0)
    bar = tqdm.tqdm(
      desc=partial.stem, total=total, initial=start if resumed else 0, unit="B", unit_scale=True, disable=not progress
    )
    with open(partial, "ab" if resumed else "wb") as out, bar:
      while block := response.read(BLOCK):
        out.write(block)
        bar.update(len(block))
  size = partial.stat().st_size
  if total is not None and size < total:
    raise OSError(f"{size} of {total} bytes arrived")
