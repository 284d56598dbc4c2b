"""Predictions: the estimate of x_0 that a network's output encodes.

A *denoiser* is anything callable as (x_t, level, cond) -> Prediction. `Network` is the innermost denoiser. Clipping,
guidance and analytic moments (transforms.py, guidance.py) are denoisers that wrap a denoiser.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion.schedule import Level, like
from ddpm_jax.diffusion.steps import GaussianSteps
from ddpm_jax.errors import UserError


@struct.dataclass
class Prediction:
  """The estimate of x_0 given x_t. Arrays are [B,H,W,C] or broadcast against that shape.

  `x0` and `eps` are stored separately, because clipping may change one without the other.
  """

  x0: jax.Array  # E[x_0 | x_t]
  eps: jax.Array  # E[eps | x_t]
  eps_var: jax.Array | None = None  # Var[eps | x_t], before any clipping (Analytic-DPM, NPR, SN)
  var_frac: jax.Array | None = None  # position between log posterior (0) and log marginal (1): v of IDDPM eq. 15
  log_var: jax.Array | None = None  # of the transition itself (Ho's learned diagonal)
  eps_cov: Any = None  # Cov[eps | x_t] as an operator between pixels (jacobian.py), before any clipping

  def score(self, x_t: jax.Array, level: Level) -> jax.Array:
    """The gradient of log q(x_t), (alpha E[x_0 | x_t] - x_t) / sigma^2, which is -eps / sigma (DDPM section 3.2).

    It follows x0, so a clipped or guided x0 gives a clipped or guided score. At pure noise it is that of N(0, I).
    """
    level = like(level, x_t)
    mean = jnp.where(level.alpha > 0, level.alpha * self.x0, 0)  # an eps makes x0 infinite at pure noise
    return (mean - x_t) / level.sigma**2


Denoiser = Callable[..., Prediction]
"""(x_t [B,H,W,C], level, cond) -> Prediction."""


def x0_from_eps(eps: jax.Array, x_t: jax.Array, level: Level) -> jax.Array:
  """x_0 = (x_t - sigma eps) / alpha (DDPM eq. 15)."""
  level = like(level, x_t)
  return (x_t - level.sigma * eps) / level.alpha


def eps_from_x0(x_0: jax.Array, x_t: jax.Array, level: Level) -> jax.Array:
  """eps = (x_t - alpha x_0) / sigma."""
  level = like(level, x_t)
  return (x_t - level.alpha * x_0) / level.sigma


def finite_or(x0: jax.Array, instead: jax.Array) -> jax.Array:
  """`x0` where it is finite, else `instead`. At pure noise, an eps makes x0 infinite."""
  return jnp.where(jnp.isfinite(x0), x0, instead)


def of_level(table: jax.Array, level: Level, x_t: jax.Array) -> jax.Array:
  """The entry of `table` [T+1] or [T+1,H,W,C] for each level, shaped to broadcast against x_t [B,H,W,C]."""
  value = jnp.asarray(table)[level.n]
  if jnp.ndim(level.n):
    return like(value, x_t)
  return value[None] if jnp.ndim(value) else value


class Parameterization:
  """A parameterization: how one output of the network encodes x_0.

  Arrays are [B,H,W,C], and levels have leaves [] or [B].
  """

  channels = 1  # output channels per image channel

  def target(self, x_0: jax.Array, eps: jax.Array, level: Level) -> jax.Array:
    """What the network regresses."""
    raise NotImplementedError

  def decode(self, out: jax.Array, x_t: jax.Array, level: Level) -> Prediction:
    """The prediction that an output means, the inverse of `target`."""
    raise NotImplementedError

  def eps_per_output(self, level: Level) -> jax.Array | float:
    """The change of eps per unit of the output at a fixed x_t, which converts standard deviations. Shaped as the level."""
    raise NotImplementedError

  def input(self, x_t: jax.Array, level: Level) -> jax.Array:
    """What the network is given in place of x_t."""
    return x_t

  def split(self, out: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """(the regressed half, the second head or None)."""
    return out, None


@struct.dataclass
class Eps(Parameterization):
  """The network predicts the noise (DDPM section 3.2)."""

  def target(self, x_0: jax.Array, eps: jax.Array, level: Level) -> jax.Array:
    return eps

  def eps_per_output(self, level: Level) -> jax.Array | float:
    return 1.0

  def decode(self, out: jax.Array, x_t: jax.Array, level: Level) -> Prediction:
    return Prediction(x0_from_eps(out, x_t, level), out)


@struct.dataclass
class X0(Parameterization):
  """The network predicts the image."""

  def target(self, x_0: jax.Array, eps: jax.Array, level: Level) -> jax.Array:
    return x_0

  def eps_per_output(self, level: Level) -> jax.Array | float:
    return level.alpha / level.sigma

  def decode(self, out: jax.Array, x_t: jax.Array, level: Level) -> Prediction:
    return Prediction(out, eps_from_x0(out, x_t, level))


@struct.dataclass
class V(Parameterization):
  """The network predicts v = alpha eps - sigma x_0 (Salimans & Ho 2022, section 4)."""

  def target(self, x_0: jax.Array, eps: jax.Array, level: Level) -> jax.Array:
    level = like(level, x_0)
    return level.alpha * eps - level.sigma * x_0

  def eps_per_output(self, level: Level) -> jax.Array | float:
    return level.alpha

  def decode(self, out: jax.Array, x_t: jax.Array, level: Level) -> Prediction:
    level = like(level, x_t)
    return Prediction(level.alpha * x_t - level.sigma * out, level.sigma * x_t + level.alpha * out)


@struct.dataclass
class XPrev(Parameterization):
  """The network predicts the mean of q(x_s | x_t, x_0) = c_x0 x_0 + c_xt x_t of one chain (DDPM section 3.2).

  `x_prev(steps)` builds it for one chain. In the references clipping does not change the mean of this parameterization,
  so sample it without ClipX0.
  """

  c_x0: jax.Array  # [T+1], by level
  c_xt: jax.Array  # [T+1]

  def target(self, x_0: jax.Array, eps: jax.Array, level: Level) -> jax.Array:
    c_x0 = of_level(self.c_x0, level, x_0)
    c_xt = of_level(self.c_xt, level, x_0)
    return c_x0 * x_0 + c_xt * level.diffuse(x_0, eps)

  def eps_per_output(self, level: Level) -> jax.Array | float:
    return level.alpha / level.sigma / jnp.asarray(self.c_x0)[level.n]

  def decode(self, out: jax.Array, x_t: jax.Array, level: Level) -> Prediction:
    c_x0 = of_level(self.c_x0, level, x_t)
    c_xt = of_level(self.c_xt, level, x_t)
    x0 = (out - c_xt * x_t) / c_x0
    return Prediction(x0, eps_from_x0(x0, x_t, level))


def x_prev(steps: GaussianSteps) -> XPrev:
  """The x_{t-1} parameterization of the chain `steps` (with eta = 1)."""
  t = np.asarray(steps.t.n)
  c_x0 = np.ones(t.max() + 1, np.float32)
  c_xt = np.zeros(t.max() + 1, np.float32)
  c_x0[t] = np.sqrt(steps.c_cov)
  c_xt[t] = np.asarray(steps.c_eps) / np.asarray(steps.t.sigma)
  return XPrev(c_x0, c_xt)


MEANS: dict[str, Callable[[], Any]] = {"eps": Eps, "x0": X0, "v": V}


@struct.dataclass
class TimeScale:
  """The time input of the network for level n: scale * (n - shift), float32.

  The default is DDPM's 0-based t. IDDPM scales by 1000 / T. Analytic-DPM's CIFAR-10 networks were trained with shift 0.
  VP-SDE networks take 999 n / T.
  """

  scale: float = struct.field(pytree_node=False, default=1.0)
  shift: int = struct.field(pytree_node=False, default=1)

  def __call__(self, n: jax.Array) -> jax.Array:
    return jnp.asarray(n - self.shift, jnp.float32) * jnp.float32(self.scale)


@struct.dataclass
class Network:
  """A network with its weights, as a denoiser.

  apply(params, x [B,H,W,C], time [B], cond) -> [B,H,W,C] or, with two heads, [B,H,W,2C]. It must compare equal from
  call to call, or every call compiles again. A function or a bound method of a Flax module compares equal.
  """

  params: Any
  apply: Callable = struct.field(pytree_node=False)
  parameterization: Any = Eps()
  time: Any = TimeScale()

  def output(self, x_t: jax.Array, level: Level, cond: Any = None) -> jax.Array:
    """The raw output at x_t [B,H,W,C]. `level` has leaves [] or [B].

    Raises:
      UserError: if the number of output channels is not the one that the parameterization expects.
    """
    x = self.parameterization.input(x_t, level)
    out = self.apply(self.params, x, jnp.broadcast_to(self.time(level.n), x_t.shape[:1]), cond)
    expected = self.parameterization.channels * x_t.shape[-1]
    if out.shape[-1] != expected:
      raise UserError(
        f"The network gives {out.shape[-1]} channels for images of {x_t.shape[-1]}, but the parameterization "
        f"{type(self.parameterization).__name__} needs {expected}; change one of them."
      )
    return out

  def __call__(self, x_t: jax.Array, level: Level, cond: Any = None) -> Prediction:
    return self.parameterization.decode(self.output(x_t, level, cond), x_t, level)
