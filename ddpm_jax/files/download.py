"""Published files in the user's cache: downloaded once, whole, and verified.

The cache is $DDPM_JAX_CACHE, else $XDG_CACHE_HOME/ddpm_jax, else ~/.cache/ddpm_jax. A file that the user puts there under
its name is used like a downloaded one. An interrupted download continues where it stopped. If several processes want
files at once, one downloads and the others wait.

A file whose publisher gives no checksum is trusted on first use: its digest is recorded beside it, as FILE.sha256, and
another content under its name is refused from then on.
"""

import contextlib
import dataclasses
import hashlib
import http.client
import logging
import os
import pathlib
import re
import shutil
import urllib.error
import urllib.request
from typing import Any

import tqdm

from ddpm_jax.errors import UserError
from ddpm_jax.files import lock, tables
from ddpm_jax.files.atomic import writing
from ddpm_jax.files.limits import check_regular, reason, shown

log = logging.getLogger(__name__)

BLOCK = 1 << 20
LARGEST = 8 * 2**30  # bytes; the largest published file has 2


@dataclasses.dataclass(frozen=True)
class File:
  """A published file.

  Attributes:
    name: its name in the cache.
    url: where it is published.
    checksum: "sha256:..." or "md5:...", hexadecimal; None if the publisher gives none: the one found first is recorded.
    by_hand: the URL is a page for a person, not the file.
  """

  name: str
  url: str
  checksum: str | None = None
  by_hand: bool = False


def cache_folder() -> pathlib.Path:
  """The folder of fetched files, which need not exist yet."""
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
  if path.is_symlink() and not path.exists():
    raise UserError(f"{shown(path)} is a link to a file that does not exist: mend or remove it.")
  if not path.exists() and file.by_hand:
    raise UserError(f"{path.name} has to be fetched by hand: download {file.url} and put it at {shown(path)}.")
  if not path.exists():
    with lock.alone(path.parent, "downloading", wait=True, remedy="set DDPM_JAX_CACHE to another folder"):
      if not path.exists():  # no other process has downloaded it meanwhile
        _download(file, path, progress, timeout)
  check_regular(path)
  if file.checksum is None:
    _check_recorded(path)
  elif (found := checksum(path, file.checksum)) != file.checksum:
    raise UserError(f"{shown(path)} has the checksum {found}, and {file.checksum} was published: remove it and try again.")
  return path


def _record(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f"{path.name}.sha256")


def _check_recorded(path: pathlib.Path) -> None:
  """Compares a file with its recorded digest, and records it on first use. Raises UserError if it has changed."""
  record = _record(path)
  found = checksum(path)
  if not os.path.lexists(record):
    log.info("%s has the checksum %s, which is recorded beside it.", path, found)
    with writing(record) as temporary:
      temporary.write_text(f"{found}\n")
  elif (known := tables.read_text(record).strip()) != found:
    raise UserError(
      f"{shown(path)} has changed: its checksum was {shown(known)} and is {found}. Remove it, and {record.name} if you "
      "trust the new file."
    )


def checksum(path: str | os.PathLike, kind: str = "sha256") -> str:
  """The checksum of a file as "sha256:...". `kind` is an algorithm, or another checksum of the same kind."""
  algorithm = kind.partition(":")[0]
  with open(path, "rb") as file:
    return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _download(file: File, path: pathlib.Path, progress: bool, timeout: float) -> None:
  partial = path.with_name(f"{path.name}.partial")
  try:
    _append(file, partial, progress, timeout)
  except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError, as is a broken connection
    raise UserError(
      f"{shown(file.url)} could not be downloaded ({reason(error)}): try again, or save that file as {shown(path)}."
    ) from error
  try:
    _check_content(file, partial)
  except UserError:
    _forget(partial)
    raise
  os.replace(partial, path)
  _forget(partial)


