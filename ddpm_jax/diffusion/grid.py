"""Grids: the levels that a sampler visits, strictly monotone integer arrays [K+1], usually T ... 0.

The papers index levels differently. The 0-based step index i of DDPM, DDIM and ADM is level i + 1 here. The n of
Analytic-DPM is n.
"""

import numpy as np

from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError

NOISIEST = -5.1  # log(alpha / sigma) at alpha = 0.006, below one grey level: x_t is noise


def full(T: int) -> np.ndarray:
  """Every level: T, T-1, ..., 0."""
  return np.arange(T, -1, -1)


def uniform(T: int, K: int) -> np.ndarray:
  """K steps with equal strides from T to 1, then 0 (Analytic-DPM's even trajectory, `linear` in its code).

  Strides are accumulated in floating point and rounded half to even, as in the authors' code. At K = 25 this matters.
  """
  check_steps(T, K)
  return _downwards(_round_steps(1, T, K) if K > 1 else [T])


def sections(T: int, spec: str) -> np.ndarray:
  """OpenAI's section strings: "250", "10,15,20" or "ddim50" (IDDPM section 4, `space_timesteps`).

  "10,15,20" cuts the levels into three equal sections and takes 10, 15 and 20 levels of them, including both ends of each
  section. "ddim50" takes every (T / 50)-th level. It is an error if no integer stride gives exactly that many.
  """
  if spec.startswith("ddim"):
    wanted = _integer(spec[4:], spec)
    strides = [i for i in range(1, T) if len(range(0, T, i)) == wanted]
    if not strides:
      raise UserError(f'No integer stride takes exactly {wanted} of {T} levels. Use "{wanted}" instead of "{spec}".')
    return _downwards(np.arange(1, T + 1, strides[0]))
  counts = [_integer(count, spec) for count in spec.split(",")]
  size, extra = divmod(T, len(counts))
  levels = []
  start = 1
  for section, count in enumerate(counts):
    length = size + (section < extra)
    if not 0 <= count <= length:
      raise UserError(f'Section {section + 1} of "{spec}" has {length} levels (T = {T}), so it cannot give {count}.')
    levels.append(start + _round_steps(0, length - 1, count))
    start += length
  if not any(map(len, levels)):
    raise UserError(f'"{spec}" takes no level at all: ask for at least one, such as "250" or "10,0,20".')
  return _downwards(np.concatenate(levels))


