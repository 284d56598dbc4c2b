"""The sampler and the step table that all fast solvers of the probability flow share.

With lambda = log(alpha / sigma), the step from level t to level s integrates predictions of x_0 (DPM-Solver++ eq. 8),

    x_s = sigma_s / sigma_t x_t + sigma_s int_{lambda_t}^{lambda_s} e^lambda x0(lambda) dlambda,     h = lambda_s - lambda_t

and every solver approximates x0(lambda) from the predictions that it has. A constant x0 gives

    x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) x0,                                                            (1)

which is DDIM. The other solvers add differences of predictions. A step is therefore a weighted sum whose weights depend
only on the levels. Each solver is a table of weights (dpm_solver.py, unipc.py, heun.py, ...), and `Solver` runs them
all. On the step into level 0, where h is infinite, (1) is the prediction itself, and every solver takes that step.

Predictions are x0 as the denoiser returns it, clipped and guided. Second heads are not used. Solvers that interpolate
something else, such as the noise (adams.py), keep y = kept_x x + kept_x0 x0 in place of x0.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion.noise import Noise
from ddpm_jax.diffusion.prediction import Denoiser, Prediction
from ddpm_jax.diffusion.schedule import Level, Schedule


@struct.dataclass
class SolverSteps:
  """Rows of a solver. Leaves are [K], or [K,M] with the weights of this row's prediction x0_0 and of older ones, x0_1 ...

  A row evaluates the network once, at (x, t), and computes from an anchor a, which is x_T at first,

      a <- anchor_x x + anchor_a a + sum_j anchor_x0[j] x0_j             (2)     where the step starts
      x <- next_a a + sum_j next_x0[j] x0_j + std z                      (3)     where it ends, at level s

  where x0_j is y_j if the table has `kept_x`. Weights may also be one per pixel, [K,H,W,C] and [K,M,H,W,C].
  Where eps and x0 are those of two predictions (CFG++), y also has kept_eps times eps, and (3) next_pred times x0.

  A multistep solver starts at x. A single-step solver starts twice from the same anchor. A corrector first recomputes x_t
  from the last anchor, now that x0(x_t) is known.
  """

  t: Level
  s: Level  # Heun: rows that only correct have s = t
  anchor_x: np.ndarray
  anchor_a: np.ndarray
  anchor_x0: np.ndarray
  next_a: np.ndarray
  next_x0: np.ndarray
  left: np.ndarray  # int32, how many rows follow this one
  std: np.ndarray | None = None  # None: no noise is drawn
  kept_x: np.ndarray | None = None  # None: rows keep x0
  kept_x0: np.ndarray | None = None
  kept_eps: np.ndarray | None = None
  next_pred: np.ndarray | None = None
  anchor_bias: np.ndarray | None = None  # added to (2) and (3)
  next_bias: np.ndarray | None = None

  @property
  def stream(self) -> np.ndarray:
    """The noise stream of each row; see noise.PerImage."""
    return self.t.n

  def rounded(self, dtype: Any) -> "SolverSteps":
    """The table with its weights in `dtype`."""
    names = [name for name in vars(self) if name not in ("t", "s", "left")]
    columns = {name: getattr(self, name) for name in names}
    return self.replace(**{name: column if column is None else column.astype(dtype) for name, column in columns.items()})


State = tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]  # x, the anchor, and the older predictions, newest first


@struct.dataclass
class Solver:
  """The sampler that runs any table of SolverSteps. A row is one evaluation of the denoiser."""

  steps: SolverSteps

  def init(self, x_T: jax.Array) -> State:
    kept = max(self.steps.anchor_x0.shape[1], self.steps.next_x0.shape[1]) - 1
    return x_T, x_T, (jnp.zeros_like(x_T),) * kept

  def step(self, noise: Noise, state: State, row: SolverSteps, denoise: Denoiser, cond: Any) -> tuple[State, Prediction]:
    x, anchor, older = state
    pred = denoise(x, row.t, cond)
    newest = pred.x0
    if row.kept_x is not None and row.kept_x0 is not None:
      newest = row.kept_x * x + row.kept_x0 * pred.x0
    if row.kept_eps is not None:
      newest = newest + row.kept_eps * pred.eps
    predictions = (newest, *older)
    anchor = row.anchor_x * x + row.anchor_a * anchor + _weighted(row.anchor_x0, predictions)
    if row.anchor_bias is not None:
      anchor = anchor + row.anchor_bias
    x = row.next_a * anchor + _weighted(row.next_x0, predictions)
    if row.next_pred is not None:
      x = x + row.next_pred * pred.x0
    if row.next_bias is not None:
      x = x + row.next_bias
    if row.std is not None:
      x = x + row.std * noise(row, x)
    return (x, anchor, predictions[:-1]), pred

  def image(self, state: State) -> jax.Array:
    return state[0]


def first_order(schedule: Schedule, t: np.ndarray, s: np.ndarray, *, anchor: int = 0, predictions: int = 1) -> SolverSteps:
  """Rows of (1) from levels t [K] to levels s [K] in float64. The weights of older predictions are 0.

  anchor, predictions: the number of predictions in (2) and (3).
  """
  sigma = np.sqrt(1 - schedule.alpha_bar)
  anchor_x0 = np.zeros((len(t), anchor))
  next_x0 = np.zeros((len(t), predictions))
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


def orders(log_snr: np.ndarray, order: int, lower_order_final: bool, *, image: bool = False) -> np.ndarray:
  """The number of predictions that each step of a multistep solver interpolates, int [K], at levels of these log_snr [K+1].

  It is `order`, but at most the number of predictions so far, as in all official codes. With lower_order_final it is also
  at most the number of steps left: 2, then 1, at the end. (UniPC's code always does this, DPM-Solver++'s with fewer than 10
  steps.) Predictions at levels of infinite log-SNR, images or pure noise, cannot be interpolated. With `image`, a step into
  level 0 is no exception.
  """
  finite = np.isfinite(log_snr)
  result = np.minimum(order, np.cumsum(finite)[:-1])
  if lower_order_final:
    result = np.minimum(result, np.arange(len(result), 0, -1))
  return np.where(finite[1:] | image, np.maximum(result, 1), 1)


def _weighted(weights: np.ndarray, predictions: tuple[jax.Array, ...]) -> jax.Array:
  return sum(weight * x0 for weight, x0 in zip(weights, predictions, strict=False))
