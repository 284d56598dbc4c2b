"""Covariances of a step: (prediction, row) -> log-variance, broadcastable to the image.

    Var[x_s | x_t] = var + c_cov Var[x_0 | x_t]                                               (steps.py, eq. 4)

| covariance       | Var[x_0 given x_t]                               | used by                         |
|------------------|--------------------------------------------------|---------------------------------|
| posterior        | 0: x_0 is known                                  | DDPM fixed-small, DDIM          |
| marginal         | sigma_t^2: x_0 is unit Gaussian                  | DDPM fixed-large                |
| learned_range    | a network head interpolates the logs of the two  | IDDPM, ADM                      |
| learned_diagonal | the head is the log-variance itself              | DDPM ablation                   |
| Optimal()        | (sigma_t / alpha_t)^2 Var[eps given x_t]         | Analytic-, NPR-, SN-, OCM-DPM   |

The last step adds no noise, so its variance matters only to likelihoods. Its posterior variance is 0, and the references
differ in what replaces it. OpenAI (and Ho for CIFAR-10) reuse the variance of the previous step, which is `log_var_min` of
the last row. The other rules are wrappers (`FixLast`), not cases in a sampler.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.diffusion.schedule import Level, Schedule
from ddpm_jax.diffusion.steps import GaussianSteps
from ddpm_jax.errors import UserError


def posterior(pred: Prediction, row: GaussianSteps) -> jax.Array:
  """Log-variance of the inference process: fixed-small at eta = 1, DDIM's lambda^2 at any eta (-inf at eta = 0)."""
  return jnp.where(row.s.n == 0, row.log_var_min, jnp.log(row.var))


def marginal(pred: Prediction, row: GaussianSteps) -> jax.Array:
  """log beta of the step, fixed-large. The last row uses the smallest posterior variance, as OpenAI and Ho do."""
  return jnp.where(row.s.n == 0, row.log_var_min, row.log_var_max)


def learned_range(pred: Prediction, row: GaussianSteps) -> jax.Array:
  """v log beta + (1 - v) log posterior (IDDPM eq. 15), for eta = 1."""
  v = _need(pred, "var_frac", "learned_range", 'a network with the second head "range"')
  return v * row.log_var_max + (1 - v) * row.log_var_min


def learned_diagonal(pred: Prediction, row: GaussianSteps) -> jax.Array:
  """The log-variance that the second head predicts (DDPM's ablation, OpenAI's LEARNED)."""
  return _need(pred, "log_var", "learned_diagonal", 'a network with the second head "log_var"')


@dataclasses.dataclass(frozen=True)
class Optimal:
  """The optimal diagonal covariance: equation (4) with the denoiser's estimate of Var[eps | x_t].

  Attributes:
    clip: limits Var[x_0 | x_t] to [0, 1], the possible range for data in [-1, 1] (Analytic-DPM section 3.1).
    average: uses one value per image, the mean over its pixels (`avg_cov` of Extended-Analytic-DPM).
  """

  clip: bool = True
  average: bool = False

  def __call__(self, pred: Prediction, row: GaussianSteps) -> jax.Array:
    eps_var = _need(pred, "eps_var", "Optimal()", "AnalyticMoments(…), or an NPR, SN or OCM head")
    x0_var = (row.t.sigma / row.t.alpha) ** 2 * eps_var
    if self.average and jnp.ndim(x0_var):
      x0_var = jnp.mean(x0_var, axis=(1, 2, 3), keepdims=True)
    if self.clip:
      x0_var = jnp.clip(x0_var, 0.0, 1.0)
    return jnp.log(row.var + row.c_cov * x0_var)


def optimal_bounds(row: GaussianSteps) -> tuple[jax.Array, jax.Array]:
  """The smallest and the largest possible optimal variance for data in [-1, 1] (Analytic-DPM theorem 2).

      var  <=  optimal  <=  var + c_cov min(1, sigma_t^2 / alpha_t^2)

  since Var[x_0 | x_t] is at most 1, half the data's range squared, and Var[eps | x_t] is at most 1.
  """
  return row.var, row.var + row.c_cov * jnp.minimum(1.0, (row.t.sigma / row.t.alpha) ** 2)


@dataclasses.dataclass(frozen=True)
class CapLast:
  """Limits the noise of the steps that reach `level` or a lower one to `pixels` grey levels, E|std z| <= 2 pixels / 255.

  This is the "clipping of sigma_2" of Analytic-DPM section 5, where level 1 is capped. z is standard normal, so the largest
  standard deviation is pixels (2/255) sqrt(pi/2). Consecutive samplers may share one cap.
  """

  inner: Any
  level: int = 1
  pixels: float = 2.0

  def __call__(self, pred: Prediction, row: GaussianSteps) -> jax.Array:
    log_var = self.inner(pred, row)
    cap = 2 * np.log(self.pixels * 2 / 255 * np.sqrt(np.pi / 2))
    return jnp.where(row.s.n <= self.level, jnp.minimum(log_var, np.float32(cap)), log_var)


@dataclasses.dataclass(frozen=True)
class FixLast:
  """Replaces the log-variance of the step into level 0, where the image is decoded. For likelihoods."""

  inner: Any
  log_var: float

  def __call__(self, pred: Prediction, row: GaussianSteps) -> jax.Array:
    return jnp.where(row.s.n == 0, np.float32(self.log_var), self.inner(pred, row))


@dataclasses.dataclass(frozen=True)
class DecodeAsFullChain:
  """Analytic-DPM's decoder: from level 1, on any grid, the posterior variance from level 2 to 1 of the full chain.

  A grid that decodes from another level (`dp_vb`) uses sigma_t^2, as in the table of costs that chose the grid.
  """

  inner: Any
  log_posterior_21: float

  def __call__(self, pred: Prediction, row: GaussianSteps) -> jax.Array:
    return jnp.where(row.s.n == 0, decoder_log_var(row.t, self.log_posterior_21), self.inner(pred, row))


def decoder_log_var(t: Level, log_posterior_21: float | jax.Array) -> jax.Array:
  """The log-variance of x_0 given x_t, shaped as t."""
  return jnp.where(t.n == 1, jnp.float32(log_posterior_21), 2 * jnp.log(t.sigma))


def fix_last_to_full_chain(inner: Any, schedule: Schedule) -> DecodeAsFullChain:
  """`inner` with Analytic-DPM's decoder."""
  return DecodeAsFullChain(inner, log_posterior_21(schedule))


def log_posterior_21(schedule: Schedule) -> float:
  """log of the posterior variance from level 2 to level 1 of the full chain."""
  alpha_bar = schedule.alpha_bar
  return float(np.log((1 - alpha_bar[2] / alpha_bar[1]) * (1 - alpha_bar[1]) / (1 - alpha_bar[2])))


def _need(pred: Prediction, field: str, who: str, remedy: str) -> jax.Array:
  value = getattr(pred, field)
  if value is None:
    has = ", ".join(name for name, value in vars(pred).items() if value is not None)
    raise UserError(f"{who} needs Prediction.{field}, but this denoiser gives {has}. Use {remedy}.")
  return value
