"""How uncertain is a step? A covariance is (prediction, row) -> log-variance, broadcastable to the image.

    Var[x_s | x_t] = var + c_cov Var[x_0 | x_t]                                               (steps.py, eq. 4)

| covariance       | Var[x_0 given x_t]                               | of                              |
|------------------|--------------------------------------------------|---------------------------------|
| posterior        | 0: x_0 is known                                  | DDPM fixed-small, DDIM          |
| marginal         | sigma_t^2: x_0 is unit Gaussian                  | DDPM fixed-large                |
| learned_range    | log-interpolates the two by a network head       | IDDPM, ADM                      |
| learned_diagonal | the head is the log-variance itself              | DDPM ablation                   |
| Optimal()        | (sigma_t / alpha_t)^2 Var[eps given x_t]         | Analytic-, NPR-, SN-DPM         |

The last step adds no noise, so its variance matters to likelihoods alone. There the posterior variance is 0, and the
references differ: OpenAI (and Ho for CIFAR-10) reuse the one of the step before, which is `log_var_min` of the last row;
the others are wrappers here (`FixLast`), never cases in a sampler.
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
  """log var of the inference process itself: fixed-small for eta = 1, DDIM's lambda^2 for any eta (-inf for 0)."""
  return jnp.where(row.s.n == 0, row.log_var_min, jnp.log(row.var))


def marginal(pred: Prediction, row: GaussianSteps) -> jax.Array:
  """log beta of the step: fixed-large. The last row falls back to the smallest posterior, as OpenAI and Ho do."""
  return jnp.where(row.s.n == 0, row.log_var_min, row.log_var_max)


def learned_range(pred: Prediction, row: GaussianSteps) -> jax.Array:
  """v log beta + (1 - v) log posterior (IDDPM eq. 15); for eta = 1."""
  v = _need(pred, "var_frac", "learned_range", 'a network with the second head "range"')
  return v * row.log_var_max + (1 - v) * row.log_var_min


def learned_diagonal(pred: Prediction, row: GaussianSteps) -> jax.Array:
  """The second head is the log-variance (DDPM's ablation, OpenAI's LEARNED)."""
  return _need(pred, "log_var", "learned_diagonal", 'a network with the second head "log_var"')


@dataclasses.dataclass(frozen=True)
class Optimal:
  """The optimal diagonal covariance: equation (4) with what the denoiser knows of Var[eps | x_t].

  clip: keep Var[x_0 | x_t] within [0, 1], where data in [-1, 1] must be (Analytic-DPM section 3.1).
  average: one value per image, the mean over its pixels (`avg_cov` of Extended-Analytic-DPM).
  """

  clip: bool = True
  average: bool = False

  def __call__(self, pred: Prediction, row: GaussianSteps) -> jax.Array:
    eps_var = _need(pred, "eps_var", "Optimal()", "AnalyticMoments(…) or an NPR or SN head")
    x0_var = (row.t.sigma / row.t.alpha) ** 2 * eps_var
    if self.average and jnp.ndim(x0_var):
      x0_var = jnp.mean(x0_var, axis=(1, 2, 3), keepdims=True)
    if self.clip:
      x0_var = jnp.clip(x0_var, 0.0, 1.0)
    return jnp.log(row.var + row.c_cov * x0_var)


def optimal_bounds(row: GaussianSteps) -> tuple[jax.Array, jax.Array]:
  """The least and the largest that the optimal variance can be for data in [-1, 1] (Analytic-DPM theorem 2).

      var  <=  optimal  <=  var + c_cov min(1, sigma_t^2 / alpha_t^2)

  since Var[x_0 | x_t] is at most 1, half the data's range squared, and Var[eps | x_t] is at most 1.
  """
  return row.var, row.var + row.c_cov * jnp.minimum(1.0, (row.t.sigma / row.t.alpha) ** 2)


@dataclasses.dataclass(frozen=True)
class CapLast:
  """At most `pixels` grey levels of noise, E|std z| <= 2 pixels / 255, in the steps that reach `level` or a lower one.

  Analytic-DPM section 5 ("clipping of sigma_2", the step into level 1); z is standard normal, so the cap on the standard
  deviation is pixels (2/255) sqrt(pi/2). Where samplers follow each other, all of them may have the same cap.
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
  """Another log-variance for the step into level 0, where the image is decoded; for likelihoods."""

  inner: Any
  log_var: float

  def __call__(self, pred: Prediction, row: GaussianSteps) -> jax.Array:
    return jnp.where(row.s.n == 0, np.float32(self.log_var), self.inner(pred, row))


@dataclasses.dataclass(frozen=True)
class DecodeAsFullChain:
  """Analytic-DPM's decoder: from level 1, whatever the grid, the posterior variance from level 2 to 1 of the full chain.

  A grid that decodes from another level (`dp_vb`) has sigma_t^2 there, as in the table of costs that chose it.
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


HO_V1_LAST = float(np.log(1e-20))  # Ho's first diffusion class (CelebA-HQ, LSUN) clamps the variance: FixLast(posterior, …)


def _need(pred: Prediction, field: str, who: str, remedy: str) -> jax.Array:
  value = getattr(pred, field)
  if value is None:
    has = ", ".join(name for name, value in vars(pred).items() if value is not None)
    raise UserError(f"{who} needs Prediction.{field}, but this denoiser gives {has}. Use {remedy}.")
  return value
