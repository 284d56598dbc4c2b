"""DPM-Solver-v3 (Zheng et al. 2023, arXiv 2310.13268): a multistep solver fitted to the network by three statistics.

With lambda = log(alpha / sigma), u = x / alpha and coefficients l(lambda), s(lambda), b(lambda), the flow is

    du / dlambda = -l u - f,        f = (sigma eps - l x) / alpha = (1 - l) u - x0,        df / dlambda = s f + b + remainder

Choosing l, s and b so that f and the remainder vary little makes long steps accurate (flow.py measures them). Let L, S
be the integrals of l and s, B that of b e^-S, I that of e^(L+S), and C that of B e^(L+S). A step from t to s is

    u_s = e^(L_t - L_s) u_t - e^-L_s [ C_s - C_t - B_t (I_s - I_t) ] - e^(L_t - L_s) sum_k E_k g^(k)                     (1)

    g(lambda) = e^(S_t - S) f - e^S_t (B - B_t),     E_k = int e^(L + S - L_t - S_t) (lambda - lambda_t)^k / k! dlambda   (2)

(paper, eq. 8 to 11). The derivatives g^(k) at t come from the predictions so far. A corrector repeats the step with the new
prediction, as in UniPC, without another evaluation. l = 1, s = b = 0 is DPM-Solver++.
"""

import dataclasses
import math

import numpy as np

from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.diffusion.solvers import SolverSteps, first_order, orders
from ddpm_jax.diffusion.steps import check
from ddpm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
  """l, s and b, float64 [N] or [N,H,W,C], at increasing values of log_snr [N]."""

  log_snr: np.ndarray
  l: np.ndarray
  s: np.ndarray
  b: np.ndarray

  def merged(self, log_snr: np.ndarray) -> "Statistics":
    """The statistics with further points [M], by linear interpolation; constant beyond the ends."""
    points = np.union1d(self.log_snr, log_snr)
    after = np.clip(np.searchsorted(self.log_snr, points), 1, len(self.log_snr) - 1)
    low = self.log_snr[after - 1]
    high = self.log_snr[after]
    share = np.clip((points - low) / (high - low), 0, 1)
    at = lambda a: a[after - 1] + wide(share, a) * (a[after] - a[after - 1])
    return Statistics(points, at(self.l), at(self.s), at(self.b))


PLAIN = Statistics(np.array([-1.0, 1.0]), np.ones(2), np.zeros(2), np.zeros(2))


def dpm_solver_v3(
  schedule: Schedule,
  grid: np.ndarray,
  order: int = 3,
  statistics: Statistics = PLAIN,
  *,
  corrector: bool = True,
  pseudo: bool = False,
  pseudo_corrector: bool = False,
  lower_order_final: bool = True,
  dtype: type = np.float32,
) -> SolverSteps:
  """DPM-Solver-v3 of order 1 to 3 along `grid`, one evaluation of the network per step.

  Args:
    schedule: the noise levels.
    grid: [K+1] strictly monotone levels, usually T ... 0.
    order: of the predictor.
    statistics: of the network. Integrals are trapezoidal sums over their points and those of the grid.
    corrector: correct each x_t, where the predictor that reached it was of order 2 or more.
    pseudo: take divided differences instead of the derivatives of one polynomial. The authors use it with few steps.
    pseudo_corrector: the same for the corrector, which then has one order more.
    lower_order_final: see solvers.orders.
    dtype: of the weights; float64 shows the order of convergence.

  Raises:
    UserError: for another order, or a grid that repeats a level or goes up.
  """
  grid = check(schedule, grid)
  if order not in (1, 2, 3) or grid[1] > grid[0]:
    raise UserError(f"DPM-Solver-v3 has orders 1 to 3 and downward grids, not order {order} from {grid[0]} to {grid[1]}.")
  log_snr = schedule.log_snr[grid]
  finite = np.isfinite(log_snr)
  fit = _Integrals(statistics.merged(log_snr[finite]), np.sqrt(schedule.alpha_bar[grid]), log_snr)
  pixels = fit.shape
  K = len(grid) - 1
  plain = first_order(schedule, grid[:-1], grid[1:], predictions=order)
  widen = lambda column: np.broadcast_to(wide(column, np.empty((*column.shape, *pixels))), (*column.shape, *pixels)).copy()
  steps = plain.replace(
    anchor_x=widen(plain.anchor_x),
    anchor_a=widen(plain.anchor_a),
    anchor_x0=widen(np.zeros((K, order + 1))),
    next_a=widen(plain.next_a),
    next_x0=widen(plain.next_x0),
    kept_x=widen(np.zeros(K)),
    kept_x0=widen(np.ones(K)),
    anchor_bias=widen(np.zeros(K)),
    next_bias=widen(np.zeros(K)),
  )
  used = orders(log_snr, order, lower_order_final)
  for k, p in enumerate(used):
    if not finite[k]:
      continue
    if finite[k + 1]:
      past = [k - j for j in range(p)]
      steps.next_a[k], weights, steps.next_bias[k] = fit.step(k, k + 1, past, pseudo)
      steps.next_x0[k] = 0
      steps.next_x0[k, :p] = weights
      steps.kept_x[k] = fit.kept_x(k)
      steps.kept_x0[k] = -1
    correct = used[k - 1] + pseudo_corrector if corrector and k and finite[k - 1] else 0
    if correct > 1 and finite[k + 1]:
      points = [k - 1, k, *(k - j for j in range(2, correct))]
      steps.anchor_x[k] = 0
      steps.anchor_a[k], weights, steps.anchor_bias[k] = fit.step(k - 1, k, points, pseudo_corrector)
      newest_first = np.argsort(points)[::-1]
      steps.anchor_x0[k, :correct] = weights[newest_first]
  return steps.rounded(dtype)


