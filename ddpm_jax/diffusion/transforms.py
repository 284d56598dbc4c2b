"""Denoisers that wrap a denoiser: clipping, dynamic thresholding, measured moments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion.prediction import Prediction, eps_from_x0, of_level
from ddpm_jax.diffusion.schedule import Level, like


@struct.dataclass
class ClipX0:
  """Clips x0 to [lo, hi].

  Attributes:
    keep_eps: False recomputes eps from the clipped x0, as IDDPM and ADM do. The mean is then DDPM's posterior mean. True
      keeps the network's eps, as the DDIM of Analytic-DPM and Extended-Analytic-DPM does.
  """

  inner: Any
  lo: float = struct.field(pytree_node=False, default=-1.0)
  hi: float = struct.field(pytree_node=False, default=1.0)
  keep_eps: bool = struct.field(pytree_node=False, default=False)

  def __call__(self, x_t: jax.Array, level: Level, cond: Any = None) -> Prediction:
    pred = self.inner(x_t, level, cond)
    return _with_x0(pred, jnp.clip(pred.x0, self.lo, self.hi), x_t, level, self.keep_eps)


@struct.dataclass
class DynamicThreshold:
  """Clips x0 of each image at a quantile of its |x0| and rescales to [-1, 1] (Imagen, section 2.3).

  A threshold below 1 is replaced by 1, so that images within the range do not change; one above `most` by `most`.
  """

  inner: Any
  quantile: float = struct.field(pytree_node=False, default=0.995)
  most: float = struct.field(pytree_node=False, default=np.inf)
  keep_eps: bool = struct.field(pytree_node=False, default=False)

  def __call__(self, x_t: jax.Array, level: Level, cond: Any = None) -> Prediction:
    pred = self.inner(x_t, level, cond)
    size = jnp.abs(pred.x0).reshape(len(x_t), -1)
    bound = like(jnp.clip(jnp.quantile(size, self.quantile, axis=1), 1.0, self.most), x_t)
    return _with_x0(pred, jnp.clip(pred.x0, -bound, bound) / bound, x_t, level, self.keep_eps)


@struct.dataclass
class AnalyticMoments:
  """Fills eps_var with 1 - gamma_n, independent of x_t (Analytic-DPM eq. 8, gamma_n = E|eps_hat|^2 / d).

  Attributes:
    gamma: float32 [T+1], or [T+1,H,W,C] for a variance per pixel, of the same schedule. moments.py estimates it.
      gamma[0] is not used.
  """

  inner: Any
  gamma: jax.Array

  def __call__(self, x_t: jax.Array, level: Level, cond: Any = None) -> Prediction:
    return self.inner(x_t, level, cond).replace(eps_var=1 - of_level(self.gamma, level, x_t))


def _with_x0(pred: Prediction, x0: jax.Array, x_t: jax.Array, level: Level, keep_eps: bool) -> Prediction:
  return pred.replace(x0=x0, eps=pred.eps if keep_eps else eps_from_x0(x0, x_t, level))
