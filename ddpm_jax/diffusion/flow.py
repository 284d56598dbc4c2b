"""Statistics of a few exact trajectories of a network: those of DPM-Solver-v3, and the best levels for few steps.

Trajectories follow the probability flow in u = x / alpha, rho = sigma / alpha, with many steps of a fast solver. Along them

    l = E[eps_hat^2]                which is sigma E[d eps_hat / dx], by Stein's identity for a network that is right     (1)
    s, b                            the regression of df / dlambda on f = (1 - l) u - x0       (DPM-Solver-v3, eq. 11)   (2)
    error(t, s)                     RMS of alpha_s (u_s - u_t - (rho_s - rho_t) eps_t), the error of DDIM from t to s    (3)

df / dlambda is the difference between neighboring levels. The grid of least total error is a shortest path, as in GITS (Chen
et al. 2024, arXiv 2405.11326). The error is that of x_s, since in u nearly all steps would go to
high noise. Both work with any guidance and clipping, since the trajectories are those of the same denoiser.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from ddpm_jax.diffusion import grid as grids
from ddpm_jax.diffusion.dpm_solver import multistep
from ddpm_jax.diffusion.dpm_solver_v3 import Statistics, wide
from ddpm_jax.diffusion.noise import PerImage
from ddpm_jax.diffusion.prediction import Denoiser, Prediction
from ddpm_jax.diffusion.samplers import sample
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.diffusion.solvers import Solver
from ddpm_jax.diffusion.trajectory import shortest_path
from ddpm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
  """Means over the trajectories so far; pixels is [] or [H,W,C]."""

  levels: np.ndarray  # int [M], downwards to level 1
  count: int  # trajectories
  eps_squared: np.ndarray  # float64 [M,*pixels]
  moments: np.ndarray  # float64 [M-1,5,5,*pixels] second moments of (1, x0, u) at a level and (x0, u) at the next
  squared_error: np.ndarray  # float64 [M,M], of (3), per pixel, from level t to level s at [t, s]

  def merge(self, other: "Flow") -> "Flow":
    """The means over both sets of trajectories."""
    count = self.count + other.count
    mean = lambda a, b: a + (b - a) * (other.count / count)
    columns = {name: mean(getattr(self, name), getattr(other, name)) for name in ("eps_squared", "moments", "squared_error")}
    return dataclasses.replace(self, count=count, **columns)

  def statistics(self, schedule: Schedule) -> Statistics:
    """l, s and b of (1) and (2)."""
    log_snr = schedule.log_snr[self.levels]
    l = self.eps_squared
    step = wide(np.diff(log_snr), l)
    one = np.zeros((5, *l[1:].shape))
    one[0] = 1
    before = 0 * one  # f at a level and at the next, as combinations of the five
    after = 0 * one
    before[1] = -1
    before[2] = 1 - l[:-1]
    after[3] = -1
    after[4] = 1 - l[1:]
    mean = lambda a, b: np.einsum("jm...,mjk...,km...->m...", a, self.moments, b)
    middle = (before + after) / 2
    slope = (after - before) / step[None]
    variance = mean(middle, middle) - mean(one, middle) ** 2
    covariance = mean(middle, slope) - mean(one, middle) * mean(one, slope)
    # where f varies by less than a hundredth, rounding errors would determine the slope of a regression
    s = covariance / np.maximum(variance, 1e-4 * mean(middle, middle))
    b = mean(one, slope) - s * mean(one, middle)
    # s and b lie between the levels
    at_levels = lambda a: np.concatenate([a[:1], (a[1:] + a[:-1]) / 2, a[-1:]])
    return Statistics(log_snr, l, at_levels(s), at_levels(b))

  def grid(self, K: int) -> np.ndarray:
    """The grid [K+1] with the least total error of DDIM, from the first level of the trajectories to 1 and 0.

    Raises:
      UserError: if there are fewer levels than steps.
    """
    if not 1 <= K <= len(self.levels):
      raise UserError(f"{K} steps do not fit {len(self.levels)} measured levels: measure more, or choose another grid.")
    if K == 1:
      return np.array([self.levels[0], 0])
    upwards = np.sqrt(self.squared_error)[::-1, ::-1]
    cost = np.where(np.tri(len(upwards), k=-1, dtype=bool), upwards, np.inf)
    return np.append(self.levels[::-1][shortest_path(cost, K - 1)][::-1], 0)


def measure(
  schedule: Schedule,
  denoiser: Denoiser,
  draws: Iterable[tuple[jax.Array, tuple[int, ...], Any]],
  *,
  points: int = 60,
  per_pixel: bool = False,
) -> Iterator[Flow]:
  """Yields the means after each batch of trajectories.

  Args:
    denoiser: the one that samples will use, clipped and guided.
    draws: (keys [B], shape of an image, cond); the trajectories start at the keys' noise.
    points: steps of a trajectory, even in log-SNR.
    per_pixel: keep statistics of each pixel instead of one number per level.
  """
  grid = grids.log_snr(schedule, points)
  solver = Solver(multistep(schedule, grid, 2))
  levels = grid[:-1]
  alpha = np.sqrt(schedule.alpha_bar[levels])
  rho = np.sqrt(1 - schedule.alpha_bar[levels]) / alpha
  total = None
  for keys, shape, cond in draws:
    x_T = PerImage(keys).initial(shape)
    _, (states, x0) = sample(keys, denoiser, solver, x_T, cond, save=_state_and_x0)
    x = np.concatenate([np.asarray(x_T)[None], np.asarray(states)[:-1]])  # at the levels that steps leave
    batch = _flow(levels, x / wide(alpha, x), np.asarray(x0), rho, per_pixel)
    total = batch if total is None else total.merge(batch)
    yield total


def _flow(levels: np.ndarray, u: np.ndarray, x0: np.ndarray, rho: np.ndarray, per_pixel: bool) -> Flow:
  """The means over one batch, u and x0 [M,B,H,W,C]."""
  u = u.astype(np.float64)
  x0 = x0.astype(np.float64)
  eps = (u - x0) / wide(rho, u)
  mean = lambda a: a.mean(1) if per_pixel else a.mean(tuple(range(1, a.ndim)))
  five = [np.ones_like(u[:-1]), x0[:-1], u[:-1], x0[1:], u[1:]]
  moments = np.stack([np.stack([mean(a * b) for a in five], 1) for b in five], 1)
  alpha = 1 / np.hypot(1, rho)
  pixels = tuple(range(1, u.ndim))
  missed = lambda t: wide(alpha, u) * (u - u[t] - wide(rho - rho[t], u) * eps[t])
  error = np.array([(missed(t) ** 2).mean(pixels) for t in range(len(u))])
  return Flow(levels, u.shape[1], mean(eps**2), moments, error)


def _state_and_x0(x: jax.Array, pred: Prediction) -> tuple[jax.Array, jax.Array]:
  return x, pred.x0
