"""The second moments of eps_hat per level, the only statistics of a network and its data that Analytic-DPM needs:

    Gamma_n = E |eps_hat(x_n, n)|^2 / d,             E Var[eps | x_n] = 1 - Gamma_n            (Analytic-DPM eq. 8)   (1)
                                                     E Var[eps | x_n] = E |eps - eps_hat|^2 / d                       (2)

The authors use (1). The two agree for an exact network. For any other network, (2) is the actual error of its mean
(Extended-Analytic-DPM eq. 12, averaged). Near pure noise, (2) is also estimated much more precisely. There 1 - Gamma is a
small difference of numbers near 1, and (sigma / alpha)^2 multiplies its error. Both are measured at the same time.

Without the mean over pixels, (1) and (2) give a variance per pixel and level, the best diagonal covariance that does not
depend on x_n (the first generalization in the Extended-Analytic-DPM paper). It is one image per level, so it is measured on
request.

The moments are running averages over images. `estimate` yields them after every batch, so a caller can save them, report
progress, stop and resume. Batches that are sharded over devices are processed on those devices. One program is compiled for
all levels and runs for `chunk` of them at a time.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.noise import Noise, PerImage
from ddpm_jax.diffusion.prediction import Denoiser
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.diffusion.steps import GaussianSteps, gaussian
from ddpm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Moments:
  """The means over `count` images and the sums of squared deviations. Two of them merge exactly.

  The first axis of the arrays holds |eps_hat|^2, then |eps - eps_hat|^2. All but `pixels` are averaged over pixels.
  """

  levels: np.ndarray  # int [L], increasing
  count: int  # images
  mean: np.ndarray  # float64 [2,L]
  deviations: np.ndarray  # float64 [2,L], sum over images of (image's value - mean)^2
  pixels: np.ndarray | None = None  # float32 [2,L,H,W,C], means over images, if they were measured

  @classmethod
  def none(cls, levels: np.ndarray) -> "Moments":
    """The moments of no images."""
    return cls(np.asarray(levels), 0, *np.zeros((2, 2, len(levels))))

  def merge(self, other: "Moments") -> "Moments":
    """The moments of both sets of images (Chan's formula)."""
    count = self.count + other.count
    apart = other.mean - self.mean
    mean = self.mean + apart * other.count / count
    deviations = self.deviations + other.deviations + apart**2 * self.count * other.count / count
    return Moments(self.levels, count, mean, deviations, self._merged_pixels(other))

  def _merged_pixels(self, other: "Moments") -> np.ndarray | None:
    if not self.count:
      return other.pixels
    if self.pixels is None or other.pixels is None:
      return None
    share = other.count / (self.count + other.count)
    return (self.pixels + share * (other.pixels - self.pixels)).astype(np.float32)

  def gamma(self, T: int, *, residual: bool = False) -> np.ndarray:
    """Gamma by (1), or 1 - (2) if `residual`: float64 [T+1]. gamma[0] = 0 is not used.

    Levels that were not measured are interpolated linearly. (2) is limited to 1, the largest possible mean of
    Var[eps | x_n], which the error of an untrained network can exceed.
    """
    gamma = np.interp(np.arange(T + 1), self.levels, 1 - np.minimum(self.mean[1], 1) if residual else self.mean[0])
    gamma[0] = 0
    return gamma

  def gamma_of_pixels(self, T: int, *, residual: bool = False) -> np.ndarray:
    """As `gamma`, for each pixel: float32 [T+1,H,W,C].

    Raises:
      UserError: if the moments were measured without pixels.
    """
    if self.pixels is None:
      raise UserError("These moments are averages over pixels; measure each pixel with ddpm-jax moments --per_pixel.")
    values = 1 - np.minimum(self.pixels[1], 1) if residual else self.pixels[0]
    place = np.interp(np.arange(T + 1), self.levels, np.arange(len(self.levels)))
    low = place.astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    share = (place - low).astype(np.float32)[:, None, None, None]
    gamma = (1 - share) * values[low] + share * values[high]
    gamma[0] = 0
    return gamma

  @property
  def standard_error(self) -> np.ndarray:
    """The standard error of `mean`, float64 [2,L]. It is infinite for one image."""
    with np.errstate(divide="ignore", invalid="ignore"):
      return np.sqrt(self.deviations / (self.count - 1) / self.count) if self.count > 1 else np.full_like(self.mean, np.inf)


def estimate(
  schedule: Schedule,
  network: Denoiser,
  batches: Iterable[tuple[jax.Array, Any]],
  *,
  levels: np.ndarray | None = None,
  seed: int = 0,
  start: Moments | None = None,
  chunk: int = 50,
  per_pixel: bool = False,
) -> Iterator[Moments]:
  """Yields the moments after each batch.

  Args:
    schedule: the noise levels.
    network: the denoiser whose eps is squared. Do not clip it, and guide it only if samples will be guided.
    batches: (x_0 [B,H,W,C], cond) from image number `start.count` on. Image i draws its noise from (seed, i).
    levels: which levels to measure, by default 1 ... T. Each costs one evaluation per image.
    start: the moments to continue from.
    chunk: largest number of levels in one call of the compiled program.
    per_pixel: also measures the moments of each pixel.

  Raises:
    UserError: if a level is outside 1 ... T, or if `start` was measured at other levels or with another `per_pixel`.
  """
  levels = np.arange(1, schedule.T + 1) if levels is None else np.unique(levels)
  if levels[0] < 1 or levels[-1] > schedule.T:
    raise UserError(f"Moments exist at levels 1 ... {schedule.T} of this schedule, not at {levels[0]} ... {levels[-1]}.")
  moments = start or Moments.none(levels)
  if not np.array_equal(moments.levels, levels):
    raise UserError(
      f"These moments were measured at {len(moments.levels)} levels and cannot be continued at {len(levels)} others."
    )
  if moments.count and per_pixel != (moments.pixels is not None):
    raise UserError(
      "These moments were measured with another per_pixel and cannot be continued; measure them again from the start."
    )
  steps = gaussian(schedule, np.append(levels[::-1], 0))
  for x_0, cond in batches:
    keys = numbered_keys(seed, moments.count, len(x_0))
    parts = [jax.device_get(_moments(keys, network, rows, x_0, cond, per_pixel)) for rows in chunks(steps, chunk)]
    mean, deviations, pixels = jax.tree.map(lambda *part: np.concatenate(part)[::-1].swapaxes(0, 1), *parts)
    moments = moments.merge(Moments(levels, len(x_0), np.float64(mean), np.float64(deviations), pixels))
    yield moments


def second_moments(
  keys: jax.Array, network: Denoiser, steps: GaussianSteps, x_0: jax.Array, cond: Any = None, *, noise: Noise | None = None
) -> jax.Array:
  """|eps_hat|^2 / d and |eps - eps_hat|^2 / d of each image at each level that `steps` leaves: float32 [K,2,B].

  x_t is drawn once per image and level.

  Args:
    keys: [B], one per image.
    noise: (row, x) -> the true noise of x_t, instead of one stream per image.
  """
  return _squares(PerImage(keys) if noise is None else noise, network, steps, x_0, cond, per_pixel=False)[0]


def _squares(
  noise: Noise, network: Denoiser, steps: GaussianSteps, x_0: jax.Array, cond: Any, per_pixel: bool
) -> tuple[jax.Array, jax.Array | None]:
  """The squares averaged over pixels, [K,2,B], and over images, [K,2,H,W,C] or None."""

  def at(_: None, row: GaussianSteps) -> tuple[None, tuple[jax.Array, jax.Array | None]]:
    eps = noise(row, x_0)
    eps_hat = network(row.t.diffuse(x_0, eps), row.t, cond).eps
    squares = jnp.stack([eps_hat, eps - eps_hat]) ** 2
    return None, (squares.mean(tuple(range(2, x_0.ndim + 1))), squares.mean(1) if per_pixel else None)

  return jax.lax.scan(at, None, steps)[1]


@functools.partial(jax.jit, static_argnames="per_pixel")
def _moments(
  keys: jax.Array, network: Denoiser, steps: GaussianSteps, x_0: jax.Array, cond: Any, per_pixel: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  each, pixels = _squares(PerImage(keys), network, steps, x_0, cond, per_pixel)
  mean = each.mean(-1)
  return mean, ((each - mean[..., None]) ** 2).sum(-1), pixels


def numbered_keys(seed: int, first: int, count: int) -> jax.Array:
  """Keys [count] of the images with the numbers first, first + 1, ... of a data set.

  They differ from the keys of samples (noise.image_keys), which follow from one seed per image.
  """
  return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(first, first + count))


def chunks(steps: GaussianSteps, chunk: int) -> Iterator[GaussianSteps]:
  """The rows in equal parts of at most `chunk`, so that one compiled program runs all of them."""
  K = len(steps.left)
  size = max(part for part in range(1, chunk + 1) if K % part == 0)
  for first in range(0, K, size):
    yield jax.tree.map(lambda column, first=first: column[first : first + size], steps)
