"""Weights of the simple loss by level: min-SNR, P2, and plain powers of the signal-to-noise ratio.

The weights multiply the squared error of what the network predicts. With snr = alpha^2 / sigma^2, the squared error of eps
is snr times that of x_0, and that of v is snr + 1 times that of x_0. A weight w of x_0's error is therefore w / snr for eps
and w / (snr + 1) for v.
"""

from collections.abc import Callable

import numpy as np

from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError


def min_snr(schedule: Schedule, mean: str, gamma: float = 5.0) -> np.ndarray:
  """min(snr, gamma) on x_0's error (Hang et al. 2023, arXiv 2303.09556): no level dominates the gradient.

  Args:
    mean: what the network predicts: "eps", "x0" or "v".

  Returns:
    float64 [T+1]; entry 0 is not used.
  """
  return _of_x0(schedule, mean, lambda snr: np.minimum(snr, gamma))


def p2(schedule: Schedule, mean: str, gamma: float = 1.0, k: float = 1.0) -> np.ndarray:
  """1 / (k + snr)^gamma on eps' error, less on the last, invisible noise (Choi et al. 2022, arXiv 2204.00227)."""
  return _of_x0(schedule, mean, lambda snr: snr / (k + snr) ** gamma)


def snr(schedule: Schedule, mean: str) -> np.ndarray:
  """snr on x_0's error, which weights eps' error evenly."""
  return _of_x0(schedule, mean, lambda snr: snr)


def truncated_snr(schedule: Schedule, mean: str) -> np.ndarray:
  """max(snr, 1) on x_0's error (Salimans & Ho 2022, section 4)."""
  return _of_x0(schedule, mean, lambda snr: np.maximum(snr, 1))


def soft_min_snr(schedule: Schedule, mean: str, data_std: float = 1.0) -> np.ndarray:
  """snr / (1 + data_std^2 snr) on x_0's error, a smooth form of min_snr (k-diffusion)."""
  return _of_x0(schedule, mean, lambda snr: snr / (snr * data_std**2 + 1))


WEIGHTS: dict[str, Callable] = {
  "min_snr": min_snr,
  "soft_min_snr": soft_min_snr,
  "p2": p2,
  "snr": snr,
  "truncated_snr": truncated_snr,
}


def _of_x0(schedule: Schedule, mean: str, weight: Callable) -> np.ndarray:
  per_output = {"eps": lambda snr: snr, "x0": lambda snr: 1.0, "v": lambda snr: snr + 1}
  if mean not in per_output:
    raise UserError(f'Weights by signal-to-noise ratio are for prediction.mean = "eps", "x0" or "v", not {mean!r}.')
  ratio = schedule.alpha_bar[1:] / (1 - schedule.alpha_bar[1:])
  with np.errstate(invalid="ignore", divide="ignore"):
    found = weight(ratio) / per_output[mean](ratio)
  # at a last level without signal, an error of eps carries no information about x_0, and its weight would be 0 / 0
  return np.append(0.0, np.nan_to_num(found, nan=1.0))
