"""From a config to objects: build.schedule, build.model, build.sampler ...

Only the modules of build/ read a config, one idea each. This package collects their functions. Everything is checked before
anything is traced. config.py documents the fields.
"""

from ddpm_jax.build.checks import check, check_second_head, lacks_moments
from ddpm_jax.build.covariances import COVARIANCES, OPTIMAL_HEADS, bound, bound_covariance, covariance_of, covariances
from ddpm_jax.build.denoisers import check_guide, clipped, denoiser, guided
from ddpm_jax.build.heads import HEAD_INITIALIZATIONS, is_of_head, on_backbone, put_on
from ddpm_jax.build.networks import (
  Apply,
  check_draws,
  check_weights,
  conditions,
  initial_params,
  is_classifier,
  model,
  network,
  parameterization,
  time_scale,
  training_network,
)
from ddpm_jax.build.presets import METHOD, Preset, Request, configure, presets
from ddpm_jax.build.process import BEST_GRIDS, GRIDS, chain, grid, moments, schedule, sde
from ddpm_jax.build.samplers import SOLVERS, sampler, sampling
from ddpm_jax.build.training import LOSSES, loss, time_sampler
from ddpm_jax.build.uncertainty import uncertain

__all__ = [
  "BEST_GRIDS",
  "COVARIANCES",
  "GRIDS",
  "HEAD_INITIALIZATIONS",
  "LOSSES",
  "METHOD",
  "OPTIMAL_HEADS",
  "SOLVERS",
  "Apply",
  "Preset",
  "Request",
  "bound",
  "bound_covariance",
  "chain",
  "check",
  "check_draws",
  "check_guide",
  "check_second_head",
  "check_weights",
  "clipped",
  "conditions",
  "configure",
  "covariance_of",
  "covariances",
  "denoiser",
  "grid",
  "guided",
  "initial_params",
  "is_classifier",
  "is_of_head",
  "lacks_moments",
  "loss",
  "model",
  "moments",
  "network",
  "on_backbone",
  "parameterization",
  "presets",
  "put_on",
  "sampler",
  "sampling",
  "schedule",
  "sde",
  "time_sampler",
  "time_scale",
  "training_network",
  "uncertain",
]
