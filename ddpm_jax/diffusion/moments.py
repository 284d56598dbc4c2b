"""The second moments of eps_hat per level, which is all that Analytic-DPM needs to know of a network and its data:

    Gamma_n = E |eps_hat(x_n, n)|^2 / d,             E Var[eps | x_n] = 1 - Gamma_n            (Analytic-DPM eq. 8)   (1)
                                                     E Var[eps | x_n] = E |eps - eps_hat|^2 / d                       (2)

(1) is the authors'. (2) says the same of a perfect network; of any other it is the variance that its mean really needs
(Extended-Analytic-DPM eq. 12, averaged), and near pure noise it is estimated far better: 1 - Gamma is a small difference of
numbers near 1 there, which (sigma / alpha)^2 then multiplies. Both are measured at once.

They are running averages over images: `estimate` yields them after every batch, so that a caller can save, show, stop and
go on. Batches are arrays of the caller's making: put them on several devices, and so is the work. One program is compiled
for all levels, and run for `chunk` of them at a time.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.noise import PerImage
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.diffusion.steps import GaussianSteps, gaussian
from ddpm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Moments:
  """After `count` images: means and sums of squared deviations, so that parts can be merged exactly.

  Rows: |eps_hat|^2 / d, then |eps - eps_hat|^2 / d.
  """

  levels: np.ndarray  # int [L], increasing
  count: int  # images
  mean: np.ndarray  # float64 [2,L]
  deviations: np.ndarray  # float64 [2,L], sum over images of (image's value - mean)^2

  @classmethod
  def none(cls, levels: np.ndarray) -> "Moments":
    """Before the first image."""
    return cls(np.asarray(levels), 0, *np.zeros((2, 2, len(levels))))

  def merge(self, other: "Moments") -> "Moments":
    """The moments of both sets of images (Chan's formula)."""
    count = self.count + other.count
    apart = other.mean - self.mean
    mean = self.mean + apart * other.count / count
    deviations = self.deviations + other.deviations + apart**2 * self.count * other.count / count
    return Moments(self.levels, count, mean, deviations)

  def gamma(self, T: int, *, residual: bool = False) -> np.ndarray:
    """Gamma by (1), or 1 - (2) if `residual`: float64 [T+1], gamma[0] = 0 is not used.

    Levels that were not measured are interpolated linearly. Where an untrained network errs by more than all of the noise,
    (2) counts as 1: Var[eps | x_n] is at most that in the mean.
    """
    gamma = np.interp(np.arange(T + 1), self.levels, 1 - np.minimum(self.mean[1], 1) if residual else self.mean[0])
    gamma[0] = 0
    return gamma

  @property
  def standard_error(self) -> np.ndarray:
    """float64 [2,L], of the means; infinite for one image."""
    with np.errstate(divide="ignore", invalid="ignore"):
      return np.sqrt(self.deviations / (self.count - 1) / self.count) if self.count > 1 else np.full_like(self.mean, np.inf)


def estimate(
  schedule: Schedule,
  network: Any,
  batches: Iterable[tuple[jax.Array, Any]],
  *,
  levels: np.ndarray | None = None,
  seed: int = 0,
  start: Moments | None = None,
  chunk: int = 50,
) -> Iterator[Moments]:
  """Yields the moments after each batch.

  Args:
    schedule: the noise levels.
    network: the denoiser whose eps is squared; do not clip it, and guide it only if samples will be guided.
    batches: (x_0 [B,H,W,C], cond) from image number `start.count` on; image i draws its noise from (seed, i).
    levels: which levels to measure; all of 1 ... T by default. Each costs one evaluation per image.
    start: go on from here.
    chunk: most levels of one call of the compiled program.

  Raises:
    UserError: if a level is outside 1 ... T, or `start` was measured at other levels.
  """
  levels = np.arange(1, schedule.T + 1) if levels is None else np.unique(levels)
  if levels[0] < 1 or levels[-1] > schedule.T:
    raise UserError(f"Moments exist at levels 1 ... {schedule.T} of this schedule, not at {levels[0]} ... {levels[-1]}.")
  moments = start or Moments.none(levels)
  if not np.array_equal(moments.levels, levels):
    raise UserError(f"These moments were begun at {len(moments.levels)} levels and cannot go on at {len(levels)} others.")
  steps = gaussian(schedule, np.append(levels[::-1], 0))
  for x_0, cond in batches:
    keys = image_keys(seed, moments.count, len(x_0))
    parts = [jax.device_get(_moments(keys, network, rows, x_0, cond)) for rows in chunks(steps, chunk)]
    mean, deviations = (np.concatenate(part)[::-1].T.astype(np.float64) for part in zip(*parts, strict=True))
    moments = moments.merge(Moments(levels, len(x_0), mean, deviations))
    yield moments


def second_moments(
  keys: jax.Array, network: Any, steps: GaussianSteps, x_0: jax.Array, cond: Any = None, *, noise: Any = None
) -> jax.Array:
  """Each image's |eps_hat|^2 / d and |eps - eps_hat|^2 / d at each level that `steps` leaves: float32 [K,2,B].

  One draw of x_t each.

  Args:
    keys: [B], one per image.
    noise: (row, x) -> the true noise of x_t, instead of one stream per image.
  """
  noise = PerImage(keys) if noise is None else noise

  def at(_, row):
    eps = noise(row, x_0)
    eps_hat = network(row.t.diffuse(x_0, eps), row.t, cond).eps
    return None, (jnp.stack([eps_hat, eps - eps_hat]) ** 2).mean(tuple(range(2, x_0.ndim + 1)))

  return jax.lax.scan(at, None, steps)[1]


@jax.jit
def _moments(keys, network, steps, x_0, cond):
  each = second_moments(keys, network, steps, x_0, cond)
  mean = each.mean(-1)
  return mean, ((each - mean[..., None]) ** 2).sum(-1)


def image_keys(seed: int, first: int, count: int) -> jax.Array:
  """Keys [count] of images number `first`, ... of a data set."""
  return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(first, first + count))


def chunks(steps: GaussianSteps, chunk: int) -> Iterator[GaussianSteps]:
  """The rows in equal parts of at most `chunk`, so that one program runs them all and none twice."""
  K = len(steps.left)
  size = max(part for part in range(1, chunk + 1) if K % part == 0)
  for first in range(0, K, size):
    yield jax.tree.map(lambda column, first=first: column[first : first + size], steps)
