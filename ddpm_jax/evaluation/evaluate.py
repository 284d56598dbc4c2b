"""Evaluates samples against a reference: FID, sFID, Inception score, precision and recall, and KID."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddpm_jax import __version__, importable, named
from ddpm_jax.config import nearest
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.image_sets import ImageSet
from ddpm_jax.evaluation.references import Reference
from ddpm_jax.features.extract import Extractor, extract, outputs_of
from ddpm_jax.metrics import precision_recall as manifolds
from ddpm_jax.metrics.frechet import Moments, frechet_distance
from ddpm_jax.metrics.inception_score import inception_score
from ddpm_jax.metrics.mmd import kid
from ddpm_jax.named import Entry

PUBLISHED = 50_000  # samples of every published FID


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings of all metrics; see `evaluate`."""

  k: int = 3
  split_size: int = 5000
  arithmetic: str = "float32"
  subsets: int = 100


@dataclasses.dataclass(frozen=True)
class Metric:
  """How one metric is computed.

  Attributes:
    output: the extractor's output that it needs.
    against: what it needs of the reference: "moments", "images", or None.
    compute: compute(samples [N, d], reference, settings) -> a number or a dict. `samples` is the output for the samples;
      `reference` is its Moments or the output for the reference images [M, d], as `against` says.
  """

  output: str
  against: str | None
  compute: Callable[[np.ndarray, Any, Settings], Any]


def _distance(samples: np.ndarray, reference: Moments, settings: Settings) -> float:
  return frechet_distance(Moments.of(samples), reference)


def _inception_score(samples: np.ndarray, reference: None, settings: Settings) -> dict[str, Any]:
  return inception_score(samples, settings.split_size)._asdict() | {"split_size": settings.split_size}


def _precision_recall(samples: np.ndarray, reference: np.ndarray, settings: Settings) -> dict[str, Any]:
  k = settings.k
  found = manifolds.precision_recall(reference, samples, k=k, arithmetic=settings.arithmetic)
  return found._asdict() | {"k": k, "arithmetic": settings.arithmetic, "reference_count": len(reference)}


def _kid(samples: np.ndarray, reference: np.ndarray, settings: Settings) -> dict[str, Any]:
  return kid(reference, samples, subsets=settings.subsets)._asdict() | {"subsets": settings.subsets}


METRICS = {
  "fid": Entry(Metric("features", "moments", _distance), "Fréchet distance of pooled features"),
  "sfid": Entry(Metric("spatial", "moments", _distance), "Fréchet distance of spatial features"),
  "inception_score": Entry(Metric("logits", None, _inception_score), "Inception score, without a reference"),
  "precision_recall": Entry(Metric("features", "images", _precision_recall), "improved precision and recall"),
  "kid": Entry(Metric("features", "images", _kid), "kernel Inception distance, unbiased for few images"),
}


def find(name: str) -> Metric:
  """The metric of that name: one of METRICS, or an object to import (package.module:Object or path/to/file.py:Object).

  Such an object is a `Metric`, or only its `compute`, which then gets the pooled features of both sets of images.

  Raises:
    UserError: if there is no such metric.
  """
  if name not in METRICS and not importable.is_code(name):
    raise UserError(f"There is no metric {name!r}; {nearest(name, METRICS)}")
  found = named.find(METRICS, name, "Metric")
  if isinstance(found, Metric):
    return found
  if not callable(found):
    raise UserError(f"{name} is not a metric: it must be a Metric or a function (samples, reference, settings) -> number.")
  return Metric("features", "images", found)


def evaluate(
  samples: ImageSet,
  reference: Reference | ImageSet,
  extractor: Extractor,
  *,
  metrics: Sequence[str] | None = None,
  count: int = PUBLISHED,
  k: int = 3,
  split_size: int = 5000,
  arithmetic: str = "float32",
  subsets: int = 100,
  **options: Any,
) -> dict[str, Any]:
  """The `metrics` of `samples`, with everything needed to compare them with other numbers, as JSON.

  Args:
    samples: the images to evaluate.
    reference: stored moments, or images.
    extractor: computes features of images.
    metrics: names as in `find`; None means all of METRICS that the extractor and the reference allow.
    count: the intended number of samples. FID depends on it, so any count other than the published 50,000 must be
      requested explicitly.
    k: the number of neighbors in precision and recall.
    split_size: images per split of the Inception score.
    arithmetic: arithmetic of precision and recall: "float32" or "float16".
    subsets: number of KID's subsets, of 1,000 images each.
    options: options of `extract`: batch_size, devices, folder, progress.

  Raises:
    UserError: if samples and reference do not match, or a metric is unknown or not possible with them.
  """
  start = time.perf_counter()
  outputs = outputs_of(extractor, samples.image_shape)
  chosen = {name: find(name) for name in possible(metrics, outputs, reference)}
  _check_sides(samples, reference, extractor)
  _check_counts(samples, reference, outputs, chosen, count)
  settings = Settings(k, split_size, arithmetic, subsets)

  def measured(images: ImageSet, *against: str | None) -> dict[str, np.ndarray]:
    """Features of `images` for the metrics that need these parts of a reference."""
    wanted = {metric.output for metric in chosen.values() if metric.against in against}
    names = tuple(name for name in outputs if name in wanted)
    return extract(extractor, images.source, outputs=names, source=images.sha256, **options) if names else {}

  found = measured(samples, None, "moments", "images")
  if isinstance(reference, ImageSet):
    real = measured(reference, "moments", "images")
    moments = {m.output: Moments.of(real[m.output]) for m in chosen.values() if m.against == "moments"}
    about = reference.describe()
  else:
    real = measured(reference.images, "images")
    moments = reference.moments
    about = reference.about
  sides: dict[str | None, Any] = {None: dict.fromkeys(outputs), "moments": moments, "images": real}
  result = {
    name: _plain(metric.compute(found[metric.output], sides[metric.against][metric.output], settings))
    for name, metric in chosen.items()
  }
  return {
    "metrics": result,
    "features": extractor.describe(),
    "samples": samples.describe(),
    "reference": about,
    "ddpm_jax": __version__,
    "seconds": round(time.perf_counter() - start, 1),
  }


