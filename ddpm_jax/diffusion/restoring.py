"""Restoring images from linear measurements, y = A x_0 + s z with white noise z.

A denoiser that knows y has the score of p(x_t | y), which is that of p(x_t) plus

    grad log p(y | x_t)  ~  (d x0_hat / d x_t)^T A^T (s^2 I + A Cov[x_0 | x_t] A^T)^-1 (y - A x0_hat)              (1)

exactly so for Gaussian data. The methods differ in the covariance that they use:

| covariance                 | Cov[x_0 given x_t]                       | method                                     |
|----------------------------|------------------------------------------|--------------------------------------------|
| `known`                    | 0                                        | DPS (Chung et al. 2023), with step size 1  |
| `unit_gaussian`            | sigma_t^2 I                              | PiGDM (Song et al. 2023)                   |
| `believed`, with eps_var   | diagonal: moments, a head, the Jacobian  | TMPD (Boys et al. 2023)                    |
| `believed`, with eps_cov   | (sigma_t^2 / alpha_t) d x0_hat / d x_t   | MMPS (Rozet et al. 2024)                   |

The system in (1) is solved by conjugate gradients, so that A is needed only as a function.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion.lanczos import Diagonal, Operator
from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.diffusion.schedule import Level, like
from ddpm_jax.errors import UserError

# ---------------------------------------------------------------- measurements


@struct.dataclass
class Mask:
  """Known pixels. The others are measured as 0."""

  known: jax.Array  # float32 0 or 1, broadcasts against the images [B,H,W,C]

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.known * x


@struct.dataclass
class Separable:
  """One matrix along the height, one along the width: blur, downsampling."""

  rows: jax.Array  # [h,H]
  columns: jax.Array  # [w,W]

  def __call__(self, x: jax.Array) -> jax.Array:
    return jnp.einsum("hH,wW,bHWc->bhwc", self.rows, self.columns, x)


@struct.dataclass
class Grey:
  """The mean over the channels."""

  def __call__(self, x: jax.Array) -> jax.Array:
    return x.mean(-1, keepdims=True)


@struct.dataclass
class Function:
  """A user-defined function, (x [B,H,W,C]) -> y [B,...]. It must compare equal from call to call."""

  function: Callable = struct.field(pytree_node=False)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.function(x)


def blur(height: int, width: int, std: float) -> Separable:
  """Gaussian blur with this standard deviation in pixels. Weights beyond the border are left out."""

  def matrix(size: int) -> np.ndarray:
    weights = np.exp(-0.5 * ((np.arange(size)[:, None] - np.arange(size)) / std) ** 2)
    return np.float32(weights / weights.sum(1, keepdims=True))

  return Separable(matrix(height), matrix(width))


def downsample(height: int, width: int, factor: int) -> Separable:
  """Means over blocks of factor x factor pixels."""
  if factor < 1 or height % factor or width % factor:
    raise UserError(f"Images of {height}x{width} cannot be reduced by the factor {factor}; use a divisor of both sides.")

  def matrix(size: int) -> np.ndarray:
    return np.float32(np.kron(np.eye(size // factor), np.full((1, factor), 1 / factor)))

  return Separable(matrix(height), matrix(width))


def check_linear(operator: Callable, shape: tuple[int, ...]) -> None:
  """Raises UserError unless `operator` is a linear function of single images of this shape [H,W,C]."""
  x, y = np.random.default_rng(0).normal(size=(2, 2, *shape)).astype(np.float32)
  try:
    both = np.asarray(operator(x - 2 * y))
    apart = np.asarray(operator(x)) - 2 * np.asarray(operator(y))
    alone = np.asarray(operator(x[:1]))
  except (TypeError, ValueError) as error:
    reason = str(error).splitlines()[0][:120]
    raise UserError(f"The operator fails on images of shape {(2, *shape)}: {reason}. It takes [B,H,W,C].") from error
  tolerance = 1e-3 * (1 + np.abs(apart).max())  # float32, with room for long sums
  if both.shape != apart.shape or len(both) != 2 or not np.abs(both - apart).max() <= tolerance:
    raise UserError("The operator is not linear: A(x - 2 y) differs from A(x) - 2 A(y). Leave out clips, shifts and noise.")
  if not np.abs(alone - np.asarray(operator(x))[:1]).max() <= tolerance:
    raise UserError("The operator mixes the images of a batch; it must act on each image of [B,H,W,C] on its own.")


def transpose(operator: Callable, x: jax.Array, y: jax.Array) -> jax.Array:
  """A^T y, shaped as x, for the linear function A."""
  return jax.vjp(operator, jnp.zeros_like(x))[1](y)[0]


# ---------------------------------------------------------------- the covariance of x_0


@struct.dataclass
class Scaled:
  """A covariance operator times a number."""

  factor: jax.Array
  inner: Operator

  def times(self, v: jax.Array) -> jax.Array:
    return self.factor * self.inner.times(v)


def known(pred: Prediction, level: Level) -> Operator:
  """No uncertainty about x_0."""
  return Diagonal(jnp.zeros(()))


def unit_gaussian(pred: Prediction, level: Level) -> Operator:
  """The uncertainty about unit Gaussian data, sigma_t^2."""
  return Diagonal(like(level, pred.x0).sigma ** 2)


def believed(pred: Prediction, level: Level) -> Operator:
  """The denoiser's own estimate, with all correlations if it fills eps_cov."""
  level = like(level, pred.x0)
  factor = (level.sigma / level.alpha) ** 2
  if pred.eps_cov is not None:
    return Scaled(factor, pred.eps_cov)
  if pred.eps_var is not None:
    return Diagonal(factor * jnp.maximum(pred.eps_var, 0.0))
  raise UserError(
    "This network has no estimate of its variance: measure moments with ddpm-jax moments, or use the covariance full."
  )


