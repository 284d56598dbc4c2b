"""Fast solvers of the probability flow: what DPM-Solver++, UniPC and Heun have in common.

With lambda = log(alpha / sigma), the way from level t to level s is an integral over beliefs (DPM-Solver++ eq. 8),

    x_s = sigma_s / sigma_t x_t + sigma_s int_{lambda_t}^{lambda_s} e^lambda x0(lambda) dlambda,     h = lambda_s - lambda_t

and every solver replaces x0(lambda) by something between beliefs that it has. Were x0 constant, the integral would give

    x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) x0,                                                            (1)

which is DDIM. The others add differences of beliefs to it. So a step is a weighted sum, whose weights depend on the
levels alone: a table (dpm_solver.py, unipc.py, heun.py), and one sampler here that runs them all. On the step into level
0, where h is infinite, (1) is the belief itself, and it is what all of them do there.

Beliefs are x0 as the denoiser gives it, clipped and guided; second heads are not asked.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion.schedule import Level, Schedule


@struct.dataclass
class SolverSteps:
  """Rows of a solver: leaves [K], or [K,M] with the weights of this row's belief x0_0 and of older rows' x0_1, x0_2 ...

  A row asks the network once, at (x, t), and computes from an anchor a, which is x_T at first,

      a <- anchor_x x + anchor_a a + sum_j anchor_x0[j] x0_j             (2)     where the step starts
      x <- next_a a + sum_j next_x0[j] x0_j + std z                      (3)     where it ends, at level s

  A multistep solver starts at x; a single-step solver starts twice at the same anchor; a corrector first computes x_t
  anew from the last anchor, when x0(x_t) is known.
  """

  t: Level
  s: Level  # t itself on the rows of Heun that only correct
  anchor_x: np.ndarray
  anchor_a: np.ndarray
  anchor_x0: np.ndarray
  next_a: np.ndarray
  next_x0: np.ndarray
  left: np.ndarray  # int32, how many rows follow
  std: np.ndarray | None = None  # None: no noise is drawn

  @property
  def stream(self) -> np.ndarray:
    """Which noise a row draws; see noise.PerImage."""
    return self.t.n

  def rounded(self, dtype: Any) -> "SolverSteps":
    """The weights in `dtype`."""
    names = ("anchor_x", "anchor_a", "anchor_x0", "next_a", "next_x0", "std")
    columns = {name: getattr(self, name) for name in names}
    return self.replace(**{name: column if column is None else column.astype(dtype) for name, column in columns.items()})


@struct.dataclass
class Solver:
  """The sampler of every table in this family; a row is an evaluation of the denoiser."""

  steps: SolverSteps

  def init(self, x_T):
    kept = max(self.steps.anchor_x0.shape[-1], self.steps.next_x0.shape[-1]) - 1
    return x_T, x_T, (jnp.zeros_like(x_T),) * kept

  def step(self, noise, state, row, denoise, cond):
    x, anchor, older = state
    pred = denoise(x, row.t, cond)
    beliefs = (pred.x0, *older)
    anchor = row.anchor_x * x + row.anchor_a * anchor + _weighted(row.anchor_x0, beliefs)
    x = row.next_a * anchor + _weighted(row.next_x0, beliefs)
    if row.std is not None:
      x = x + row.std * noise(row, x)
    return (x, anchor, beliefs[:-1]), pred

  def image(self, state):
    return state[0]


def first_order(schedule: Schedule, t: np.ndarray, s: np.ndarray, *, anchor: int = 0, beliefs: int = 1) -> SolverSteps:
  """Rows of (1) from levels t [K] to levels s [K] in float64, all weights of further beliefs being 0.

  anchor, beliefs: how many beliefs (2) and (3) have room for.
  """
  sigma = np.sqrt(1 - schedule.alpha_bar)
  anchor_x0, next_x0 = np.zeros((len(t), anchor)), np.zeros((len(t), beliefs))
  next_x0[:, 0] = np.sqrt(schedule.alpha_bar[s]) * -np.expm1(schedule.log_snr[t] - schedule.log_snr[s])
  return SolverSteps(
    schedule.level(t),
    schedule.level(s),
    anchor_x=np.ones(len(t)),
    anchor_a=np.zeros(len(t)),
    anchor_x0=anchor_x0,
    next_a=sigma[s] / sigma[t],
    next_x0=next_x0,
    left=np.arange(len(t), dtype=np.int32)[::-1],
  )


def orders(log_snr: np.ndarray, order: int, lower_order_final: bool) -> np.ndarray:
  """How many beliefs each step of a multistep solver interpolates, int [K], at levels of these log_snr [K+1].

  As many as `order`, but no more than there are yet, as in all official codes; and with lower_order_final no more than
  steps are left: 2, 1 at the end. (UniPC's code does that always, DPM-Solver++'s when there are fewer than 10 steps.) A
  level of infinite log-SNR, an image or pure noise, is no point between which to interpolate.
  """
  finite = np.isfinite(log_snr)
  result = np.minimum(order, np.cumsum(finite)[:-1])
  if lower_order_final:
    result = np.minimum(result, np.arange(len(result), 0, -1))
  return np.where(finite[1:], np.maximum(result, 1), 1)


def _weighted(weights, beliefs):
  return sum(weight * x0 for weight, x0 in zip(weights, beliefs, strict=False))
