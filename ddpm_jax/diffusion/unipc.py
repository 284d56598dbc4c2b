"""UniPC (Zhao et al. 2023, arXiv 2302.04867): a multistep predictor, and a corrector without extra evaluations.

Let h = lambda_s - lambda_t, B = e^-h - 1 ("bh2") or -h ("bh1"), r_i = (lambda of prediction i - lambda_t) / h, and
D_i = (x0_i - x0_0) / r_i. The predictor adds to (1) of solvers.py

    - alpha_s B sum_{i=1}^{p-1} rho_i D_i,            sum_i r_i^{k-1} rho_i = b_k,                  k = 1 ... p - 1     (5)

    b_k = k! phi_{k+1} / B,      phi_1 = e^-h - 1,    phi_{k+1} = phi_k / -h - 1 / k!                                   (6)

(section 3, algorithms 6 and 8, the form for data prediction). After the evaluation at x_s, the corrector repeats the step
with the new prediction as one more point, r = 1, and p equations. Like the authors' code, this takes rho = 1/2 for the
predictor of order 2 and the corrector of order 1, instead of solving one equation.
"""

import math

import numpy as np

from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.diffusion.solvers import SolverSteps, first_order, orders
from ddpm_jax.diffusion.steps import check
from ddpm_jax.errors import UserError


def unipc(
  schedule: Schedule,
  grid: np.ndarray,
  order: int = 2,
  *,
  variant: str = "bh2",
  lower_order_final: bool = True,
  dtype: type = np.float32,
) -> SolverSteps:
  """UniPC of order 1 to 3 along `grid`, one evaluation of the network per step.

  Args:
    schedule: the noise levels.
    grid: [K+1] strictly monotone levels, usually T ... 0.
    order: of the predictor.
    variant: "bh1" (recommended for few steps without guidance) or "bh2".
    lower_order_final: see solvers.orders.
    dtype: of the weights; float64 shows the order of convergence.

  Raises:
    UserError: for another order or variant, or a grid that repeats a level.
  """
  grid = check(schedule, grid)
  if order not in (1, 2, 3) or variant not in ("bh1", "bh2"):
    raise UserError(f'UniPC has orders 1 to 3 and variants "bh1" and "bh2", not order {order} and variant {variant!r}.')
  t = grid[:-1]
  s = grid[1:]
  log_snr = schedule.log_snr[grid]
  steps = first_order(schedule, t, s, anchor=order + 1, predictions=order)
  alpha_s = np.sqrt(schedule.alpha_bar[s])
  h = np.diff(log_snr)
  x0 = np.eye(order + 1)  # x0[j] are the weights of prediction j
  for k, p in enumerate(orders(log_snr, order, lower_order_final)):
    if not np.isfinite(h[k]):
      continue
    r = (log_snr[k - p + 1 : k][::-1] - log_snr[k]) / h[k]
    B = np.expm1(-h[k]) if variant == "bh2" else -h[k]
    D = (x0[1:p] - x0[0]) / r[:, None]
    rho = np.full(1, 0.5) if p == 2 else _rho(h[k], r, B)
    steps.next_x0[k] -= (alpha_s[k] * B * rho @ D)[:order]
    if k + 1 < len(t):  # the next row corrects: there the new prediction is x0_0
      new = x0[0]
      old = x0[1:]
      D = np.append((old[1:p] - old[0]) / r[:, None], [new - old[0]], axis=0)
      rho = np.full(1, 0.5) if p == 1 else _rho(h[k], np.append(r, 1.0), B)
      steps.anchor_x[k + 1] = 0
      steps.anchor_a[k + 1] = steps.next_a[k]
      steps.anchor_x0[k + 1] = alpha_s[k] * (-np.expm1(-h[k]) * old[0] - B * rho @ D)
  return steps.rounded(dtype)


def _rho(h: float, r: np.ndarray, B: float) -> np.ndarray:
  """The solution rho of (5) for the points r."""
  phi = np.expm1(-h)
  b = []
  for k in range(1, len(r) + 1):
    phi = phi / -h - 1 / math.factorial(k)
    b.append(math.factorial(k) * phi / B)
  return np.linalg.solve(np.vander(r, increasing=True).T, b) if len(r) else np.zeros(0)
