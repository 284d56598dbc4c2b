"""The jobs of Analytic-DPM on what was trained: measure its moments and the costs of its steps, and the study of methods.

run = ddpm_jax.load("runs/mnist")
moments = analytic.moments(run, "runs/mnist/evaluation/moments.npz", 1000)
results = analytic.study({"plain": run}, "runs/mnist/study", Ks=(10, 25), moments_path=...)
"""

import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from ddpm_jax.files import measurements, npz
from ddpm_jax.jobs import study as studies
from ddpm_jax.jobs.trained import Trained

log = logging.getLogger(__name__)

HEADS = {"npr": "residual", "sn": "second_moment"}
SAVE_EVERY = 30  # seconds


def moments(
  trained: Trained, path: str | os.PathLike, images: int = 1000, *, K: int | None = None, seed: int = 0
) -> measured.Moments:
  """The moments of the network over training images, kept in `path`, and continued from there.

  Args:
    images: how many, rounded to whole batches.
    K: how many even levels to measure; None: all.
    seed: chooses the images and their noise.
  """
  build.check_draws(trained.config)
  schedule, batches = build.schedule(trained.config), _Batches(trained, images, seed)
  levels = np.sort(grids.full(schedule.T) if K is None else grids.uniform(schedule.T, K))[1:]
  source = {"step": trained.step, "weights": trained.weights, "split": batches.source.info.split, "seed": seed}
  found, saved = measured.Moments.none(levels), time.monotonic()
  if os.path.exists(path):
    before, of = measurements.load_moments(path, schedule)
    if of == source and np.array_equal(before.levels, levels):
      found = before
    else:
      log.warning("%s has other levels, or is of other weights or images (%s): measuring anew.", path, of)
  with tqdm.tqdm(total=max(batches.count, found.count), initial=found.count, unit="image") as bar:
    running = measured.estimate(
      schedule, trained.network, batches.starting(found.count), levels=levels, seed=seed, start=found
    )
    for found in running:
      bar.update(found.count - bar.n)
      if time.monotonic() - saved > SAVE_EVERY or found.count == batches.count:
        measurements.save_moments(path, found, schedule, source)
        saved = time.monotonic()
  return found


def costs(trained: Trained, path: str | os.PathLike, covariance: str, images: int = 1000, *, seed: int = 0) -> np.ndarray:
  """What every possible step would add to the bound with this covariance, over training images; kept in `path`.

  Raises:
    UserError: for another covariance than posterior, marginal, optimal, or one that the network cannot tell.
  """
  known = ("posterior", "marginal", "optimal")
  if covariance not in known:
    raise UserError(f"The costs of covariance {covariance!r} are not defined; {nearest(covariance, known)}")
  trained = trained.changed(sampling=dict(clip="x0", keep_eps=False, covariance=covariance, cap_pixels=None))
  which = build.covariance_of(trained.config, covariance, eta=1.0)
  denoiser = build.denoiser(trained.config, trained.network)
  schedule, batches = build.schedule(trained.config), _Batches(trained, images, seed)
  with tqdm.tqdm(total=batches.count, unit="image") as bar:
    for found in step_costs.estimate(schedule, denoiser, which, batches.starting(0), seed=seed):
      bar.update(found[0] - bar.n)
  table = found[1]
  source = {"step": trained.step, "weights": trained.weights, "covariance": covariance, "images": batches.count}
  measurements.save_costs(path, table, schedule, source)
  return table


