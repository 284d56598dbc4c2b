"""Evaluates trained networks: numbers as JSON, and the figures of the DDPM paper, written to a folder.

run = ddpm_jax.load("runs/mnist")
results = measure.held_out_bits_per_dim(run, "runs/mnist/evaluation", 128, ["optimal"])
measure.figures(run, "runs/mnist/evaluation")
"""

import dataclasses
import itertools
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax import build, data
from ddpm_jax.data import images as pixels
from ddpm_jax.diffusion.likelihood import BitsPerDim, rate_distortion
from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.evaluation import plots, quality
from ddpm_jax.features import classifier
from ddpm_jax.files.atomic import writing
from ddpm_jax.files.tables import read_json
from ddpm_jax.jobs import edit
from ddpm_jax.jobs.trained import Trained

CLASSIFIER = "classifier.npz"  # the feature network of distances
NEAR = 50_000  # training images to search for nearest neighbors


def write_json(path: str | os.PathLike, result: dict) -> None:
  """Writes `result` as JSON, atomically."""
  with writing(path) as temporary:
    temporary.write_text(json.dumps(result, indent=2))


def metrics_file(folder: pathlib.Path, result: dict) -> pathlib.Path:
  """The first of metrics.json, metrics_2.json, ... that is free, or holds a result of the same settings as `result`."""
  same = lambda kept: all(kept.get(side) == result.get(side) for side in ("samples", "reference", "features", "captions"))
  paths = (folder / ("metrics.json" if number == 1 else f"metrics_{number}.json") for number in itertools.count(1))
  return next(path for path in paths if not path.exists() or same(read_json(path)))


def held_out(trained: Trained) -> data.Source:
  """The test images of its data set."""
  return trained.dataset(trained.config.data.test_split)


def split_ending(trained: Trained) -> str:
  """The ending of file names when a split other than the run's own test split is measured, such as "_on_train"."""
  split = trained.config.data.test_split
  if trained.held_out in (None, split):
    return ""
  return "_on_" + re.sub(r"\W+", "_", split).strip("_")


# ---------------------------------------------------------------- likelihood


def held_out_bits_per_dim(
  trained: Trained, folder: str | os.PathLike, count: int, covariances: Sequence[str] | None = None
) -> list[dict[str, Any]]:
  """The bound on `count` test images: bits_per_dim.json, its terms and the rate-distortion curve as pictures.

  Args:
    covariances: names, or "all" for every covariance that the network provides; each gets files that end in its name. None:
      the covariance of config.evaluation. Moments that ddpm-jax moments wrote to the folder are used where needed.

  Raises:
    UserError: for an unknown covariance, or one that the network does not provide.
  """
  folder = pathlib.Path(folder)
  names = [None]
  if covariances is not None:
    if trained.config.sampling.moments is None and (moments := folder / "moments.npz").exists():
      trained = trained.changed(sampling=dict(moments=str(moments)))
    names = build.covariances(trained.config) if "all" in covariances else covariances
    for name in names:
      build.covariance_of(trained.config, name, eta=1.0)
  source = held_out(trained)
  other = split_ending(trained)
  results = []
  bounds = {}
  for name in names:
    using = trained if name is None else trained.changed(evaluation=dict(covariance=name))
    bound = using.bits_per_dim(source, count, progress=True)
    result = _of_bound(using, source, bound)
    ending = ("" if name is None else f"_{name.rpartition(':')[2]}") + other
    write_json(folder / f"bits_per_dim{ending}.json", result)
    results.append(result)
    bounds[result["covariance"]] = bound
  levels = build.bound(trained.config)[0].t.n
  plots.bound_terms(bounds, levels, folder / f"{'bits_per_dim' if covariances is None else 'covariances'}{other}.png")
  if covariances is None:
    plots.rate_distortion(bound, levels, folder / f"rate_distortion{other}.png")
  return results


def _of_bound(trained: Trained, source: data.Source, bound: BitsPerDim) -> dict[str, Any]:
  total = np.asarray(bound.total, float)
  terms = np.asarray(bound.terms, float)
  curve = rate_distortion(bound)
  levels = len(np.unique(source.gather(source.some(1000))[0]))
  return {
    "images": len(total),
    "split": source.info.split,
    "covariance": build.bound_covariance(trained.config),
    "steps": terms.shape[1],
    "bits_per_dim": float(total.mean()),
    "standard_error": _error(total),
    "prior": float(bound.prior.mean()),
    "between": float(terms[:, :-1].sum(1).mean()),
    "decoder": float(terms[:, -1].mean()),
    "grey_levels": levels,
    "uniform_over_grey_levels": float(np.log2(levels)),
    "terms": terms.mean(0).tolist(),
    "rate_bits_per_dim": np.asarray(curve.rate, float).tolist(),  # of the state before each step (DDPM table 4)
    "distortion_rmse": np.asarray(curve.rmse, float).tolist(),  # of the x_0 predicted there, on the scale 0 to 255
    **_whose(trained),
  }


