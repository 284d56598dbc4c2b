"""Denoisers around a denoiser: clipping, dynamic thresholding, moments."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ddpm_jax.diffusion.prediction import Prediction, eps_from_x0
from ddpm_jax.diffusion.schedule import like


@struct.dataclass
class ClipX0:
  """Keeps x0 within [lo, hi].

  keep_eps: False re-derives eps from the clipped x0 (IDDPM and ADM; also makes the mean DDPM's posterior mean). True
    leaves the network's eps as it was (DDIM of Analytic-DPM and Extended-Analytic-DPM).
  """

  inner: Any
  lo: float = struct.field(pytree_node=False, default=-1.0)
  hi: float = struct.field(pytree_node=False, default=1.0)
  keep_eps: bool = struct.field(pytree_node=False, default=False)

  def __call__(self, x_t, level, cond=None) -> Prediction:
    pred = self.inner(x_t, level, cond)
    return _with_x0(pred, jnp.clip(pred.x0, self.lo, self.hi), x_t, level, self.keep_eps)


@struct.dataclass
class DynamicThreshold:
  """Clips x0 of each image at its own quantile of |x0|, then rescales to [-1, 1] (Imagen, section 2.3).

  Thresholds below 1 count as 1, so that images in range stay untouched.
  """

  inner: Any
  quantile: float = struct.field(pytree_node=False, default=0.995)
  keep_eps: bool = struct.field(pytree_node=False, default=False)

  def __call__(self, x_t, level, cond=None) -> Prediction:
    pred = self.inner(x_t, level, cond)
    size = jnp.abs(pred.x0).reshape(len(x_t), -1)
    bound = like(jnp.maximum(jnp.quantile(size, self.quantile, axis=1), 1.0), x_t)
    return _with_x0(pred, jnp.clip(pred.x0, -bound, bound) / bound, x_t, level, self.keep_eps)


@struct.dataclass
class AnalyticMoments:
  """Fills eps_var with 1 - gamma_n, one number per level (Analytic-DPM eq. 8, gamma_n = E|eps_hat|^2 / d).

  gamma: float32 [T+1] of the same schedule, as moments.py estimates it; gamma[0] is not used.
  """

  inner: Any
  gamma: jax.Array

  def __call__(self, x_t, level, cond=None) -> Prediction:
    return self.inner(x_t, level, cond).replace(eps_var=like(1 - jnp.asarray(self.gamma)[level.n], x_t))


@struct.dataclass
class UnitMoment:
  """Fills eps_var with 1 - eps_hat^2 per pixel, as if E[eps^2 | x_t] were 1 everywhere: SN-DPM without its head.

  Extended-Analytic-DPM's code does this for an optimal covariance without moments; `Optimal` clips the outcome.
  """

  inner: Any

  def __call__(self, x_t, level, cond=None) -> Prediction:
    pred = self.inner(x_t, level, cond)
    return pred.replace(eps_var=1 - pred.eps**2)


def _with_x0(pred, x0, x_t, level, keep_eps):
  return pred.replace(x0=x0, eps=pred.eps if keep_eps else eps_from_x0(x0, x_t, level))
