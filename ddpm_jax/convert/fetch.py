"""Published weights on this machine: where they are kept, and how they get there.

    CACHE/files/<file>          as published, checked against its MD5 where one is known
    CACHE/<name>/checkpoints    converted

CACHE is $DDPM_JAX_CACHE, or ~/.cache/ddpm_jax.
"""

import hashlib
import logging
import os
import pathlib
import shutil
import urllib.error
import urllib.request

from ddpm_jax.convert import convert, registry
from ddpm_jax.errors import UserError

log = logging.getLogger(__name__)


def cache() -> pathlib.Path:
  """The directory above."""
  return pathlib.Path(os.environ.get("DDPM_JAX_CACHE") or pathlib.Path.home() / ".cache/ddpm_jax")


def workdir(name: str) -> pathlib.Path:
  """The converted checkpoint of a published model, made when it is asked for the first time.

  Raises:
    UserError: if there is no such model; if its file has to be fetched by a person, saying which one and where to put
      it; if it cannot be downloaded, or is not the published one.
  """
  published = registry.find(name)
  if published is None:
    raise UserError(f"{name!r} is a config, not a published model; see ddpm-jax convert --list.")
  directory = cache() / published.name
  if not (directory / "checkpoints").is_dir():
    source = file(published)
    log.info("Converting %s", source)
    convert.save(convert.convert(source, like=published.name), directory, source)
  return directory


def file(published: registry.Published) -> pathlib.Path:
  """The published file in the cache, downloaded if a program can."""
  path = cache() / "files" / (published.file or f"{published.name}.pt")
  is_there = path.exists() or path.with_name(f"{path.name}.index").exists()  # TensorFlow's names are prefixes
  if not is_there and published.by_hand:
    raise UserError(f"{published.name} has to be fetched by hand: download {published.url} and put it at {path}.")
  if not is_there:
    _download(published.url, path)
  if published.md5 is not None:
    _verify(path, published)
  return path


def _download(url, path):
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.partial")
  log.info("Downloading %s", url)
  try:
    with urllib.request.urlopen(url, timeout=60) as response, partial.open("wb") as out:
      shutil.copyfileobj(response, out, 1 << 20)
      expected = response.headers.get("Content-Length")
  except (urllib.error.URLError, OSError) as error:
    partial.unlink(missing_ok=True)
    reason = getattr(error, "reason", None) or error
    raise UserError(f"{url} cannot be downloaded ({reason}); download it elsewhere and put it at {path}.") from None
  if expected is not None and partial.stat().st_size != int(expected):
    partial.unlink()
    raise UserError(f"{url} was cut short; run the command again, or download it elsewhere and put it at {path}.")
  partial.rename(path)


def _verify(path, published):
  with path.open("rb") as data:
    md5 = hashlib.file_digest(data, "md5").hexdigest()
  if md5 != published.md5:
    raise UserError(f"{path} is not {published.name}: its MD5 is {md5}, not {published.md5}; remove it and fetch it again.")
