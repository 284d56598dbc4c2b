"""Samples against a reference: FID, sFID, Inception score, precision and recall, KID, and what they were measured on."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ddpm_jax import __version__
from ddpm_jax.config import nearest
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.image_sets import ImageSet
from ddpm_jax.evaluation.references import Reference
from ddpm_jax.features.extract import Extractor, extract, outputs_of
from ddpm_jax.metrics import precision_recall as manifolds
from ddpm_jax.metrics.frechet import Moments, frechet_distance
from ddpm_jax.metrics.inception_score import inception_score
from ddpm_jax.metrics.mmd import kid

PUBLISHED = 50_000  # samples of every published FID

NEEDS = {  # outputs of the extractor for each metric
  "fid": ("features",),
  "sfid": ("spatial",),
  "inception_score": ("logits",),
  "precision_recall": ("features",),
  "kid": ("features",),
}


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
  """All `metrics` of `samples`, with everything needed to compare them with other numbers; JSON-able.

  Args:
    samples: what is measured.
    reference: moments made before, or images.
    extractor: what turns images into features.
    metrics: some of fid, sfid, inception_score, precision_recall, kid; None: all that extractor and reference allow.
    count: the number of samples that is meant. FID falls with it, so that one of another number than the published
      50,000 has to be asked for.
    k: neighbours of precision and recall.
    split_size: of the Inception score.
    arithmetic: of precision and recall, see there.
    subsets: of KID, 1,000 images each.
    options: of `extract`: batch_size, devices, folder, progress.

  Raises:
    UserError: if the two sides do not fit, or a metric is unknown or cannot be had.
  """
  start = time.perf_counter()
  outputs = outputs_of(extractor, samples.image_shape)
  metrics = possible(metrics, outputs, reference)
  _check_sides(samples, reference, extractor)
  _check_counts(samples, reference, outputs, metrics, count)

  def measured(images: ImageSet, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    names = tuple(name for name in outputs if any(name in NEEDS[metric] for metric in wanted))
    return extract(extractor, images.source, outputs=names, source=images.sha256, **options)

  found = measured(samples, metrics)
  if isinstance(reference, ImageSet):
    real = measured(reference, [metric for metric in metrics if metric != "inception_score"])
    moments = {name: Moments.of(array) for name, array in real.items() if name != "logits"}
    near = real.get("features")
    about = reference.describe()
  else:
    moments = reference.moments
    about = reference.about
    near = None
    if {"precision_recall", "kid"} & set(metrics):
      near = measured(reference.images, ["precision_recall"])["features"]
  result: dict[str, Any] = {}
  for metric in metrics:
    if metric in ("fid", "sfid"):
      (name,) = NEEDS[metric]
      result[metric] = frechet_distance(Moments.of(found[name]), moments[name])
    elif metric == "inception_score":
      result[metric] = inception_score(found["logits"], split_size)._asdict() | {"split_size": split_size}
    elif metric == "precision_recall":
      result[metric] = manifolds.precision_recall(near, found["features"], k=k, arithmetic=arithmetic)._asdict()
      result[metric] |= {"k": k, "arithmetic": arithmetic, "reference_count": len(near)}
    else:
      result[metric] = kid(near, found["features"], subsets=subsets)._asdict() | {"subsets": subsets}
  return {
    "metrics": result,
    "features": extractor.describe(),
    "samples": samples.describe(),
    "reference": about,
    "ddpm_jax": __version__,
    "seconds": round(time.perf_counter() - start, 1),
  }


def possible(metrics: Sequence[str] | None, outputs: dict[str, int], reference: Reference | ImageSet) -> tuple[str, ...]:
  """The metrics to compute; refuses those that were asked for and cannot be had."""
  missing = {}
  for metric, needs in NEEDS.items():
    if absent := [name for name in needs if name not in outputs]:
      missing[metric] = f"the feature network gives no {absent[0]} output"
    elif isinstance(reference, Reference):
      if metric in ("fid", "sfid") and needs[0] not in reference.moments:
        missing[metric] = "the reference has no moments for it"
      elif metric in ("precision_recall", "kid") and reference.images is None:
        missing[metric] = "the reference has no images (arr_0)"
  if metrics is None:
    return tuple(metric for metric in NEEDS if metric not in missing)
  check_names(metrics)
  for metric in metrics:
    if metric in missing:
      raise UserError(f"{metric} cannot be had: {missing[metric]}.")
  return tuple(metrics)


def check_names(metrics: Iterable[str]) -> None:
  """Raises UserError for a metric that does not exist."""
  for metric in metrics:
    if metric not in NEEDS:
      raise UserError(f"There is no metric {metric!r}; {nearest(metric, NEEDS)}")


def _check_sides(samples: ImageSet, reference: Reference | ImageSet, extractor: Extractor) -> None:
  """Both sides have images of one shape, and features of one network."""
  about = reference.describe() if isinstance(reference, ImageSet) else reference.about
  images = reference if isinstance(reference, ImageSet) else reference.images
  shape = images.image_shape if images else about.get("image_shape", samples.image_shape)
  if tuple(shape) != samples.image_shape:
    ours, theirs = ("x".join(map(str, each)) for each in (samples.image_shape, shape))
    raise UserError(f"The samples are {ours}, the reference {about['name']} is {theirs}; take a reference of {ours}.")
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
  samples: ImageSet, reference: Reference | ImageSet, outputs: dict[str, int], metrics: Sequence[str], count: int
) -> None:
  """As many samples as are meant, and more images than features."""
  if len(samples) != count:
    meant = "published FIDs are of 50,000" if count == PUBLISHED else f"{count:,} were meant"
    raise UserError(
      f"There are {len(samples):,} samples, but {meant}, and a FID depends on their number: "
      f"draw {count:,}, or say that you mean {len(samples):,}."
    )
  known = len(reference) if isinstance(reference, ImageSet) else reference.about["count"]
  sides = {"samples": len(samples)} | ({} if known is None else {"reference images": known})
  for metric in set(metrics) & {"fid", "sfid"}:
    dims = outputs[NEEDS[metric][0]]
    for side, number in sides.items():
      if number <= dims:
        raise UserError(
          f"{number:,} {side} are too few for {metric} of {dims:,} features, whose covariance needs more "
          "images than that; give more, or ask for kid instead."
        )