# ---------------------------------------------------------------- the denoiser


@struct.dataclass
class Restore:
  """A denoiser of images of which a linear measurement is known, by (1).

  Attributes:
    inner: the denoiser, unclipped.
    operator: A, a pytree.
    y: the measurements, one per image.
    noise: s, the standard deviation of the noise in y.
    covariance: `known`, `unit_gaussian` or `believed`.
    iterations: of conjugate gradients.
  """

  inner: Any
  operator: Callable
  y: jax.Array
  noise: jax.Array
  covariance: Callable = struct.field(pytree_node=False, default=believed)
  iterations: int = struct.field(pytree_node=False, default=10)

  def __call__(self, x_t: jax.Array, level: Level, cond: Any = None) -> Prediction:
    pred = self.inner(x_t, level, cond)
    cov = self.covariance(pred, level)

    def system(u: jax.Array) -> jax.Array:
      return self.noise**2 * u + self.operator(cov.times(transpose(self.operator, x_t, u)))

    u = conjugate_gradients(system, self.y - self.operator(pred.x0), self.iterations)
    _, pull = jax.vjp(lambda x: self.inner(x, level, cond).x0, x_t)
    (gradient,) = pull(transpose(self.operator, x_t, u))
    wide = like(level, x_t)
    return pred.replace(x0=pred.x0 + wide.sigma**2 / wide.alpha * gradient, eps=pred.eps - wide.sigma * gradient)


def conjugate_gradients(system: Callable, b: jax.Array, iterations: int) -> jax.Array:
  """The solution u of system(u) = b for each image, shaped as b [B,...].

  An image stops when its residual is 1e-6 of b, or when the system turns out not to be positive definite, as the Jacobian of
  an imperfect network may not be.
  """

  def dot(a: jax.Array, c: jax.Array) -> jax.Array:
    return (a * c).sum(tuple(range(1, b.ndim)), keepdims=True)

  def iterate(_: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    u, rest, direction, size = state
    product = system(direction)
    curvature = dot(direction, product)
    go = (curvature > 0) & (size > 1e-12 * whole)
    step = jnp.where(go, size / jnp.where(go, curvature, 1.0), 0.0)
    u = u + step * direction
    rest = rest - step * product
    after = dot(rest, rest)
    direction = jnp.where(go, rest + after / jnp.where(go, size, 1.0) * direction, direction)
    return u, rest, direction, jnp.where(go, after, size)

  whole = dot(b, b)
  return jax.lax.fori_loop(0, iterations, iterate, (jnp.zeros_like(b), b, b, whole))[0]
