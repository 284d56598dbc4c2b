"""Published weights on this machine, in the cache of `ddpm_jax.files.download`:

files/<file>          as published
<name>/checkpoints    converted
"""

import logging
import pathlib

from ddpm_jax.convert import convert, registry
from ddpm_jax.errors import UserError
from ddpm_jax.files import download, lock
from ddpm_jax.training import checkpoints

log = logging.getLogger(__name__)


def workdir(name: str) -> pathlib.Path:
  """The converted checkpoint of a published model, made when it is asked for the first time.

  Raises:
    UserError: if there is no such model; if its file has to be fetched by a person, saying which one and where to put
      it; if it cannot be downloaded, or is not the published one.
  """
  published = registry.find(name)
  if published is None:
    raise UserError(f"{name!r} is a config, not a published model; see ddpm-jax convert --list.")
  directory = download.cache_folder() / published.name
  if checkpoints.steps_in(directory / "checkpoints"):
    return directory
  source = download.fetch(published.download)
  with lock.alone(directory, f"converting {name}", wait=True):
    if not checkpoints.steps_in(directory / "checkpoints"):  # no other process has converted it meanwhile
      log.info("Converting %s", source)
      convert.save(convert.convert(source, like=published.name), directory, source)
  return directory
