"""The measurements of Analytic-DPM: the moments of a trained network, and the costs of its steps.

run = ddpm_jax.load("runs/mnist")
moments = analytic.moments(run, "runs/mnist/evaluation/moments.npz", 1000)
"""

import logging
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, Protocol, Self

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from ddpm_jax import build, data
from ddpm_jax.config import nearest
from ddpm_jax.diffusion import grid as grids
from ddpm_jax.diffusion import moments as measured
from ddpm_jax.diffusion import step_costs
from ddpm_jax.diffusion.prediction import Network
from ddpm_jax.errors import UserError
from ddpm_jax.files import measurements

log = logging.getLogger(__name__)

SAVE_EVERY = 30  # seconds


class Measured(Protocol):
  """The part of `jobs.trained.Trained` that is needed here. That module imports this one, so it cannot be named."""

  config: ConfigDict
  network: Network
  step: int
  weights: str
  workdir: pathlib.Path | None
  image_shape: tuple[int, int, int]

  def dataset(self, split: str) -> data.Source: ...

  def images(self, source: data.Source, indices: np.ndarray) -> tuple[jax.Array, dict | None]: ...

  def changed(self, **sections: dict) -> Self: ...


def moments(
  trained: Measured,
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


def own_moments(trained: Measured) -> pathlib.Path:
  """The file of moments of these weights in their directory; measured now, with a log line, if there is none.

  At most 100 levels are measured, over 100 to 1,000 images. Small images need more, since Gamma is a mean over all pixels.
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


def kept_moments(trained: Measured) -> pathlib.Path | None:
  """The file of moments of these weights in their directory, or None."""
  own = _own_file(trained)
  for path in (own.with_name("moments.npz"), own):
    if path.exists():
      _, of = measurements.load_moments(path, build.schedule(trained.config))
      if (of.get("step"), of.get("weights")) == (trained.step, trained.weights):
        return path
  return None


def _own_file(trained: Measured) -> pathlib.Path:
  name = f"moments_step{trained.step}_{trained.weights.replace(' ', '_')}.npz"
  return pathlib.Path(trained.workdir) / "evaluation" / name


def costs(trained: Measured, path: str | os.PathLike, covariance: str, images: int = 1000, *, seed: int = 0) -> np.ndarray:
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
  """`count` training images in random order, in whole batches that divide evenly among the devices."""

  def __init__(self, trained: Measured, count: int, seed: int):
    if count < 1 or seed < 0:
      raise UserError(f"{count} images, seed {seed}: use at least 1 image and a seed of at least 0.")
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
