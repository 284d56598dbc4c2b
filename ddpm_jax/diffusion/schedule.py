"""Noise levels and the noise schedules of the DDPM family.

    q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I),        alpha_t^2 + sigma_t^2 = 1           (DDPM eq. 4)

Levels are counted by n: 0 is the image, T is noise. The papers' beta_n takes level n - 1 to level n, so that
alpha_bar[n] = alpha_n^2 = (1 - beta_1) ... (1 - beta_n) and alpha_bar[0] = 1. Schedules are float64 arrays on the host.
Only finished coefficients are converted to float32.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.errors import UserError


@struct.dataclass
class Level:
  """One or more noise levels. Leaves are [] in a scan, [B] in training, and [K] in a table."""

  n: jax.Array  # int32, 0 = data ... T = noise
  alpha: jax.Array  # float32, the factor on x_0
  sigma: jax.Array  # float32, standard deviation of the noise

  def diffuse(self, x_0: jax.Array, eps: jax.Array) -> jax.Array:
    """x_t = alpha x_0 + sigma eps, shaped as x_0."""
    level = like(self, x_0)
    return level.alpha * x_0 + level.sigma * eps


def like(tree: Any, x: jax.Array) -> Any:
  """`tree` with its [B] leaves reshaped to [B,1,...,1], so that they broadcast against x [B,...]. Scalars stay scalars."""
  return jax.tree.map(lambda a: jnp.reshape(a, jnp.shape(a) + (1,) * (x.ndim - jnp.ndim(a))) if jnp.ndim(a) else a, tree)


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
  """The noise levels 0 ... T of a forward process. It lives on the host and is never traced."""

  alpha_bar: np.ndarray  # float64 [T+1], alpha_bar[0] = 1, decreasing

  @property
  def T(self) -> int:
    """The last level."""
    return len(self.alpha_bar) - 1

  @property
  def betas(self) -> np.ndarray:
    """float64 [T]; betas[i] takes level i to level i + 1."""
    return 1 - self.alpha_bar[1:] / self.alpha_bar[:-1]

  @property
  def log_snr(self) -> np.ndarray:
    """log(alpha / sigma), float64 [T+1], half the log of the signal-to-noise ratio. It decreases from infinity."""
    with np.errstate(divide="ignore"):
      return 0.5 * (np.log(self.alpha_bar) - np.log1p(-self.alpha_bar))

  @property
  def noise_to_signal(self) -> np.ndarray:
    """sigma / alpha, float64 [T+1], EDM's sigma. It increases from 0, and is infinite at pure noise."""
    with np.errstate(divide="ignore"):
      return np.sqrt(1 / self.alpha_bar - 1)

  def level(self, n: Any) -> Level:
    """The levels n: host constants for NumPy integers, a gather for a traced n."""
    table = Level(
      np.arange(self.T + 1, dtype=np.int32),
      np.sqrt(self.alpha_bar).astype(np.float32),
      np.sqrt(1 - self.alpha_bar).astype(np.float32),
    )
    if isinstance(n, jax.Array):
      return jax.tree.map(lambda column: jnp.asarray(column)[n], table)
    return jax.tree.map(lambda column: column[np.asarray(n)], table)


def from_betas(betas: np.ndarray) -> Schedule:
  """The schedule with these forward variances, float64 [T].

  Raises:
    UserError: unless every 0 < beta <= 1.
  """
  betas = np.asarray(betas, np.float64)
  if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas <= 1)).all():
    bad = betas[~((betas > 0) & (betas <= 1))]
    raise UserError(
      f"betas must be a non-empty list with 0 < beta <= 1, but this one has shape {betas.shape} and "
      f"{len(bad)} values out of range, such as {bad[:3]}. With linear(), choose T > 20 or give other ends."
    )
  return Schedule(np.append(1.0, np.cumprod(1 - betas)))


def linear(T: int = 1000, start: float | None = None, end: float | None = None) -> Schedule:
  """Equally spaced betas (DDPM section 4).

  Without ends this is OpenAI's form: 1e-4 ... 0.02 scaled by 1000 / T, so that the last level has about the same noise
  for every T. With ends it is Ho's form, exactly start ... end. The two agree at T = 1000.
  """
  return from_betas(np.linspace(*_ends(T, start, end), T))


def quad(T: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
  """Betas whose square roots are equally spaced (Ho's code and the DDIM code)."""
  return from_betas(np.linspace(start**0.5, end**0.5, T) ** 2)


def const(T: int = 1000, end: float = 0.02) -> Schedule:
  """Constant betas."""
  return from_betas(np.full(T, end))


def jsd(T: int = 1000) -> Schedule:
  """Betas 1/T, 1/(T-1), ..., 1/2, 1 (Sohl-Dickstein 2015): alpha_bar falls in equal steps to exactly 0.

  Level T is pure noise, where eps does not determine x_0. Predict x_0 or v.
  """
  return from_betas(1 / np.linspace(T, 1, T))


def warmup(T: int = 1000, fraction: float = 0.1, start: float = 1e-4, end: float = 0.02) -> Schedule:
  """Betas that rise linearly over the first `fraction` of the levels and then stay constant (Ho's warmup10 and warmup50)."""
  betas = np.full(T, end)
  rising = int(T * fraction)
  betas[:rising] = np.linspace(start, end, rising)
  return from_betas(betas)


def sigmoid(T: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
  """Betas that follow the logistic function from -6 to 6 (DDIM code)."""
  return from_betas(start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, T))))


