"""Alternatives to (3) of guidance.py for combining a strong and a weak prediction.

| rule | x0 | eps |
|---|---|---|
| linear, (3) | weak + s (strong - weak) | the same |
| APG (Sadat et al. 2024, arXiv 2410.02416) | strong + (s - 1) (d_orthogonal + parallel d_parallel) | follows from x0 |
| CFG++ (Chung et al. 2024, arXiv 2406.08070) | weak + s (strong - weak), 0 <= s <= 1 | that of the weak prediction |
| rescaled (Lin et al. 2023, arXiv 2305.08891, 3.4) | follows from eps | linear, its std moved to that of the strong one |

APG shortens the difference d = strong - weak in x0 to a norm of at most `norm`, and splits it by the direction of the
strong x0. The parallel part saturates colors at large scales. The paper's third part, a momentum over steps, needs a state
from step to step, which denoisers do not have. `projected` accepts a difference that already contains it.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ddpm_jax.diffusion.prediction import Prediction, eps_from_x0, finite_or, x0_from_eps
from ddpm_jax.diffusion.schedule import Level, like


@struct.dataclass
class Projected:
  """APG without momentum."""

  parallel: jax.Array  # the paper's eta: 0 drops the parallel part, 1 keeps it
  norm: jax.Array  # the paper's r, infinite for no limit

  def __call__(self, weak: Prediction, strong: Prediction, scale: jax.Array, x_t: jax.Array, level: Level) -> Prediction:
    update = projected(strong.x0 - weak.x0, strong.x0, self.parallel, self.norm)
    x0 = finite_or(strong.x0 + (like(scale, x_t) - 1) * update, strong.x0)
    return strong.replace(x0=x0, eps=eps_from_x0(x0, x_t, level))


@struct.dataclass
class Renoised:
  """CFG++: go on from the guided x0 with the weak noise, at a scale of at most 1, in DDIM or `dpm_solver.cfg_multistep`."""

  def __call__(self, weak: Prediction, strong: Prediction, scale: jax.Array, x_t: jax.Array, level: Level) -> Prediction:
    x0 = weak.x0 + like(scale, x_t) * (strong.x0 - weak.x0)
    return strong.replace(x0=finite_or(x0, strong.x0), eps=weak.eps)


@struct.dataclass
class Rescaled:
  """Linear guidance of eps whose standard deviation over an image is moved towards that of the strong eps."""

  share: jax.Array  # the paper's phi: 0 is linear guidance, 1 has the strong prediction's standard deviation

  def __call__(self, weak: Prediction, strong: Prediction, scale: jax.Array, x_t: jax.Array, level: Level) -> Prediction:
    eps = rescaled(weak.eps + like(scale, x_t) * (strong.eps - weak.eps), strong.eps, self.share)
    x0 = x0_from_eps(eps, x_t, level)
    return strong.replace(x0=finite_or(x0, strong.x0), eps=eps)


def rescaled(guided: jax.Array, strong: jax.Array, share: jax.Array) -> jax.Array:
  """`guided` with `share` of the way to the standard deviation of `strong`, of each image; both [B,H,W,C]."""
  axes = tuple(range(1, guided.ndim))
  ratio = strong.std(axes, keepdims=True) / guided.std(axes, keepdims=True)
  return guided * (share * ratio + 1 - share)


def projected(difference: jax.Array, x0: jax.Array, parallel: jax.Array, norm: jax.Array) -> jax.Array:
  """The difference of an image, shortened to `norm`, with `parallel` times its part along x0; all [B,H,W,C]."""
  axes = tuple(range(1, x0.ndim))
  total = lambda a: a.sum(axes, keepdims=True)
  tiny = jnp.finfo(x0.dtype).tiny
  difference = difference * jnp.minimum(1, norm / jnp.sqrt(jnp.maximum(total(difference**2), tiny)))
  along = total(difference * x0) / jnp.maximum(total(x0**2), tiny) * x0
  return difference - along + parallel * along