def held_out_ode_bits_per_dim(trained: Trained, folder: str | os.PathLike, count: int) -> dict[str, Any]:
  """Bits/dim of `count` test images by the ODE, of networks of the schedule vp_sde: ode_bits_per_dim.json."""
  source = held_out(trained)
  found = trained.ode_bits_per_dim(source, count)
  result = {
    "images": len(found.bits),
    "split": source.info.split,
    "bits_per_dim": float(found.bits.mean()),
    "standard_error": _error(found.bits),
    "steps": float(found.steps.mean()),
    **_whose(trained),
  }
  write_json(pathlib.Path(folder) / f"ode_bits_per_dim{split_ending(trained)}.json", result)
  return result


def _error(values: np.ndarray) -> float | None:
  """Standard error of the mean."""
  return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def _whose(trained: Trained) -> dict[str, Any]:
  return {"weights": trained.weights, "step": trained.step}


# ---------------------------------------------------------------- accuracy, distance


def accuracy(trained: Trained, folder: str | os.PathLike) -> dict[str, Any]:
  """Accuracy of a noisy classifier on all test images, overall and by quarters of the noise level: accuracy.json."""
  source = held_out(trained)
  result = trained.accuracy(source) | {"images": len(source), "split": source.info.split, **_whose(trained)}
  write_json(pathlib.Path(folder) / f"accuracy{split_ending(trained)}.json", result)
  return result


def check_distance(trained: Trained, folder: str | os.PathLike, count: int) -> None:
  """Raises UserError for problems that can be found without reading data, before anything is drawn or measured."""
  about = trained.config.data
  quality.check(about.name, about.num_classes, about.channels, pathlib.Path(folder, CLASSIFIER), count)


def distance(trained: Trained, folder: str | os.PathLike, count: int) -> quality.Distances:
  """Distance of `count` samples to real images, in features of the data's classifier: distance.json, nearest_neighbours.png.

  Raises:
    UserError: for data without labels, fewer samples than features, or more than half of the training images.
  """
  folder = pathlib.Path(folder)
  judge = yardstick(trained, folder, count)
  samples = trained.sample(range(count), progress=True)
  found = judge(samples)
  write_json(folder / "distance.json", dataclasses.asdict(found) | _whose(trained))
  plots.nearest_neighbours(samples[:8], judge.real, folder / "nearest_neighbours.png")
  return found


def yardstick(trained: Trained, folder: str | os.PathLike, count: int) -> quality.Yardstick:
  """The Yardstick for `count` samples of this network, with its classifier in `folder`. Raises UserError as `distance`."""
  train = trained.dataset(trained.config.data.train_split)
  return quality.Yardstick(train, held_out(trained), pathlib.Path(folder, CLASSIFIER), count)


def own_classifier(trained: Trained, folder: str | os.PathLike, count: int | None = None) -> classifier.FeatureNet:
  """The small classifier of this network's data set, read from the folder, or trained and stored there.

  Args:
    count: the number of images whose moments will be computed. Too few are refused before anything is trained.
  """
  train = trained.dataset(trained.config.data.train_split)
  if count is not None:
    quality.check_count(count, classifier.Recipe.suiting(train.info.channels))
  return quality.classifier_of(train, held_out(trained), pathlib.Path(folder, CLASSIFIER))


# ---------------------------------------------------------------- the figures of the paper


def figures(trained: Trained, folder: str | os.PathLike) -> list[str]:
  """Pictures of DDPM's figures for this network, written to the folder; returns their names.

  samples.png             64 images (figure 1)
  progressive.png         predictions of x_0 for eight of them during sampling (figure 6)
  interpolation.png       between test images, mixed half of the way up to noise (figure 8)
  nearest_neighbours.png  the training images most like eight samples (figure 13)
  """
  folder = pathlib.Path(folder)
  total = len(build.sampler(trained.config, trained.guide).steps.left)
  every = -(-total // 10)
  samples, beliefs = trained.sample(range(64), save=_belief, save_every=every, progress=True)
  pixels.save_png(folder / "samples.png", pixels.grid(samples, scale=max(1, 64 // samples.shape[1])))
  frames = pixels.to_uint8(beliefs[:, :8], trained.config.sampling.rounding).swapaxes(0, 1)
  left = [f"{every * k}" for k in reversed(range(len(beliefs)))]
  plots.image_table(frames, left, folder / "progressive.png", "Predictions of x_0, by remaining steps")

  source = held_out(trained)
  pairs = np.resize(source.some(8), (4, 2))  # repeats images if there are fewer
  between = edit.between(trained, source, pairs, frames=11)
  ends = source.gather(pairs.ravel())[0].reshape(4, 2, 1, *trained.image_shape)
  weights = ["rec.", *(f"{weight:.1f}" for weight in np.linspace(0, 1, 11)[1:-1]), "rec."]
  plots.image_table(
    np.concatenate([ends[:, 0], between, ends[:, 1]], 1),
    ["source", *weights, "source"],
    folder / "interpolation.png",
    "Between test images, mixed half of the way up to noise",
  )
  train = trained.dataset(trained.config.data.train_split)
  real, _ = train.gather(train.some(NEAR))
  plots.nearest_neighbours(samples[:8], real, folder / "nearest_neighbours.png")
  return ["samples.png", "progressive.png", "interpolation.png", "nearest_neighbours.png"]


def _belief(x: jax.Array, pred: Prediction) -> jax.Array:
  return pred.x0