def ddim_uniform(T: int, K: int) -> np.ndarray:
  """Every (T // K)-th level from 1 (DDIM code, skip type `uniform`).

  It has more than K steps when K does not divide T. It starts below T, where the references still feed pure noise.
  """
  check_steps(T, K)
  return _downwards(np.arange(1, T + 1, T // K))


def ddim_plus1(T: int, K: int) -> np.ndarray:
  """The levels of `ddim_uniform` plus 1, ending at level 1 instead of 0 (CompVis and much community code).

  Their steps are 1, 1 + T // K, ... in DDPM's 0-based count, and the last one ends at alphas_cumprod[0], which is level 1.
  """
  check_steps(T, K)
  return np.append(np.arange(2, T + 2, T // K)[::-1], 1)


def leading(T: int, K: int, offset: int = 0) -> np.ndarray:
  """K levels with the stride T // K, from level 1 + offset (diffusers' timestep_spacing "leading" and its steps_offset).

  `ddim_uniform` takes further steps where K does not divide T.
  """
  check_steps(T, K)
  levels = 1 + offset + np.arange(K) * (T // K)
  if levels[-1] > T:
    raise UserError(
      f"{K} steps of stride {T // K} from level {1 + offset} leave a chain of T = {T} levels: take fewer steps."
    )
  return _downwards(levels)


def trailing(T: int, K: int) -> np.ndarray:
  """K levels with the stride T / K, down from T (diffusers' timestep_spacing "trailing"; Lin et al. 2024, table 2)."""
  check_steps(T, K)
  return np.append(np.rint(np.arange(T, 0, -T / K)[:K]).astype(int), 0)


def quadratic(T: int, K: int) -> np.ndarray:
  """Squares of K equal steps from 0 to sqrt(0.8 T) (DDIM code, skip type `quad`), each level once.

  The references repeat the lowest levels when K is large. Repeated levels are dropped here, so the grid can have fewer
  than K steps. A step between equal levels returns its input, up to rounding. The exception is code that clips x0 but
  keeps eps, where such a step moves clipped pixels.
  """
  check_steps(T, K)
  return _downwards(np.unique((np.linspace(0, np.sqrt(0.8 * T), K) ** 2).astype(int)) + 1)


def power(T: int, K: int, exponent: float) -> np.ndarray:
  """Levels 1 + (T - 1) (1 - y^(1/exponent)) for y in K equal steps from 1 to 0 (`power2` ... of Extended-Analytic-DPM).

  Levels are rounded, then moved up where rounding would repeat a level.
  """
  check_steps(T, K)
  y = np.arange(K)[::-1] / (K - 1) if K > 1 else np.zeros(1)
  return _downwards(_distinct(np.rint((T - 1) * (1 - y ** (1 / exponent)) + 1).astype(int), T))


def log_snr(schedule: Schedule, K: int, noisiest: float = NOISIEST) -> np.ndarray:
  """K equal steps of log(alpha / sigma) down to level 1, then 0 (DPM-Solver section 3.4), each at the nearest level.

  noisiest: the log(alpha / sigma) at which the grid begins. A linear schedule of 1000 levels ends there. A cosine schedule
    has noisier levels, which hold almost no signal and would take most of the equal steps.
  """
  values = _log_snr_above(schedule, K, noisiest)
  return _nearest(values, np.linspace(values[-1], values[0], K))


def karras(schedule: Schedule, K: int, rho: float = 7.0, noisiest: float = NOISIEST) -> np.ndarray:
  """K equal steps of (sigma / alpha)^(1/rho) down to level 1, then 0 (EDM eq. 5), each at the nearest level in log-SNR."""
  values = _log_snr_above(schedule, K, noisiest)
  first, last = np.exp(-values[[-1, 0]] / rho)
  return _nearest(values, -rho * np.log(np.linspace(first, last, K)))


def edm(schedule: Schedule, K: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> np.ndarray:
  """EDM's K steps from sigma_max to sigma_min, as far as the levels 1 ... T reach, then 0.

  Levels are the nearest in sigma / alpha, as EDM's code rounds for networks of discrete levels.
  """
  check_steps(schedule.T, K)
  r = schedule.noise_to_signal[1:]
  ends = max(sigma_min, r[0]), min(sigma_max, r[-1])
  wanted = np.linspace(ends[0] ** (1 / rho), ends[1] ** (1 / rho), K) ** rho
  return _downwards(_distinct(1 + np.abs(r - wanted[:, None]).argmin(1), schedule.T))


def below(grid: np.ndarray, strength: float) -> np.ndarray:
  """The part of a downward grid from its level nearest to strength * grid[0] on, for editing an image from there.

  Raises:
    UserError: unless 0 < strength <= 1.
  """
  if not 0 < strength <= 1:
    raise UserError(f"strength = {strength} must be greater than 0 (no change) and at most 1 (pure noise).")
  return grid[np.argmin(np.abs(grid[:-1] - strength * grid[0])) :]


def check(grid: np.ndarray, T: int) -> np.ndarray:
  """`grid` as int64 [K+1].

  Raises:
    UserError: if it has no step, leaves 0..T, or is not strictly monotone.
  """
  grid = np.asarray(grid)
  if grid.ndim != 1 or len(grid) < 2 or not np.issubdtype(grid.dtype, np.integer):
    raise UserError(f"A grid is a list of at least two integer levels, not {grid!r}.")
  if grid.min() < 0 or grid.max() > T:
    raise UserError(f"The grid visits level {grid.min() if grid.min() < 0 else grid.max()}, but levels are 0..{T}.")
  moves = np.diff(grid)
  if not ((moves > 0).all() or (moves < 0).all()):
    at = int(np.flatnonzero(np.sign(moves) != np.sign(moves[0]))[0]) if moves[0] else 0
    raise UserError(
      f"The grid goes from level {grid[at]} to level {grid[at + 1]}: levels must strictly increase or strictly decrease. "
      "Remove repeated levels with np.unique."
    )
  return grid.astype(np.int64)


def _round_steps(first: int, last: int, count: int) -> np.ndarray:
  stride = (last - first) / (count - 1) if count > 1 else 1.0
  at = float(first)
  levels = []
  for _ in range(count):
    levels.append(round(at))
    at += stride
  return np.array(levels, int)


def _log_snr_above(schedule: Schedule, K: int, noisiest: float) -> np.ndarray:
  """log(alpha / sigma) of the levels 1, 2, ... where it is at least `noisiest`, but of at least K levels."""
  check_steps(schedule.T, K)
  values = schedule.log_snr[1:]
  return values[: max(K, (values >= noisiest).sum())]


def _nearest(log_snr: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """The grid of the levels 1 + i whose log_snr[i] (decreasing) is nearest to `wanted` [K] (increasing)."""
  i = np.abs(log_snr - wanted[::-1, None]).argmin(1)
  return _downwards(_distinct(1 + i, len(log_snr)))


def _distinct(levels: np.ndarray, T: int) -> np.ndarray:
  """Ascending levels, moved up, or down from T, until none repeats."""
  k = np.arange(len(levels))
  return np.minimum(np.maximum.accumulate(levels - k) + k, T - k[::-1])


def _downwards(levels: np.ndarray) -> np.ndarray:
  return np.append(np.asarray(levels)[::-1], 0)


def check_steps(T: int, K: int) -> None:
  """Raises UserError unless a chain of T levels has room for K steps."""
  if not 1 <= K <= T:
    raise UserError(f"{K} steps do not fit a chain of T = {T} levels. Choose 1 <= K <= {T}.")


def _integer(text: str, spec: str) -> int:
  try:
    return int(text)
  except ValueError:
    raise UserError(f'"{spec}" is not a section string. Write one like "250", "10,15,20" or "ddim50".') from None