def is_web_page(start: bytes) -> bool:
  """Whether a file that begins so is HTML, such as the page that a server gives instead of a file.

  Examples:
    >>> is_web_page(b"\\n<!DOCTYPE html>"), is_web_page(b"PK")
    (True, False)
  """
  return start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _check_content(file: File, partial: pathlib.Path) -> None:
  """Raises UserError for a page instead of the file, a wrong beginning, or a wrong checksum."""
  with open(partial, "rb") as opened:
    start = opened.read(512)
  if is_web_page(start):
    raise UserError(f"{shown(file.url)} gives a web page instead of the file; it is not kept. Try again later.")
  magic = next((magic for ending, magic in _BEGINNINGS.items() if file.name.endswith(ending)), b"")
  if not start.startswith(magic):
    raise UserError(f"{shown(file.url)} does not begin like {file.name}; it is not kept. Try again later.")
  if file.checksum is not None and (found := checksum(partial, file.checksum)) != file.checksum:
    raise UserError(f"{shown(file.url)} has the checksum {found}, and {file.checksum} was published; it is not kept.")


_BEGINNINGS = {".npz": b"PK", ".zip": b"PK", ".gz": b"\x1f\x8b"}


def _append(file: File, partial: pathlib.Path, progress: bool, timeout: float) -> None:
  """Downloads what `partial` does not hold yet.

  Raises:
    OSError: if the server does not answer, sends another length than it announced, or does not say a length.
    UserError: if the file is larger than LARGEST or than the disk.
  """
  tag = _tag_of(partial)
  version = {"If-Range": tag.read_text()} if _size(tag) else {}
  start = _size(partial) if version or file.checksum else 0  # a part of another version would not be noticed
  headers = {"Range": f"bytes={start}-"} | version if start else {}
  request = urllib.request.Request(file.url, headers={"Accept-Encoding": "identity"} | headers)
  try:
    response = urllib.request.urlopen(request, timeout=timeout)
  except urllib.error.HTTPError as error:
    if error.code != 416 or not start:  # 416: nothing is left to send, or the file there has become shorter
      raise
    _forget(partial)
    return _append(file, partial, progress, timeout)
  with response:
    resumed = response.status == 206
    total = _total(response, start, resumed)
    if total is None and file.checksum is None:
      raise OSError("the server does not say how long the file is")
    most = LARGEST if total is None else total
    room = shutil.disk_usage(partial.parent).free + (start if resumed else 0)
    if most > LARGEST or (total or 0) > room:
      raise UserError(
        f"{shown(file.url)} has {most / 2**30:.3g} GiB; {LARGEST / 2**30:.3g} are allowed and {room / 2**30:.3g} are free."
      )
    if not resumed:
      _forget(partial)
      _keep_tag(tag, response.headers)
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (os.O_APPEND if resumed else os.O_TRUNC)
    bar = tqdm.tqdm(
      desc=partial.stem, total=total, initial=start if resumed else 0, unit="B", unit_scale=True, disable=not progress
    )
    size = start if resumed else 0
    with os.fdopen(os.open(partial, flags, 0o666), "wb") as out, bar:
      while block := response.read(BLOCK):
        size += len(block)
        if size > most:
          raise OSError(f"more than the {most:,} bytes arrived that were announced or are allowed")
        out.write(block)
        bar.update(len(block))
  if total is not None and size < total:
    raise OSError(f"{size} of {total} bytes arrived")


def _total(response: Any, start: int, resumed: bool) -> int | None:
  """Bytes of the whole file as the server says; None if it does not. Raises OSError for a range that was not asked for."""
  length = response.headers.get("Content-Length")
  if not resumed:
    return None if length is None else int(length)
  match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
  if not match or int(match[1]) != start or int(match[2]) + 1 != int(match[3]):
    raise OSError(f"the server sent the range {response.headers.get('Content-Range')!r}, not the one from {start}")
  return int(match[3])


def _tag_of(partial: pathlib.Path) -> pathlib.Path:
  """The file that holds the server's name for the version that `partial` is a part of."""
  return partial.with_name(f"{partial.name}.tag")


def _keep_tag(tag: pathlib.Path, headers: Any) -> None:
  version = headers.get("ETag") or headers.get("Last-Modified")
  if version and not version.startswith("W/"):
    with writing(tag) as temporary:
      temporary.write_text(version)


def _forget(partial: pathlib.Path) -> None:
  for path in (partial, _tag_of(partial)):
    with contextlib.suppress(FileNotFoundError):
      path.unlink()


def _size(path: pathlib.Path) -> int:
  return path.stat().st_size if path.is_file() and not path.is_symlink() else 0
