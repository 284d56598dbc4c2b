"""The contribution of every possible step t -> s to the bound, measured over a data set. trajectory.dp_vb uses the table.

One evaluation of the network at level t serves all lower levels s, since the divergence of a step

    s > 0:  KL(q(x_s | x_t, x_0) || p(x_s | x_t)),  means apart by sqrt(c_cov) (x_0 - x0)         (eta = 1, x0 clipped)
    s = 0:  -log p(x_0 | x_t),  variance sigma_t^2, or at t = 1 the posterior's from level 2 to 1

depends on s only through its coefficients (`get_nelbo_terms` of Analytic-DPM's code; Watson et al. 2021).
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import grid as grids
from ddpm_jax.diffusion.covariance import decoder_log_var, log_posterior_21
from ddpm_jax.diffusion.gaussian import Gaussian
from ddpm_jax.diffusion.likelihood import bits
from ddpm_jax.diffusion.moments import chunks, numbered_keys
from ddpm_jax.diffusion.noise import Noise, PerImage
from ddpm_jax.diffusion.prediction import Denoiser
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.diffusion.steps import GaussianSteps, gaussian, transitions

_LOWER = 32  # levels s per step of a loop: the memory of this many batches, if each pixel has its own variance


def estimate(
  schedule: Schedule,
  denoiser: Denoiser,
  covariance: Any,
  batches: Iterable[tuple[jax.Array, Any]],
  *,
  seed: int = 0,
  chunk: int = 8,
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields the table after each batch.

  Args:
    denoiser: with x0 clipped.
    covariance: a static function, as for ReverseKernel, without rules for the last steps.
    batches: (x_0 [B,H,W,C], cond).
    chunk: largest number of levels t in one call of the compiled program.

  Yields:
    The number of images so far, and the float64 [T+1, T+1] averages in bits/dim, the step from t to s at [s, t]; inf
    unless s < t.
  """
  T = schedule.T
  steps = gaussian(schedule, grids.full(T))
  last = log_posterior_21(schedule)
  total = np.zeros((T + 1, T + 1))
  count = 0
  for x_0, cond in batches:
    keys = numbered_keys(seed, count, len(x_0))
    for rows in chunks(steps, chunk):
      costs = _chunk(keys, denoiser, covariance, rows, to_lower(schedule, rows.t.n), x_0, cond, last)
      for t, column in zip(rows.t.n, np.asarray(costs, np.float64), strict=True):
        total[:t, t] += column[:t] * len(x_0)
    count += len(x_0)
    yield count, np.where(np.tri(T + 1, k=-1, dtype=bool).T, total / count, np.inf)


def to_lower(schedule: Schedule, t: np.ndarray) -> GaussianSteps:
  """Rows [L, T-1] from levels t [L] to levels 1 ... T-1. Where that is not a step down, the row of some step that is."""
  s = np.minimum(np.arange(1, schedule.T), np.maximum(t - 1, 1)[:, None])
  return transitions(schedule, np.maximum(t[:, None], 2) + 0 * s, s)


def terms(
  keys: jax.Array,
  denoiser: Denoiser,
  covariance: Any,
  steps: GaussianSteps,
  lower: GaussianSteps,
  x_0: jax.Array,
  cond: Any = None,
  *,
  last_log_var: float | jax.Array,
  noise: Noise | None = None,
) -> jax.Array:
  """The terms of the bound for the steps that leave each level of `steps` [L], averaged over images.

  Args:
    lower: rows [L,S] from the same levels to others.
    last_log_var: log-variance of the decoder at level 1.
    noise: (row, x) -> the true noise of x_t, instead of one stream per image.

  Returns:
    float32 [L,1+S] in bits/dim: the decoder's term, then those of `lower`.
  """
  noise = PerImage(keys) if noise is None else noise

  def leaving(_: None, rows: tuple[GaussianSteps, GaussianSteps]) -> tuple[None, jax.Array]:
    row, others = rows
    x_t = row.t.diffuse(x_0, noise(row, x_0))
    pred = denoiser(x_t, row.t, cond)
    error = (x_0 - pred.x0) ** 2

    def divergence(other: GaussianSteps) -> jax.Array:
      log_var = covariance(pred, other)
      one_for_all_pixels = jnp.size(log_var) <= len(x_0)
      apart = jnp.sqrt(other.c_cov * (error.mean((1, 2, 3), keepdims=True) if one_for_all_pixels else error))
      return bits(Gaussian(apart, jnp.log(other.var)).kl(Gaussian(0.0, log_var))).mean()

    decoder = Gaussian(pred.x0, decoder_log_var(row.t, last_log_var))
    divergences = jax.lax.map(divergence, others, batch_size=_LOWER)
    return None, jnp.append(bits(-decoder.log_prob_of_pixels(x_0)).mean(), divergences)

  return jax.lax.scan(leaving, None, (steps, lower))[1]


@functools.partial(jax.jit, static_argnames="covariance")
def _chunk(
  keys: jax.Array,
  denoiser: Denoiser,
  covariance: Any,
  steps: GaussianSteps,
  lower: GaussianSteps,
  x_0: jax.Array,
  cond: Any,
  last_log_var: float | jax.Array,
) -> jax.Array:
  return terms(keys, denoiser, covariance, steps, lower, x_0, cond, last_log_var=last_log_var)