class _Integrals:
  """The integrals of (1) and (2) at the levels of a grid."""

  def __init__(self, fit: Statistics, alpha: np.ndarray, log_snr: np.ndarray) -> None:
    # [N,1,H,W,C]: weights of pixels broadcast against a batch
    l, s, b = (a[:, None] if a.ndim > 1 else a for a in (fit.l, fit.s, fit.b))
    self._fit = dataclasses.replace(fit, l=l, s=s, b=b)
    self._alpha = alpha
    self._log_snr = log_snr
    self.shape = l.shape[1:]
    self._at = np.searchsorted(fit.log_snr, np.where(np.isfinite(log_snr), log_snr, fit.log_snr[-1]))
    self._L = self._integral(l)
    self._S = self._integral(s)
    self._B = self._integral(b * np.exp(-self._S))
    self._I = self._integral(np.exp(self._L + self._S))
    self._C = self._integral(self._B * np.exp(self._L + self._S))

  def _integral(self, values: np.ndarray) -> np.ndarray:
    """The trapezoidal integral of `values` [N, ...] from the first point to each."""
    pieces = wide(np.diff(self._fit.log_snr), values) * (values[1:] + values[:-1]) / 2
    return np.concatenate([np.zeros_like(values[:1]), np.cumsum(pieces, axis=0)])

  def kept_x(self, k: int) -> np.ndarray:
    """The factor of x in f = (1 - l) x / alpha - x0 at level k of the grid."""
    return (1 - self._fit.l[self._at[k]]) / self._alpha[k]

  def step(self, t: int, s: int, points: list[int], pseudo: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(factor of x_t, factors [p, ...] of f at `points`, constant) of the step from level t of the grid to level s.

    points: levels of the grid with a prediction, t first.
    """
    i = self._at[t]
    j = self._at[s]
    L = self._L
    S = self._S
    B = self._B
    I = self._I
    C = self._C
    shrink = np.exp(L[i] - L[j])
    constant = -np.exp(-L[j]) * (C[j] - C[i] - B[i] * (I[j] - I[i]))
    of_g = np.zeros((len(points), *L.shape[1:]))
    of_g[0] = -np.exp(-L[j] - S[i]) * (I[j] - I[i])
    for k, derivative in enumerate(_derivatives(self._log_snr[points], pseudo), start=1):
      of_g -= shrink * self._moment(i, j, k) * wide(derivative, of_g)
    weights = np.zeros_like(of_g)
    for m, point in enumerate(self._at[points]):
      weights[m] = of_g[m] * np.exp(S[i] - S[point])
      constant = constant - of_g[m] * np.exp(S[i]) * (B[point] - B[i])
    alpha = self._alpha[s]
    return alpha / self._alpha[t] * shrink, alpha * weights, alpha * constant

  def _moment(self, i: int, j: int, k: int) -> np.ndarray:
    """E_k of (2)."""
    part = slice(i, j + 1)
    x = self._fit.log_snr[part]
    values = np.exp(self._L[part] + self._S[part] - self._L[i] - self._S[i])
    values = values * wide((x - x[0]) ** k / math.factorial(k), values)
    return (wide(np.diff(x), values) * (values[1:] + values[:-1]) / 2).sum(0)


def _derivatives(at: np.ndarray, pseudo: bool) -> list[np.ndarray]:
  """Weights [p] of values at the points `at` [p] in the derivatives 1 ... p - 1 at the first of them."""
  p = len(at)
  if pseudo:
    differences = list(np.eye(p))
    found = []
    for i in range(1, p):
      differences = [(differences[j] - differences[j + 1]) / (at[j] - at[i + j]) for j in range(p - i)]
      found.append(differences[0] * math.factorial(i))
    return found
  if p == 1:
    return []
  powers = np.vander(at[1:] - at[0], p, increasing=True)[:, 1:]
  solution = np.linalg.inv(powers) @ (np.eye(p)[1:] - np.eye(p)[0])
  return [solution[i - 1] * math.factorial(i) for i in range(1, p)]


def wide(column: np.ndarray, like: np.ndarray) -> np.ndarray:
  """`column` with trailing axes of size 1, to broadcast against `like`."""
  return np.reshape(column, np.shape(column) + (1,) * (np.ndim(like) - np.ndim(column)))
