"""Measures trajectories of a trained network, for the solver dpm_v3 and the grid gits.

run = ddpm_jax.load("runs/mnist")
flow.measure(run, "runs/mnist/evaluation/flow.npz")
"""

import os

import jax
import numpy as np
import tqdm

from ddpm_jax import build
from ddpm_jax.diffusion import flow as flows
from ddpm_jax.diffusion.noise import image_keys
from ddpm_jax.errors import UserError
from ddpm_jax.files import flows as files
from ddpm_jax.jobs.trained import Trained


def measure(
  trained: Trained, path: str | os.PathLike, images: int = 256, *, points: int = 60, per_pixel: bool = False
) -> flows.Flow:
  """Trajectories from seeds 0 ... images - 1 with the clipping and guidance of config.sampling; kept in `path`.

  Args:
    images: number of trajectories, rounded up to whole batches.
    points: evaluations of the network per trajectory; on a shorter chain, one per level.
    per_pixel: keep statistics of each pixel for dpm_v3.
  """
  build.check_draws(trained.config)
  if images < 1:
    raise UserError(f"{images} trajectories are too few: measure at least 1.")
  schedule = build.schedule(trained.config)
  denoiser = build.guided(trained.config, trained.network, trained.guide)
  size = min(images, trained.config.sampling.batch_size)
  starts = range(0, images, size)

  def draws():
    for start in starts:
      seeds = np.arange(start, start + size, dtype=np.uint32)
      labels = trained.labels(seeds)
      cond = None if labels is None else {"label": jax.numpy.asarray(labels, np.int32)}
      yield image_keys(seeds), trained.image_shape, cond

  running = flows.measure(schedule, denoiser, draws(), points=min(points, schedule.T), per_pixel=per_pixel)
  for found in tqdm.tqdm(running, total=len(starts), unit="batch"):  # noqa: B007  the last one is kept
    pass
  files.write(path, found, schedule, {"step": trained.step, "weights": trained.weights})
  return found
