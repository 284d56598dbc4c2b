"""Beliefs: what a network's output says about x_0.

A *denoiser* is anything callable as (x_t, level, cond) -> Prediction. `Network` is the innermost one; clipping,
guidance and analytic moments (transforms.py, guidance.py) are denoisers that hold a denoiser.
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
  """What is believed about x_0 after seeing x_t; arrays are [B,H,W,C] or broadcast against that.

  `x0` and `eps` stand side by side, because clipping may move one without the other.
  """

  x0: jax.Array  # E[x_0 | x_t]
  eps: jax.Array  # E[eps | x_t]
  eps_var: jax.Array | None = None  # Var[eps | x_t], before any clipping (Analytic-DPM, NPR, SN)
  var_frac: jax.Array | None = None  # position between log posterior (0) and log marginal (1): v of IDDPM eq. 15
  log_var: jax.Array | None = None  # of the transition itself (Ho's learned diagonal)


def x0_from_eps(eps: jax.Array, x_t: jax.Array, level: Level) -> jax.Array:
  """x_0 = (x_t - sigma eps) / alpha (DDPM eq. 15)."""
  level = like(level, x_t)
  return (x_t - level.sigma * eps) / level.alpha


def eps_from_x0(x_0: jax.Array, x_t: jax.Array, level: Level) -> jax.Array:
  """eps = (x_t - alpha x_0) / sigma."""
  level = like(level, x_t)
  return (x_t - level.alpha * x_0) / level.sigma


class _Mean:
  """A parameterization: how one output of the network encodes x_0.

  `target(x_0, eps, level)` is what the network regresses; `decode(out, x_t, level)` inverts it; `eps_per_output(level)`
  is how far eps moves, at the same x_t, when the output moves by 1: standard deviations convert by it.
  """

  channels = 1  # output channels per image channel

  def split(self, out: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """(the regressed half, the second head or None)."""
    return out, None


@struct.dataclass
class Eps(_Mean):
  """The network predicts the noise (DDPM section 3.2)."""

  def target(self, x_0, eps, level):
    return eps

  def eps_per_output(self, level):
    return 1.0

  def decode(self, out, x_t, level):
    return Prediction(x0_from_eps(out, x_t, level), out)


@struct.dataclass
class X0(_Mean):
  """The network predicts the image."""

  def target(self, x_0, eps, level):
    return x_0

  def eps_per_output(self, level):
    return level.alpha / level.sigma

  def decode(self, out, x_t, level):
    return Prediction(out, eps_from_x0(out, x_t, level))


@struct.dataclass
class V(_Mean):
  """The network predicts v = alpha eps - sigma x_0 (Salimans & Ho 2022, section 4)."""

  def target(self, x_0, eps, level):
    level = like(level, x_0)
    return level.alpha * eps - level.sigma * x_0

  def eps_per_output(self, level):
    return level.alpha

  def decode(self, out, x_t, level):
    level = like(level, x_t)
    return Prediction(level.alpha * x_t - level.sigma * out, level.sigma * x_t + level.alpha * out)


@struct.dataclass
class XPrev(_Mean):
  """The network predicts the mean of q(x_s | x_t, x_0) = c_x0 x_0 + c_xt x_t of one chain (DDPM section 3.2).

  Built by `x_prev(steps)` for the chain at hand. In the references clipping does not move this model's mean: sample
  it without ClipX0.
  """

  c_x0: jax.Array  # [T+1], by level
  c_xt: jax.Array  # [T+1]

  def _at(self, level, x):
    return like((jnp.asarray(self.c_x0)[level.n], jnp.asarray(self.c_xt)[level.n]), x)

  def target(self, x_0, eps, level):
    c_x0, c_xt = self._at(level, x_0)
    return c_x0 * x_0 + c_xt * level.diffuse(x_0, eps)

  def eps_per_output(self, level):
    return level.alpha / level.sigma / jnp.asarray(self.c_x0)[level.n]

  def decode(self, out, x_t, level):
    c_x0, c_xt = self._at(level, x_t)
    x0 = (out - c_xt * x_t) / c_x0
    return Prediction(x0, eps_from_x0(x0, x_t, level))


def x_prev(steps: GaussianSteps) -> XPrev:
  """The x_{t-1} parameterization of the chain `steps` (with eta = 1)."""
  t, top = np.asarray(steps.t.n), int(np.max(steps.t.n))
  c_x0, c_xt = np.ones(top + 1, np.float32), np.zeros(top + 1, np.float32)
  c_x0[t] = np.sqrt(steps.c_cov)
  c_xt[t] = np.asarray(steps.c_eps) / np.asarray(steps.t.sigma)
  return XPrev(c_x0, c_xt)


@struct.dataclass
class TwoHeads:
  """A network with twice the channels: the mean, and a second head that says how sure it is.

  kind: "range" (IDDPM eq. 15: v in [-1, 1] between the two log-variances), "log_var" (the log-variance itself),
    "residual" (NPR-DPM: E[(y - out)^2], y what the first head regresses) or "second_moment" (SN-DPM: E[y^2]).
  """

  mean: Any
  kind: str = struct.field(pytree_node=False)

  channels = 2

  def target(self, x_0, eps, level):
    return self.mean.target(x_0, eps, level)

  def split(self, out):
    mean, second = jnp.split(out, 2, axis=-1)
    return mean, second

  def decode(self, out, x_t, level):
    mean, second = self.split(out)
    prediction = self.mean.decode(mean, x_t, level)
    match self.kind:
      case "range":
        return prediction.replace(var_frac=(second + 1) / 2)
      case "log_var":
        return prediction.replace(log_var=second)
      case "residual":
        return prediction.replace(eps_var=second * like(self.mean.eps_per_output(level), x_t) ** 2)
      case "second_moment":
        return prediction.replace(eps_var=(second - mean**2) * like(self.mean.eps_per_output(level), x_t) ** 2)
    raise UserError(f"Second head {self.kind!r} is unknown; choose one of {', '.join(SECOND_HEADS)}.")


MEANS: dict[str, Callable[[], Any]] = {"eps": Eps, "x0": X0, "v": V}
SECOND_HEADS = ("range", "log_var", "residual", "second_moment")


@struct.dataclass
class TimeScale:
  """What the network is told of level n: scale * (n - shift), float32.

  The default is DDPM's 0-based t. IDDPM scales by 1000 / T; Analytic-DPM's CIFAR-10 networks were trained with shift 0;
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
  call to call (a function or a bound method of a Flax module does), or everything is compiled anew.
  """

  params: Any
  apply: Callable = struct.field(pytree_node=False)
  parameterization: Any = Eps()
  time: TimeScale = TimeScale()

  def output(self, x_t: jax.Array, level: Level, cond: Any = None) -> jax.Array:
    """The raw output at x_t [B,H,W,C]; `level` has leaves [] or [B].

    Raises:
      UserError: if it has other channels than the parameterization expects.
    """
    out = self.apply(self.params, x_t, jnp.broadcast_to(self.time(level.n), x_t.shape[:1]), cond)
    expected = self.parameterization.channels * x_t.shape[-1]
    if out.shape[-1] != expected:
      raise UserError(
        f"The network gives {out.shape[-1]} channels for images of {x_t.shape[-1]}, but the parameterization "
        f"{type(self.parameterization).__name__} needs {expected}; change one of them."
      )
    return out

  def __call__(self, x_t: jax.Array, level: Level, cond: Any = None) -> Prediction:
    return self.parameterization.decode(self.output(x_t, level, cond), x_t, level)
