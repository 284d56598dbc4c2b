"""The jobs of Analytic-DPM on what was trained: measure its moments and the costs of its steps.

run = ddpm_jax.load("runs/mnist")
moments = analytic.moments(run, "runs/mnist/evaluation/moments.npz", 1000)
"""

import logging
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tqdm

from ddpm_jax import build
from ddpm_jax.config import nearest
from ddpm_jax.diffusion import grid as grids
from ddpm_jax.diffusion import moments as measured
from ddpm_jax.diffusion import step_costs
from ddpm_jax.errors import UserError
from ddpm_jax.files import measurements
from ddpm_jax.jobs.trained import Trained

log = logging.getLogger(__name__)

SAVE_EVERY = 30  # seconds


def moments(
  trained: Trained,
  path: str | os.PathLike,
  images: int = 1000,
  *,
  K: int | None = None,
  seed: int = 0,
  per_pixel: bool = False,
) -> measured.Moments:
  """The moments of the network over training images, stored in `path`. An existing file is continued.

  Args:
    images: number of images, rounded to whole batches.
    K: number of evenly spaced levels to measure. None measures all levels.
    seed: selects the images and their noise.
    per_pixel: also measures the moments of each pixel. A file that has them keeps them.
  """
  build.check_draws(trained.config)
  schedule = build.schedule(trained.config)
  batches = _Batches(trained, images, seed)
  levels = np.sort(grids.full(schedule.T) if K is None else grids.uniform(schedule.T, K))[1:]
  source = {"step": trained.step, "weights": trained.weights, "split": batches.source.info.split, "seed": seed}
  found = measured.Moments.none(levels)
  saved = time.monotonic()
  if os.path.exists(path):
    before, of = measurements.load_moments(path, schedule)
    if of != source or not np.array_equal(before.levels, levels):
      log.warning("%s has other levels, other weights or other images (%s) and is measured again.", path, of)
    elif per_pixel and before.pixels is None:
      log.warning("%s has no moments of each pixel and is measured again.", path)
    else:
      found = before
      per_pixel = before.pixels is not None
  with tqdm.tqdm(total=max(batches.count, found.count), initial=found.count, unit="image") as bar:
    running = measured.estimate(
      schedule, trained.network, batches.starting(found.count), levels=levels, seed=seed, start=found, per_pixel=per_pixel
    )
    for found in running:
      bar.update(found.count - bar.n)
      if time.monotonic() - saved > SAVE_EVERY or found.count == batches.count:
        measurements.save_moments(path, found, schedule, source)
        saved = time.monotonic()
  return found


def own_moments(trained: Trained) -> pathlib.Path:
  """The file of moments of these weights in their directory; measured now if it is not there, with a sentence.

  At most 100 levels are measured, by 100 to 1,000 images, small images more: Gamma is a mean over all their pixels.
  """
  if (kept := kept_moments(trained)) is not None:
    return kept
  path = _own_file(trained)
  images = int(np.clip(200_000 // np.prod(trained.image_shape), 100, 1000))
  levels = min(build.schedule(trained.config).T, 100)
  log.info(
    "There are no moments of these weights yet: measuring them over %d training images at %d levels, kept in %s. "
    "ddpm-jax moments measures more.",
    images,
    levels,
    path,
  )
  plain = trained.changed(sampling=dict(covariance=None, grid="full", steps=None))
  moments(plain, path, images, K=levels)
  return path


def kept_moments(trained: Trained) -> pathlib.Path | None:
  """The file of moments of these weights in their directory, if it is there."""
  own = _own_file(trained)
  for path in (own.with_name("moments.npz"), own):
    if path.exists():
      _, of = measurements.load_moments(path, build.schedule(trained.config))
      if (of.get("step"), of.get("weights")) == (trained.step, trained.weights):
        return path
  return None


def _own_file(trained: Trained) -> pathlib.Path:
  name = f"moments_step{trained.step}_{trained.weights.replace(' ', '_')}.npz"
  return pathlib.Path(trained.workdir) / "evaluation" / name


def costs(trained: Trained, path: str | os.PathLike, covariance: str, images: int = 1000, *, seed: int = 0) -> np.ndarray:
  """The contribution of every possible step to the bound with this covariance, over training images, stored in `path`.

  Raises:
    UserError: for a covariance other than posterior, marginal and optimal, or one that the network does not provide.
  """
  known = ("posterior", "marginal", "optimal")
  if covariance not in known:
    raise UserError(f"The costs of covariance {covariance!r} are not defined; {nearest(covariance, known)}")
  trained = trained.changed(sampling=dict(clip="x0", keep_eps=False, covariance=covariance, cap_pixels=None))
  which = build.covariance_of(trained.config, covariance, eta=1.0)
  denoiser = build.denoiser(trained.config, trained.network)
  schedule = build.schedule(trained.config)
  batches = _Batches(trained, images, seed)
  with tqdm.tqdm(total=batches.count, unit="image") as bar:
    for found in step_costs.estimate(schedule, denoiser, which, batches.starting(0), seed=seed):
      bar.update(found[0] - bar.n)
  table = found[1]
  source = {"step": trained.step, "weights": trained.weights, "covariance": covariance, "images": batches.count}
  measurements.save_costs(path, table, schedule, source)
  return table


class _Batches:
  """`count` training images in an order of their own, in whole batches that the devices divide."""

  def __init__(self, trained: Trained, count: int, seed: int):
    if count < 1 or seed < 0:
      raise UserError(f"{count} images, seed {seed}: take at least 1 image, and a seed that is not negative.")
    self.trained = trained
    self.source = trained.dataset(trained.config.data.train_split)
    count = min(count, len(self.source))
    devices = jax.device_count()
    self.size = max(1, min(trained.config.evaluation.batch_size, count) // devices) * devices
    whole = max(1, count // self.size) * self.size
    self.order = np.random.default_rng(seed).permutation(len(self.source))[:whole]
    self.count = len(self.order)  # fewer than `whole` where there are fewer images than devices

  def starting(self, first: int) -> Iterator[tuple[jax.Array, Any]]:
    """(x_0, cond) from image number `first` on."""
    for start in range(first, self.count, self.size):
      yield self.trained.images(self.source, self.order[start : start + self.size])
