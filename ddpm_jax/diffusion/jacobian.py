"""The covariance of the noise given x_t, from the Jacobian of a denoiser.

Tweedie's identity of second order says, for the exact denoiser,

    Cov[eps | x_t] = I - sigma_t d eps_hat / d x_t         Cov[x_0 | x_t] = (sigma_t / alpha_t)^2 Cov[eps | x_t]          (1)

so any network gives its covariance without further training. Products with (1) cost one evaluation. The diagonal follows
from products with random signs v, since E[v (J v)] = diag J (Hutchinson's estimate).                                    (2)

The Jacobian of an imperfect network is not a covariance: it is asymmetric and has negative eigenvalues. So (2) is kept above
a floor, a share of the variance that measured moments give for the level.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ddpm_jax.diffusion.prediction import Prediction, of_level
from ddpm_jax.diffusion.schedule import Level, like

Function = Callable[[jax.Array], jax.Array]


def forward(function: Function, x: jax.Array, v: jax.Array) -> jax.Array:
  """J v, the Jacobian of `function` at x times v, shaped as the function's value."""
  return jax.jvp(function, (x,), (v,))[1]


def reverse(function: Function, x: jax.Array, v: jax.Array) -> jax.Array:
  """J^T v, shaped as x."""
  return jax.vjp(function, x)[1](v)[0]


def hutchinson(function: Function, x: jax.Array, probes: jax.Array, product: Callable = forward) -> jax.Array:
  """The mean over probes [P,*x.shape] of v (J v), an unbiased estimate of the Jacobian's diagonal, shaped as x.

  With the product `reverse` it is the mean of v (J^T v), which has the same expectation.
  """
  return jax.lax.map(lambda v: v * product(function, x, v), probes).mean(0)


def diagonal(function: Function, x: jax.Array) -> jax.Array:
  """The exact diagonal of the Jacobian, shaped as x [B,...], by one product per pixel of an image."""
  shape = x.shape[1:]

  def entry(i: jax.Array) -> jax.Array:
    unit = jnp.zeros(x[0].size, x.dtype).at[i].set(1).reshape(shape)
    moved = forward(function, x, jnp.broadcast_to(unit, x.shape))
    return moved.reshape(len(x), -1)[:, i]

  return jax.lax.map(entry, jnp.arange(x[0].size)).T.reshape(x.shape)


@struct.dataclass
class JacobianDiagonal:
  """Fills eps_var with max(1 - sigma diag J, floor), diag J by (2).

  All images share the probes of a level, so that an image does not depend on its batch.

  Attributes:
    inner: the denoiser, unclipped.
    floor: [T+1] or [T+1,H,W,C], the least Var[eps | x_n] per level.
    probes: number of products per evaluation. 0 computes the exact diagonal, by one product per pixel.
    seed: of the probes.
  """

  inner: Any
  floor: jax.Array
  probes: int = struct.field(pytree_node=False, default=4)
  seed: int = 0

  def __call__(self, x_t: jax.Array, level: Level, cond: Any = None) -> Prediction:
    def eps(x: jax.Array) -> jax.Array:
      return self.inner(x, level, cond).eps

    diag = hutchinson(eps, x_t, self._signs(x_t, level)) if self.probes else diagonal(eps, x_t)
    floor = of_level(self.floor, level, x_t)
    return self.inner(x_t, level, cond).replace(eps_var=jnp.maximum(1 - like(level, x_t).sigma * diag, floor))

  def _signs(self, x_t: jax.Array, level: Level) -> jax.Array:
    def draw(n: jax.Array) -> jax.Array:
      key = jax.random.fold_in(jax.random.key(self.seed), n)
      return jax.random.rademacher(key, (self.probes, *x_t.shape[1:]), x_t.dtype)

    drawn = jax.vmap(draw, out_axes=1)(jnp.atleast_1d(level.n))  # [P,1,...] or [P,B,...]
    return jnp.broadcast_to(drawn, (self.probes, *x_t.shape))


@struct.dataclass
class JacobianOperator:
  """Fills eps_cov with the whole of (1), as products with the Jacobian.

  Attributes:
    inner: the denoiser, unclipped.
    floor: [T+1], the lower bound on the eigenvalues of Cov[eps | x_n].
  """

  inner: Any
  floor: jax.Array

  def __call__(self, x_t: jax.Array, level: Level, cond: Any = None) -> Prediction:
    operator = Tweedie(self.inner, x_t, level, cond, of_level(self.floor, level, x_t))
    return self.inner(x_t, level, cond).replace(eps_cov=operator)


@struct.dataclass
class Tweedie:
  """Cov[eps | x_t] = I - sigma J at one x_t [B,H,W,C]: a covariance operator, as lanczos.py defines it."""

  denoiser: Any
  x_t: jax.Array
  level: Level
  cond: Any
  floor: jax.Array

  def times(self, v: jax.Array) -> jax.Array:
    """The product with v [B,H,W,C], one evaluation of the denoiser and its derivative."""
    moved = forward(lambda x: self.denoiser(x, self.level, self.cond).eps, self.x_t, v)
    return v - like(self.level, v).sigma * moved