def study(
  networks: Mapping[str, Trained],
  folder: str | os.PathLike,
  *,
  Ks: Sequence[int],
  moments_path: str | os.PathLike | None,
  costs_path: str | os.PathLike | None = None,
  names: Sequence[str] | None = None,
  trajectories: Sequence[str] = ("even",),
  distance: Callable[[np.ndarray], Mapping[str, Any]] | None = None,
  samples: int = 1000,
  likelihood: int = 128,
  ddpm_cap: float = 2.0,
  report: Callable[[str], None] = print,
) -> list[dict]:
  """Every method that these networks allow, at every K: bits/dim and the distance of samples.

  Args:
    networks: "plain", and perhaps "npr" and "sn", heads on the same backbone.
    folder: of the results; what is there is not measured again.
    moments_path: of the plain network; None leaves the analytic methods out.
    costs_path: for the optimal trajectory of DDPM-large.
    names: of the methods; None: all.
    trajectories: "even", "optimal".
    distance: uint8 images [N,H,W,C] -> results; None: no samples are drawn.
    samples: how many images per cell, of seeds 0, 1, ...; the same noise for every method.
    likelihood: how many test images; 0: no bits/dim.
    ddpm_cap: see studies.methods.

  Raises:
    UserError: for a K above T, unknown names, or heads of another schedule.
  """
  plain = networks["plain"]
  schedule = build.schedule(plain.config)
  for name, trained in networks.items():
    if not np.array_equal(build.schedule(trained.config).alpha_bar, schedule.alpha_bar):
      raise UserError(f"The {name} head was trained on another schedule than the backbone; a study needs one.")
    if name in HEADS and (second := trained.config.prediction.second) != HEADS[name]:
      raise UserError(f"--{name} is no run of --config {name}: its second head is {second!r}, not {HEADS[name]!r}.")
  for K in Ks:
    grids.check_steps(schedule.T, K)
  methods = _known(names, studies.methods(ddpm_cap))
  if names and (absent := next((method for method in methods if method.network not in networks), None)):
    raise UserError(f"{absent.name} is a method of a second head: give its run as --{absent.network}.")
  methods = [method for method in methods if method.network in networks]
  if moments_path is None:
    methods = [m for m in methods if m.network != "plain" or m.sampling["covariance"] != "optimal"]
  cells = studies.cells(methods, Ks, trajectories)
  if costs_path is None:
    cells = [cell for cell in cells if cell.grid != "dp_vb"]

  def used(cell: studies.Cell) -> Trained:
    where = dict(grid=cell.grid, steps=cell.K)
    files = dict(moments=moments_path and str(moments_path), costs=costs_path and str(costs_path))
    sampling = dict(solver="gaussian", clip="x0", **where, **files, **cell.method.sampling)
    evaluation = dict(covariance=cell.method.sampling["covariance"], last_row="full_chain", **where)
    return networks[cell.method.network].changed(sampling=sampling, evaluation=evaluation)

  def bits_per_dim(cell: studies.Cell) -> dict | None:
    if not cell.method.has_bound:
      return None
    began = time.monotonic()
    total = used(cell).bits_per_dim(plain.dataset(plain.config.data.test_split), likelihood).total
    error = float(total.std(ddof=1) / len(total) ** 0.5) if len(total) > 1 else None
    return {"mean": float(total.mean()), "standard_error": error, "seconds": round(time.monotonic() - began, 1)}

  def drawn(cell: studies.Cell) -> dict | None:
    if distance is None or cell.trajectory != "even":
      return None
    began = time.monotonic()
    result = dict(distance(used(cell).sample(range(samples))))
    return {**result, "seconds": round(time.monotonic() - began, 1)}

  measures = ({"bits_per_dim": bits_per_dim} if likelihood else {}) | ({"distance": drawn} if distance else {})
  gamma = None if moments_path is None else measurements.gamma(moments_path, schedule)
  identity = {
    "weights": {name: [trained.step, trained.weights] for name, trained in networks.items()},
    "moments": None if gamma is None else npz.digest({"gamma": gamma})[:16],
    "samples": samples,
    "likelihood": likelihood,
    "ddpm_cap": ddpm_cap,
  }
  return studies.run(cells, measures, pathlib.Path(folder), identity, report=report)


class _Batches:
  """`count` training images in an order of their own, in whole batches that the devices divide."""

  def __init__(self, trained: Trained, count: int, seed: int):
    if count < 1 or seed < 0:
      raise UserError(f"{count} images, seed {seed}: take at least 1 image, and a seed that is not negative.")
    self.trained, self.source = trained, trained.dataset(trained.config.data.train_split)
    count, devices = min(count, len(self.source)), jax.device_count()
    self.size = max(1, min(trained.config.evaluation.batch_size, count) // devices) * devices
    whole = max(1, count // self.size) * self.size
    self.order = np.random.default_rng(seed).permutation(len(self.source))[:whole]
    self.count = len(self.order)  # fewer than `whole` where there are fewer images than devices

  def starting(self, first: int) -> Iterator[tuple[jax.Array, Any]]:
    """(x_0, cond) from image number `first` on."""
    for start in range(first, self.count, self.size):
      yield self.trained.images(self.source, self.order[start : start + self.size])


def _known(names: Sequence[str] | None, methods: Sequence[studies.Method]) -> list[studies.Method]:
  by_name = {method.name: method for method in methods}
  for name in names or ():
    if name not in by_name:
      raise UserError(f"Method {name!r} is unknown; {nearest(name, by_name)}")
  return list(methods) if names is None else [by_name[name] for name in names]