def cosine(T: int = 1000, max_beta: float = 0.999) -> Schedule:
  """alpha_bar that follows a squared cosine with offset s = 0.008 (IDDPM eq. 17), as in IDDPM's code.

  The betas are clipped at `max_beta`, so the last alpha_bar is small but not 0.
  """
  f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
  return from_betas(np.minimum(1 - f[1:] / f[:-1], max_beta))


def logistic(T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999) -> Schedule:
  """alpha_bar that follows a logistic function of the level (Jabri et al. 2022, arXiv 2212.11972, figure 8).

  It is 1 / (1 + exp(u / tau)) for u in even steps from `start` to `end`, scaled to begin at 1 and to end at 0. The betas are
  clipped at `max_beta`. `sigmoid` is another schedule, whose betas follow the logistic function.
  """
  rising = 1 / (1 + np.exp(-np.linspace(start, end, T + 1) / tau))
  last = np.float64(np.float32(rising[-1]))  # as lucidrains' code rounds it; without it the last betas differ by 1e-5
  f = last - rising
  return from_betas(np.minimum(1 - f[1:] / f[:-1], max_beta))


def karras(T: int = 18, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
  """Levels with sigma / alpha from sigma_min to sigma_max, even in the power 1 / rho (EDM eq. 5).

  In EDM's sigma, alpha is 1 / sqrt(1 + sigma^2). These are its sampling steps, for networks that are told sigma itself
  (preconditioning.py).
  """
  if not 0 < sigma_min < sigma_max or not rho > 0:
    raise UserError(f"karras() needs 0 < sigma_min < sigma_max and rho > 0, not {sigma_min:g}, {sigma_max:g} and {rho:g}.")
  sigma = np.linspace(sigma_min ** (1 / rho), sigma_max ** (1 / rho), T) ** rho
  return Schedule(np.append(1.0, 1 / (1 + sigma**2)))


def zero_snr(T: int = 1000, base: str = "linear", start: float | None = None, end: float | None = None) -> Schedule:
  """The schedule `base`, shifted and scaled so that level T is pure noise (Lin et al. 2024, algorithm 1).

  The square roots of alpha_bar lose their last value and are scaled to keep their first. As with `jsd`, predict x_0 or v.

  Args:
    base: the name of another schedule.
    start, end: its ends, where it takes them; None for its defaults.
  """
  if base not in SCHEDULES or base in ("zero_snr", "from_betas", "karras", "vp_sde"):
    raise UserError(f"schedule.base = {base!r} has no zero-terminal form; use linear, quad, cosine, sigmoid or const.")
  ends = {name: value for name, value in (("start", start), ("end", end)) if value is not None}
  root = np.sqrt(SCHEDULES[base](T, **ends).alpha_bar)
  shifted = (root[1:] - root[-1]) * root[1] / (root[1] - root[-1])
  return Schedule(np.append(1.0, shifted**2))


def vp_sde(T: int = 1000, start: float = 0.1, end: float = 20.0) -> Schedule:
  """Levels t = n / T of the variance-preserving SDE with beta(t) = start + (end - start) t (score_sde eq. 32).

  Networks of that SDE receive 999 t as their time, which is TimeScale(999 / T, shift=0). With T = 100,000 the levels
  approximate continuous time, 1e-5 <= t <= 1, in training.
  """
  return Schedule(np.exp(-vp_integral(np.linspace(0, 1, T + 1), start, end)))


def vp_integral(t: Any, start: float = 0.1, end: float = 20.0) -> Any:
  """The integral of beta from 0 to t. alpha_bar(t) is the exponential of its negative (sde.py)."""
  return start * t + 0.5 * (end - start) * t**2


SCHEDULES: dict[str, Callable[..., Schedule]] = {
  "linear": linear,
  "quad": quad,
  "const": const,
  "jsd": jsd,
  "warmup": warmup,
  "sigmoid": sigmoid,
  "cosine": cosine,
  "logistic": logistic,
  "karras": karras,
  "zero_snr": zero_snr,
  "vp_sde": vp_sde,
  "from_betas": from_betas,
}


def _ends(T: int, start: float | None, end: float | None) -> tuple[float, float]:
  if (start is None) != (end is None):
    raise UserError(f"linear() takes both ends or neither, not start={start} and end={end}.")
  scale = 1000 / T
  return (scale * 1e-4, scale * 0.02) if start is None else (start, end)
