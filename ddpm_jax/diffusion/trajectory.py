"""The best K levels to visit, by dynamic programming (Analytic-DPM section 4, Watson et al. 2021).

The bound of a chain is a sum over its steps, so the best chain is a shortest path. The nodes are levels, the cost of an edge
s < t is the contribution of the step from t to s, and the path from noise to data has K edges. There are two costs:

    dp_seg    with the analytic covariance, up to terms that all chains have in common,

                  cost(s, t) = log(1 - (1 - alpha_t^2 / alpha_s^2) Gamma_t / sigma_t^2)           (Analytic-DPM eq. 12)

              so only the moments Gamma matter;
    dp_vb     a table of measured terms (step_costs.py), for any covariance.

Both return grids T ... 0. They follow the authors' float64 arithmetic and their choice among equal paths, the first
minimizer, so the paths are identical to theirs.
"""

import dataclasses
import math

import numpy as np

from ddpm_jax.diffusion.grid import check_steps
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError

_BLOCK = 32  # rows whose candidates are compared at once; small enough to stay in the CPU cache


def dp_seg(schedule: Schedule, gamma: np.ndarray, K: int) -> np.ndarray:
  """The grid [K+1] of least bound under the analytic covariance, from T to 1 and 0 (`dp_seg` of the authors' code).

  Args:
    schedule: the noise levels.
    gamma: [T+1] E|eps_hat|^2 / d per level. gamma[0] is not used. From the first level where it exceeds 1, which an exact
      moment cannot, the rest of the chain has equal strides; see `split`.
    K: number of steps.

  Raises:
    UserError: if gamma belongs to another T, or if K does not fit.
  """
  gamma = check_gamma(gamma, schedule)
  check_steps(schedule.T, K)
  if K == 1:
    return np.array([schedule.T, 0])
  parts = split(gamma, K)
  levels = 1 + shortest_path(segment_cost(schedule, gamma, parts.head), parts.head_steps - 1)
  if parts.tail_steps:
    stride = (schedule.T - parts.head) / parts.tail_steps
    tail = [round(schedule.T - stride * k) for k in range(parts.tail_steps)]
    levels = np.append(levels, tail[::-1])
  return np.append(levels[::-1], 0)


def dp_vb(table: np.ndarray, K: int) -> np.ndarray:
  """The grid [K+1] of least bound under measured terms (`dp_vb` of the authors' code). It may skip level 1.

  Args:
    table: [T+1, T+1]. The entry [s, t] is the contribution of the step from level t to level s to the bound, in any unit.
      Only s < t is read.
    K: number of steps.
  """
  table = np.asarray(table)
  if table.ndim != 2 or table.shape[0] != table.shape[1]:
    raise UserError(f"dp_vb needs a square table of terms [s, t] over levels 0 ... T, not one of shape {table.shape}.")
  T = len(table) - 1
  check_steps(T, K)
  cost = np.where(np.tri(T + 1, k=-1, dtype=bool), table.T, np.inf)
  return shortest_path(cost, K)[::-1]


@dataclasses.dataclass(frozen=True)
class Split:
  """The number of steps for the levels up to `head`, whose moments are trusted, and for the `bad` levels above."""

  head: int  # the last trusted level
  head_steps: int
  tail_steps: int
  bad: int  # levels in the tail


def split(gamma: np.ndarray, K: int) -> Split:
  """Separates the tail whose moments are estimated badly. It is twice as long as from the first Gamma > 1 to T.

  A level of the tail gets about a fifth of the steps of a level of the head. This is the authors' rule, in the version of
  their code that also looks at level T.
  """
  T = len(gamma) - 1
  above = np.flatnonzero(np.asarray(gamma)[1:] > 1)
  bad = 2 * (T - above[0]) if len(above) else 0
  head = T - bad
  head_steps = math.ceil((1 - 0.8 * (bad / T)) * K)
  if head < 1:
    raise UserError(
      f"The moments exceed 1 from level {above[0] + 1} of {T} on: they cannot choose a trajectory. Estimate them over "
      "more images, or use equal strides."
    )
  head_steps = min(head_steps, head)
  tail_steps = min(K - head_steps, bad)
  if bad and not tail_steps:
    tail_steps = 1
  return Split(head, K - tail_steps, tail_steps, bad)


def shortest_path(cost: np.ndarray, K: int) -> np.ndarray:
  """The cheapest path of K edges from node 0 to the last node, as nodes [K+1].

  Node j is reachable with k edges only for j from k to len(cost) - 1 - (K - k), so every layer of the recursion

      best(k, t) = min over s < t of  best(k - 1, s) + cost[t, s]

  is a band. Any K takes at most 2/27 T^3 comparisons.

  Args:
    cost: float64 [T+1, T+1], the edge s -> t at [t, s]; inf unless s < t.
    K: 0 gives node 0 alone.
  """
  width = len(cost) - K  # nodes of a layer: k ... k + width - 1
  best = np.zeros(1)
  came_from = []
  for k in range(1, K + 1):
    first = k - 1
    here = np.empty(width)
    back = np.empty(width, np.int32)
    for row in range(0, width, _BLOCK):
      stop = min(row + _BLOCK, width)
      reach = min(stop, len(best))  # predecessors are below the block's last node
      candidates = cost[k + row : k + stop, first : first + reach] + best[:reach]
      back[row:stop] = candidates.argmin(1)
      here[row:stop] = np.take_along_axis(candidates, back[row:stop, None], 1)[:, 0]
    best = here
    came_from.append(back + first)
  path = [len(cost) - 1 if K else 0]
  for k in range(K, 0, -1):
    path.append(came_from[k - 1][path[-1] - k])
  return np.array(path[::-1], int)


def check_gamma(gamma: np.ndarray, schedule: Schedule) -> np.ndarray:
  """`gamma` as an array [T+1] of this schedule.

  Raises:
    UserError: if it has another length, or an entry that is not a mean of squares.
  """
  gamma = np.asarray(gamma)
  if gamma.shape != (schedule.T + 1,):
    raise UserError(
      f"These moments have shape {gamma.shape}, but a schedule of T = {schedule.T} levels needs {schedule.T + 1} values "
      "(levels 0 ... T). Measure them for this schedule with ddpm-jax moments."
    )
  if not (gamma[1:] >= 0).all():
    n = 1 + int(np.flatnonzero(~(gamma[1:] >= 0))[0])
    raise UserError(f"The moment of level {n} is {gamma[n]}, but a mean of squares is at least 0; measure it again.")
  return gamma


def segment_cost(schedule: Schedule, gamma: np.ndarray, head: int) -> np.ndarray:
  """The cost of dp_seg between levels 1 ... head, float64 at [t - 1, s - 1], inf unless s < t.

  Gamma / sigma^2 is rounded to the precision of gamma. The authors keep float32, and near ties decide the path.
  """
  alpha_bar = schedule.alpha_bar[1 : head + 1]
  score = (gamma[1 : head + 1] / (1 - alpha_bar)).astype(gamma.dtype)
  cost = np.full((head, head), np.inf)
  for t in range(1, head):
    cost[t, :t] = np.log(1 - (1 - alpha_bar[t] / alpha_bar[:t]) * score[t])
  return cost
