"""Variational bounds: the rows and kernels of sampling, evaluated instead of drawn from.

    -log p(x_0) <= KL(q(x_T | x_0) || N(0, I)) + sum over steps of  KL(q(x_s | x_t, x_0) || p(x_s | x_t))     (DDPM eq. 5)

The step into level 0 contributes -log p(x_0 | x_t) of the 8-bit pixels instead. All terms are in bits per dimension.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion.gaussian import Gaussian, standard_normal
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.noise import Noise, PerImage
from ddpm_jax.diffusion.prediction import Denoiser, Prediction, eps_from_x0
from ddpm_jax.diffusion.schedule import Level, like
from ddpm_jax.diffusion.steps import GaussianSteps
from ddpm_jax.errors import UserError


def vlb_term(
  kernel: Any, x_0: jax.Array, x_t: jax.Array, row: GaussianSteps, pred: Prediction, cond: Any = None
) -> jax.Array:
  """The term of one step of the bound at x_t [B,H,W,C], in bits/dim [B]. `row` has leaves [] or [B]."""
  p = kernel(x_t, row, pred, cond)
  wide = like(row, x_0)
  q = Gaussian(
    wide.c_x0 * x_0 + wide.c_eps * eps_from_x0(x_0, x_t, row.t),
    jnp.where(wide.s.n == 0, wide.log_var_min, jnp.log(wide.var)),
  )
  return jnp.where(row.s.n == 0, bits(-p.log_prob_of_pixels(x_0)), bits(q.kl(p)))


def prior_term(x_0: jax.Array, level: Level) -> jax.Array:
  """KL(q(x_T | x_0) || N(0, I)) at the last level, in bits/dim [B]."""
  level = like(level, x_0)
  return bits(Gaussian(level.alpha * x_0, 2 * jnp.log(level.sigma)).kl(standard_normal()))


def bits(nats: jax.Array) -> jax.Array:
  """Nats [B,...] elementwise -> bits per dimension [B]."""
  return nats.mean(tuple(range(1, nats.ndim))) / np.log(2).astype(np.float32)


@struct.dataclass
class BitsPerDim:
  """A bound and its parts in sampling order. Column k belongs to row k of the table, so column 0 is the step from T."""

  prior: jax.Array  # [B]
  terms: jax.Array  # [B,K]; the last column is the decoder's term, -log p(x_0 | x_1)
  x0_mse: jax.Array  # [B,K] mean (x0 - x_0)^2, images on [-1, 1]
  eps_mse: jax.Array  # [B,K] mean (eps - true noise)^2

  @property
  def total(self) -> jax.Array:
    """The bound, [B]."""
    return self.prior + self.terms.sum(1)


def bits_per_dim(
  keys: jax.Array,
  denoiser: Denoiser,
  kernel: ReverseKernel,
  steps: GaussianSteps,
  x_0: jax.Array,
  cond: Any = None,
  *,
  noise: Noise | None = None,
  progress: Callable[[int, jax.Array], None] | None = None,
) -> BitsPerDim:
  """The bound of the chain `steps` on images x_0 [B,H,W,C], with one draw of x_t per image and level.

  Args:
    keys: [B], one per image.
    noise: (row, x) -> the true noise of x_t, instead of one stream per image.
    progress: as in samplers.sample.

  Raises:
    UserError: if a transition has no variance, as in DDIM with eta = 0.
  """
  var = np.asarray(steps.var)[np.asarray(steps.s.n) > 0]
  if not (var > 0).all():
    raise UserError("With eta = 0 the inference process has no variance and the bound is infinite; use eta = 1.")
  return _bits_per_dim(keys, denoiser, kernel, steps, x_0, cond, noise=noise, progress=progress)


@functools.partial(jax.jit, static_argnames="progress")
def _bits_per_dim(
  keys: jax.Array,
  denoiser: Denoiser,
  kernel: Any,
  steps: GaussianSteps,
  x_0: jax.Array,
  cond: Any,
  *,
  noise: Noise | None,
  progress: Callable[[int, jax.Array], None] | None,
) -> BitsPerDim:
  noise = PerImage(keys) if noise is None else noise
  axes = tuple(range(1, x_0.ndim))

  def term(_: None, row: GaussianSteps) -> tuple[None, tuple[jax.Array, ...]]:
    eps = noise(row, x_0)
    x_t = row.t.diffuse(x_0, eps)
    pred = denoiser(x_t, row.t, cond)
    if progress is not None:
      jax.debug.callback(functools.partial(progress, len(steps.left)), row.left)
    mse = ((pred.x0 - x_0) ** 2).mean(axes), ((pred.eps - eps) ** 2).mean(axes)
    return None, (vlb_term(kernel, x_0, x_t, row, pred, cond), *mse)

  _, columns = jax.lax.scan(term, None, steps)
  top = jax.tree.map(lambda column: column[0], steps.t)
  return BitsPerDim(prior_term(x_0, top), *(column.T for column in columns))


@struct.dataclass
class RateDistortion:
  """The rate and distortion of a receiver after each step (DDPM section 4.3, figure 5), averaged over images."""

  rate: jax.Array  # [K] bits/dim spent on x_t: the prior and all earlier terms
  rmse: jax.Array  # [K] root mean square error of x0 given x_t, on the scale 0..255


def rate_distortion(bound: BitsPerDim) -> RateDistortion:
  """The rate-distortion curve of a bound. Row k is the state before step k."""
  spent = jnp.cumsum(bound.terms, axis=1) - bound.terms
  return RateDistortion((bound.prior[:, None] + spent).mean(0), 127.5 * jnp.sqrt(bound.x0_mse.mean(0)))
