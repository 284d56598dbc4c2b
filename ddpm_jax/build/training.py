"""The training loss of a config, and the distribution of training levels."""

from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import named
from ddpm_jax.build.covariances import covariance_of
from ddpm_jax.build.process import chain, schedule
from ddpm_jax.diffusion import loss_weights, losses, time_sampling
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.errors import UserError


def loss(config: ConfigDict) -> Callable:
  """The training loss of `config.loss` on the full chain."""
  fields = dict(config.loss)
  if fields["name"] in ("vlb", "hybrid"):
    which = fields.pop("covariance", None)
    fields["kernel"] = ReverseKernel(covariance_of(config, which, eta=1.0))
  if fields["name"] == "hybrid":
    if config.prediction.second is None:
      raise UserError('loss.name = "hybrid" trains a variance: set prediction.second = "range", or use "simple".')
    fields.setdefault("weight", config.schedule.get("T", 1000) / 1000)  # IDDPM's
    if fields.get("mse_weight") is not None:
      fields["mse_weight"] = _weights(config, fields["mse_weight"], "loss.mse_weight")
  if fields["name"] in loss_weights.WEIGHTS:
    return _noisy_low_res(config, losses.Simple(chain(config), weight=_weights(config, fields, "loss")))
  given: dict[str, Any] = {"steps": chain(config)}
  if fields["name"] == "simple":
    given["weight"] = None  # which the names of WEIGHTS choose
  made = named.make(LOSSES | loss_weights.WEIGHTS, fields, "loss", **given)
  return _noisy_low_res(config, made)


def _weights(config: ConfigDict, section: Any, what: str) -> np.ndarray:
  """Factors of the squared error by level, float32 [T+1]. `section` is a name or has one, such as name="p2", gamma=0.5."""
  fields = {"name": section} if isinstance(section, str) else dict(section)
  made = named.make(loss_weights.WEIGHTS, fields, what, schedule=schedule(config), mean=config.prediction.mean)
  return made.astype(np.float32)


def _noisy_low_res(config: ConfigDict, made: Callable) -> Callable:
  if not config.train.low_res_noise:
    return made
  if config.data.low_res_size is None:
    raise UserError("train.low_res_noise is for super-resolution: set data.low_res_size, or leave it out.")
  return losses.NoisyLowRes(made, config.train.low_res_noise)


LOSSES: dict[str, Callable] = {
  "simple": losses.Simple,
  "vlb": losses.Vlb,
  "hybrid": losses.Hybrid,
  "second_head": losses.SecondHead,
  "classifier": losses.NoisyClassifier,
}


def time_sampler(config: ConfigDict) -> Any:
  """The distribution of training levels."""
  return named.make(time_sampling.TIME_SAMPLERS, config.time_sampler, "time_sampler", T=schedule(config).T)
