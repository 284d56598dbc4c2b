"""diffusers' `UNet2DModel` and its schedulers: their JSON files as a config."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.config import default
from ddpm_jax.convert import diffusers_scheduler, diffusers_unet
from ddpm_jax.sizes import ImageSize


def config(
  network: Mapping[str, Any], scheduler: Mapping[str, Any] | None, image_size: ImageSize | None = None
) -> ConfigDict:
  """A config from config.json and scheduler_config.json.

  Args:
    scheduler: None leaves the schedule at its default, for a caller that asks the user for it.
    image_size: the user's answer, in place of config.json's sample_size.

  Raises:
    UserError: for an option that the networks and schedules here do not have, by name.
  """
  out = default()
  diffusers_unet.apply(out, network, image_size)
  if scheduler is not None:
    diffusers_scheduler.apply(out, scheduler)
  return out