def possible(metrics: Sequence[str] | None, outputs: dict[str, int], reference: Reference | ImageSet) -> tuple[str, ...]:
  """The metrics to compute. Raises UserError for a requested metric that is unknown or not possible."""
  if metrics is None:
    return tuple(name for name, entry in METRICS.items() if _lack(entry.value, outputs, reference) is None)
  for name in metrics:
    if (lack := _lack(find(name), outputs, reference)) is not None:
      raise UserError(f"{name} cannot be computed: {lack}.")
  return tuple(metrics)


def _lack(metric: Metric, outputs: dict[str, int], reference: Reference | ImageSet) -> str | None:
  """What a metric needs and does not get from the extractor and the reference, if anything."""
  if metric.output not in outputs:
    return f"the feature network has no output {metric.output!r}"
  if isinstance(reference, ImageSet):
    return None
  if metric.against == "moments" and metric.output not in reference.moments:
    return "the reference has no moments for it"
  if metric.against == "images" and reference.images is None:
    return "the reference has no images (arr_0)"
  return None


def _plain(value: Any) -> Any:
  """A number, or a dict of numbers, without NumPy's types, for JSON."""
  if isinstance(value, dict):
    return {name: _plain(part) for name, part in value.items()}
  return value.item() if isinstance(value, (np.generic, np.ndarray)) else value


def _check_sides(samples: ImageSet, reference: Reference | ImageSet, extractor: Extractor) -> None:
  """Raises UserError unless both sides have images of one shape and features of one network."""
  about = reference.describe() if isinstance(reference, ImageSet) else reference.about
  images = reference if isinstance(reference, ImageSet) else reference.images
  shape = images.image_shape if images else about.get("image_shape", samples.image_shape)
  if tuple(shape) != samples.image_shape:
    ours, theirs = ("x".join(map(str, each)) for each in (samples.image_shape, shape))
    raise UserError(f"The samples are {ours}, the reference {about['name']} is {theirs}; use a reference of {ours}.")
  if isinstance(reference, ImageSet):
    return
  made_with = about.get("features")
  here = extractor.describe()
  if made_with and made_with["sha256"] != here["sha256"]:
    theirs, ours = (f"{each['name']} ({each['sha256'][:8]})" for each in (made_with, here))
    raise UserError(
      f"The reference {about['name']} was made with the features {theirs}, not with {ours}; use those, or make it again."
    )
  if not made_with and "spatial" in reference.moments and extractor.name != "inception_tf":
    raise UserError(f"{about['name']} is a reference of OpenAI's, made with inception_tf, not with {extractor.name}.")
  dims = outputs_of(extractor, samples.image_shape)
  for name, moments in reference.moments.items():
    if name in dims and dims[name] != moments.mean.size:
      raise UserError(
        f"The reference {about['name']} has {moments.mean.size} {name}, but {extractor.name} gives "
        f"{dims[name]}; use the network it was made with."
      )


def _check_counts(
  samples: ImageSet, reference: Reference | ImageSet, outputs: dict[str, int], metrics: dict[str, Metric], count: int
) -> None:
  """Raises UserError unless there are `count` samples, and more images than features."""
  if len(samples) != count:
    meant = "published FIDs use 50,000" if count == PUBLISHED else f"{count:,} were requested"
    raise UserError(
      f"There are {len(samples):,} samples, but {meant}, and FID depends on their number: "
      f"draw {count:,}, or request {len(samples):,} explicitly (--num_samples {len(samples)})."
    )
  known = len(reference) if isinstance(reference, ImageSet) else reference.about["count"]
  sides = {"samples": len(samples)} | ({} if known is None else {"reference images": known})
  for name, metric in metrics.items():
    if metric.against != "moments":
      continue
    dims = outputs[metric.output]
    for side, number in sides.items():
      if number <= dims:
        raise UserError(
          f"{number:,} {side} are too few for {name}: the covariance of {dims:,} features needs more images than that; "
          "use more, or measure kid instead."
        )
