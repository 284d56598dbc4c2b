"""Which levels a sampler visits: integer arrays [K+1], strictly monotone, usually T ... 0.

A grid is the whole difference between 1,000 steps and 10. The papers count from elsewhere: a 0-based step index i of
DDPM, DDIM and ADM is level i + 1 here; n of Analytic-DPM is n.
"""

import numpy as np

from ddpm_jax.errors import UserError


def full(T: int) -> np.ndarray:
  """Every level: T, T-1, ..., 0."""
  return np.arange(T, -1, -1)


def uniform(T: int, K: int) -> np.ndarray:
  """K steps with equal strides from T to 1, then 0 (Analytic-DPM's even trajectory, `linear` in its code).

  Strides are accumulated in floating point and rounded half to even, as in the authors' code: ties decide K = 25.
  """
  _check_steps(T, K)
  return _downwards(_round_steps(1, T, K) if K > 1 else [T])


def sections(T: int, spec: str) -> np.ndarray:
  """OpenAI's section strings: "250", "10,15,20" or "ddim50" (IDDPM section 4, `space_timesteps`).

  "10,15,20" cuts the levels into three equal sections and takes 10, 15 and 20 of them, each section with both of its
  ends; "ddim50" takes every (T / 50)-th level, and is an error when no integer stride gives exactly that many.
  """
  if spec.startswith("ddim"):
    wanted = _integer(spec[4:], spec)
    strides = [i for i in range(1, T) if len(range(0, T, i)) == wanted]
    if not strides:
      raise UserError(f"No integer stride takes exactly {wanted} of {T} levels; use \"{wanted}\" instead of \"{spec}\".")
    return _downwards(np.arange(1, T + 1, strides[0]))
  counts = [_integer(count, spec) for count in spec.split(",")]
  size, extra = divmod(T, len(counts))
  levels, start = [], 1
  for section, count in enumerate(counts):
    length = size + (section < extra)
    if not 1 <= count <= length:
      raise UserError(f"Section {section + 1} of \"{spec}\" has {length} levels (T = {T}), so it cannot give {count}.")
    levels.append(start + _round_steps(0, length - 1, count))
    start += length
  return _downwards(np.concatenate(levels))


def ddim_uniform(T: int, K: int) -> np.ndarray:
  """Every (T // K)-th level from 1 (DDIM code, skip type `uniform`).

  Has more than K steps when K does not divide T, and starts below T, where the references still feed pure noise.
  """
  _check_steps(T, K)
  return _downwards(np.arange(1, T + 1, T // K))


def quadratic(T: int, K: int) -> np.ndarray:
  """Squares of K equal steps from 0 to sqrt(0.8 T) (DDIM code, skip type `quad`), each level once.

  The reference repeats the lowest levels when K is large; a repeated level is a step that moves nothing, and is left
  out here, so that the grid can have fewer than K steps.
  """
  _check_steps(T, K)
  return _downwards(np.unique((np.linspace(0, np.sqrt(0.8 * T), K) ** 2).astype(int)) + 1)


def power(T: int, K: int, exponent: float) -> np.ndarray:
  """Levels 1 + (T - 1) (1 - y^(1/exponent)) for y in K equal steps from 1 to 0 (`power2` ... of Extended-Analytic-DPM).

  Rounded, then pushed up where that would repeat a level.
  """
  _check_steps(T, K)
  y = np.arange(K)[::-1] / (K - 1) if K > 1 else np.zeros(1)
  levels = np.rint((T - 1) * (1 - y ** (1 / exponent)) + 1).astype(int)
  for k in range(1, K):
    levels[k] = max(levels[k], levels[k - 1] + 1)
  return _downwards(levels)


def check(grid: np.ndarray, T: int) -> np.ndarray:
  """`grid` as int64 [K+1].

  Raises:
    UserError: if it is shorter than one step, leaves 0..T, or is not strictly monotone.
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
        f"The grid goes from level {grid[at]} to level {grid[at + 1]}: levels must go strictly up or strictly down. "
        "Remove repeated levels with np.unique."
    )
  return grid.astype(np.int64)


def _round_steps(first: int, last: int, count: int) -> np.ndarray:
  stride = (last - first) / (count - 1) if count > 1 else 1.0
  at, levels = float(first), []
  for _ in range(count):
    levels.append(round(at))
    at += stride
  return np.array(levels)


def _downwards(levels: np.ndarray) -> np.ndarray:
  return np.append(np.asarray(levels)[::-1], 0)


def _check_steps(T: int, K: int) -> None:
  if not 1 <= K <= T:
    raise UserError(f"{K} steps do not fit a chain of T = {T} levels; choose 1 <= K <= {T}.")


def _integer(text: str, spec: str) -> int:
  try:
    return int(text)
  except ValueError:
    raise UserError(f"\"{spec}\" is no section string; write one like \"250\", \"10,15,20\" or \"ddim50\".") from None
