"""Optional writers: Weights & Biases, and a profile of a few steps."""

import hashlib
import importlib.util
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ddpm_jax.errors import UserError

log = logging.getLogger(__name__)


class WeightsAndBiases:
  """Metrics and previews in Weights & Biases. A resumed run continues the same W&B run.

  The project is `ddpm_jax` unless WANDB_PROJECT names another. WANDB_MODE=offline keeps everything on disk.
  """

  def __init__(self, workdir: pathlib.Path, config: Mapping[str, Any]):
    import wandb

    self.image = wandb.Image
    where = workdir.resolve()
    identity = hashlib.sha256(str(where).encode()).hexdigest()[:12]
    project = os.environ.get("WANDB_PROJECT", "ddpm_jax")
    self.run = wandb.init(
      id=identity, name=where.name, project=project, resume="allow", dir=str(workdir), config=dict(config)
    )

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    self.run.log(dict(scalars), step=step)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    self.run.log({f"previews/{name}": self.image(image) for name, image in images.items()}, step=step)

  def has_images(self, step: int) -> bool:
    return True  # a resumed run does not ask for what was uploaded

  def close(self) -> None:
    self.run.finish()


class Profile:
  """A profile of all devices between the first two rows of metrics, when everything is compiled."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.state = "waiting"

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    if self.state == "waiting":
      jax.profiler.start_trace(str(self.folder))
      self.state = "tracing"
    elif self.state == "tracing":
      self.close()
      log.info("Profile of the steps up to %d: xprof --logdir %s", step, self.folder)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    pass

  def has_images(self, step: int) -> bool:
    return True  # it keeps none

  def close(self) -> None:
    if self.state == "tracing":
      jax.profiler.stop_trace()
    self.state = "done"


def check(wandb: bool) -> None:
  """Raises UserError if Weights & Biases is requested but not installed. Call it before training."""
  if wandb and importlib.util.find_spec("wandb") is None:
    raise UserError("--wandb needs the package wandb, which is not installed: run pip install wandb.")
