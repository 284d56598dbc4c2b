"""Averages with power-function profiles, and averages of any width reconstructed after training (EDM2).

    ema <- ema + (1 - beta) (params - ema),            beta = (1 - 1 / updates)^(gamma + 1)                             (1)

weights the parameters of update t by t^gamma. The profile keeps its shape during training: the ratio of its standard
deviation to the number of updates, its *width*, is constant,

    width = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3)))                                                             (2)

A profile of any width is close to a linear combination of stored ones: snapshots of two widths at several times. Least
squares gives the coefficients, since inner products of profiles have a closed form (Karras et al. 2024, arXiv 2312.02696,
section 3).
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ddpm_jax.errors import UserError

PREFIX = "power_"  # of their names; exponential averages are named by their rate
WIDEST = 0.28  # gamma = 0, equal weights, has width 1 / sqrt(12) = 0.289


def exponent(width: float | np.ndarray) -> np.ndarray:
  """gamma of (2), float64, with the shape of `width`.

  Raises:
    UserError: unless 0 < width <= WIDEST.
  """
  width = np.asarray(width, np.float64)
  if not ((width > 0) & (width <= WIDEST)).all():
    raise UserError(f"A relative width of an average must be above 0 and at most {WIDEST}, such as 0.05, not {width}.")
  # (2) is a cubic in gamma with one root above 0
  share = width**-2
  roots = [np.roots([1, 7, 16 - s, 12 - s]).real.max() for s in share.flat]
  return np.reshape(roots, width.shape)


def decay(updates: Any, width: float) -> Any:
  """beta of (1), for the number of updates including this one, NumPy or traced."""
  return (1 - 1 / updates) ** (float(exponent(width)) + 1)


def correlations(a_time: ArrayLike, a_width: ArrayLike, b_time: ArrayLike, b_width: ArrayLike) -> np.ndarray:
  """Inner products [A,B] of the profiles of widths [A] at times [A] with those of widths [B] at times [B]."""
  a_time, a, b_time, b = np.broadcast_arrays(
    np.asarray(a_time, np.float64)[:, None], exponent(a_width)[:, None], np.asarray(b_time, np.float64), exponent(b_width)
  )
  ratio = (a_time / b_time) ** np.where(a_time < b_time, b, -a)
  # int_0^min of t^a t^b, divided by both norms, without large powers
  return (a + 1) * (b + 1) * ratio / ((a + b + 1) * np.maximum(a_time, b_time))


def coefficients(times: np.ndarray, widths: np.ndarray, time: float, width: float) -> np.ndarray:
  """Coefficients [N] of stored averages in the average of `width` at `time`; they add up to 1.

  Args:
    times: [N] updates that each stored average has seen, at most `time`.
    widths: [N] their widths.
  """
  gram = correlations(times, widths, times, widths)
  wanted = correlations(times, widths, np.array([time]), np.array([width]))[:, 0]
  solution = np.linalg.solve(gram, wanted)
  return solution / solution.sum()
