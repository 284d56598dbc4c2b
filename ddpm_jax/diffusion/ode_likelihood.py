"""The likelihood of the ODE of a diffusion model (score_sde section 4.3), by an adaptive Runge-Kutta method.

Along dx/dt = f(x, t) of sde.py (3), from an image at t ~ 0 to a latent at t = 1,

    log p(x_0) = log N(x_1; 0, I) + integral of  div f  dt,        div f = E e^T (df/dx) e,   e = +-1 at random       (1)

Every image has its own step size, so its value does not depend on its batch.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion.prediction import Denoiser
from ddpm_jax.diffusion.sde import VpSde
from ddpm_jax.errors import UserError

# Dormand & Prince's method of order 5(4). Row i computes the stage at t + C[i] h from the earlier slopes.
_C = np.array([0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1])
_A = np.array(
  [
    [0, 0, 0, 0, 0, 0],
    [1 / 5, 0, 0, 0, 0, 0],
    [3 / 40, 9 / 40, 0, 0, 0, 0],
    [44 / 45, -56 / 15, 32 / 9, 0, 0, 0],
    [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0],
    [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0],
    [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],  # the solution: its slope opens the next step
  ]
)
_ERROR = np.array([-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40])


@struct.dataclass
class OdeBits:
  """The result of `ode_bits_per_dim`, per image."""

  bits: jax.Array  # [B] bits/dim
  latent: jax.Array  # [B,H,W,C] x at t = 1
  steps: jax.Array  # [B] int32, accepted steps


def ode_bits_per_dim(
  keys: jax.Array,
  denoiser: Denoiser,
  sde: VpSde,
  x_0: jax.Array,
  cond: Any = None,
  *,
  first: float = 1e-5,
  tolerance: float = 1e-5,
  max_steps: int = 1000,
) -> OdeBits:
  """Bits/dim of 8-bit images under the ODE. With uniform dequantization it is a bound, on average over draws.

  Args:
    keys: [B], one per image, for the dequantization and the random signs of (1).
    denoiser: unclipped, with 999 t as its time input: Network(..., time=TimeScale(999 / sde.T, shift=0)).
    x_0: [B,H,W,C] of 256 grey levels on [-1, 1]. Each becomes (level + u - 128) / 128 with u uniform on [0, 1).
    first: the start time.
    tolerance: relative and absolute tolerance of each step.

  Raises:
    UserError: if an image needs more than max_steps, or if the network returns values that are not finite.
  """
  result = _ode_bits(keys, denoiser, sde, x_0, cond, first, tolerance, max_steps)
  if not np.isfinite(result.bits).all():
    raise UserError(
      f"The ODE of image {int(np.argmin(np.isfinite(result.bits)))} was not solved in {max_steps} steps; raise max_steps "
      "or the tolerance, and check that the network is unclipped and gets 999 t as its time input."
    )
  return result


@functools.partial(jax.jit, static_argnames=("sde", "max_steps"))
def _ode_bits(
  keys: jax.Array, denoiser: Denoiser, sde: VpSde, x_0: jax.Array, cond: Any, first: float, tolerance: float, max_steps: int
) -> OdeBits:
  shape = x_0.shape[1:]
  dim = x_0[0].size

  def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    dequantize, signs = jax.random.split(key)
    return jax.random.uniform(dequantize, shape), jax.random.rademacher(signs, shape, x_0.dtype)

  u, sign = jax.vmap(draw)(keys)
  x = (jnp.round((x_0 + 1) * 127.5) + u - 128) / 128

  def slope(t: jax.Array, state: jax.Array) -> jax.Array:
    def drift(x: jax.Array) -> jax.Array:
      return sde.ode(x, t, denoiser(x, sde.level(t), cond).eps)

    dx, pull = jax.vjp(drift, state[:, :dim].reshape(x.shape))
    (moved,) = pull(sign)
    return jnp.concatenate([dx.reshape(len(x), dim), (sign * moved).reshape(len(x), dim).sum(1, keepdims=True)], 1)

  begin = jnp.concatenate([x.reshape(len(x), dim), jnp.zeros((len(x), 1))], 1)
  end, steps, done = integrate(slope, begin, first, 1.0, tolerance, max_steps)
  latent = end[:, :dim]
  divergence = end[:, dim]
  log_prob = -0.5 * (latent**2 + np.log(2 * np.pi).astype(np.float32)).sum(1) + divergence
  bits = -log_prob / (dim * np.log(2).astype(np.float32)) + 7  # 7: grey levels are 1/128 apart
  return OdeBits(jnp.where(done, bits, jnp.nan), latent.reshape(x.shape), steps)


def integrate(
  slope: Callable, y: jax.Array, first: float, last: float, tolerance: float, max_steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Solves dy/dt = slope(t [B], y [B,N]) from `first` to `last` > first. Each row chooses its own steps.

  A step is accepted when the root mean square of error / (tolerance (1 + |y|)) is below 1, and the next one is
  0.9 error^(-1/5) times as long, between 1/5 and 10 (only shorter after a rejection).

  Returns:
    (y at `last`, accepted steps int32 [B], whether the row reached `last` bool [B]).
  """

  def unfinished(state: tuple[Any, ...]) -> jax.Array:
    t = state[0]
    tried = state[-1]
    return (t < last).any() & (tried < max_steps)

  def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
    t, h, y, slope_0, steps, may_grow, tried = state
    now = jnp.minimum(h, last - t)
    slopes = [slope_0]
    for c, row in zip(_C[1:], _A[1:], strict=True):
      end = y + now[:, None] * sum(float(a) * k for a, k in zip(row, slopes, strict=False) if a)
      slopes.append(slope(t + float(c) * now, end))
    error = now[:, None] * sum(float(e) * k for e, k in zip(_ERROR, slopes, strict=True) if e)
    scale = tolerance * (1 + jnp.maximum(jnp.abs(y), jnp.abs(end)))
    size = jnp.sqrt(((error / scale) ** 2).mean(1))
    accept = size < 1
    factor = jnp.clip(0.9 * jnp.maximum(size, 1e-10) ** -0.2, 0.2, jnp.where(may_grow, 10.0, 1.0))
    factor = jnp.where(jnp.isfinite(size), factor, 0.2)
    y, slope_0 = (jnp.where(accept[:, None], new, old) for new, old in ((end, y), (slopes[-1], slope_0)))
    moved = accept & (t < last)
    reached = jnp.where(now < h, last, t + now)
    return jnp.where(accept, reached, t), now * factor, y, slope_0, steps + moved, accept, tried + 1

  rows = len(y)
  t = jnp.full(rows, first)
  begin = (t, jnp.full(rows, 0.01 * (last - first)), y, slope(t, y), jnp.zeros(rows, jnp.int32), jnp.ones(rows, bool), 0)
  t, _, y, _, steps, *_ = jax.lax.while_loop(unfinished, step, begin)
  return y, steps, t >= last
