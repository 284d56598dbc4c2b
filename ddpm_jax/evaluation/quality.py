"""Fréchet distances of generated images to real ones, in features of a classifier trained on the data set.

A Fréchet distance of few images is biased upwards. For comparison, real images are split into two halves: the distance of
the samples to one half is reported together with the distance of as many images of the other half.
"""

import dataclasses
import functools
import os
from collections.abc import Callable

import numpy as np

from ddpm_jax import data
from ddpm_jax.data.sources import Source
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import image_sets
from ddpm_jax.features import classifier
from ddpm_jax.files import download, npz
from ddpm_jax.metrics import frechet


@dataclasses.dataclass(frozen=True)
class Distances:
  """Fréchet distances to the first half of the real images, with the number of images on each side."""

  samples: float
  real: float  # of the other half: the distance of perfect samples
  count: int  # images on the left side of both
  reference_count: int
  classifier: dict  # FeatureNet.describe()


def distances(net: classifier.FeatureNet, samples: np.ndarray, real: np.ndarray) -> Distances:
  """Distances of `samples` and of real images, both uint8 [.,H,W,C], by `net`.

  Raises:
    UserError: if there are fewer samples than features, whose covariance would be singular.
  """
  half = len(real) // 2
  count = min(len(samples), half)
  check_count(count, net.recipe)
  moments = lambda images: frechet.Moments.of(in_parts(net.features, images))
  reference = moments(real[:half])
  return Distances(
    frechet.frechet_distance(moments(samples[:count]), reference),
    frechet.frechet_distance(moments(real[half : half + count]), reference),
    count,
    half,
    net.describe(),
  )


class Yardstick:
  """Distances of images to half of the training images of a labeled data set, in features of its classifier.

  The classifier is read from `path`, or trained and stored there. This happens at construction, before hours of sampling.

  Raises:
    UserError: for data without labels, fewer samples than features, or more samples than half of the training images.
  """

  def __init__(self, train: Source, test: Source, path: str | os.PathLike, count: int):
    check(train.info.name, train.info.num_classes, train.info.channels, path, count)
    if count > len(train) // 2:
      raise UserError(
        f"{count} samples are compared with half of the {len(train)} training images: use at most {len(train) // 2}."
      )
    self._train = train
    self.net = classifier_of(train, test, path)

  @functools.cached_property
  def real(self) -> np.ndarray:
    """The training images."""
    return real_images(self._train)

  def __call__(self, samples: np.ndarray) -> Distances:
    return distances(self.net, samples, self.real)


def check(name: str, num_classes: int | None, channels: int, path: str | os.PathLike, count: int) -> None:
  """Raises UserError if a Yardstick is impossible for such data, without reading any image."""
  if os.path.exists(path):
    recipe = classifier.restore(path).recipe
  else:
    check_labels(name, num_classes)
    recipe = classifier.Recipe.suiting(channels)
  check_count(count, recipe)


def check_count(count: int, recipe: classifier.Recipe) -> None:
  """Raises UserError if the features of `count` images have a singular covariance."""
  if count <= recipe.num_features:
    raise UserError(
      f"{count} images are too few for the covariance of {recipe.num_features} features: use more than "
      f"{recipe.num_features}, and at least twice as many real images."
    )


def real_images(source: Source) -> np.ndarray:
  """All images of a data set, uint8 [N,H,W,C], for `distances`, which compares halves.

  They are in stored order, but shuffled if they are sorted by class, as in folders: otherwise a half would lack classes.
  """
  images, labels = source.gather(np.arange(len(source)))
  sorted_by_class = (np.diff(labels) >= 0).all()
  return images[np.random.default_rng(0).permutation(len(images))] if sorted_by_class else images


def classifier_of(
  train: Source, test: Source, path: str | os.PathLike, recipe: classifier.Recipe | None = None
) -> classifier.FeatureNet:
  """The feature network of a labeled data set, read from `path` or trained and stored there. No recipe means the default."""
  if os.path.exists(path):
    return classifier.restore(path)
  check_labels(train.info.name, train.info.num_classes)
  recipe = recipe or classifier.Recipe.suiting(train.info.channels)
  both = [source.gather(np.arange(len(source))) for source in (train, test)]
  net = classifier.train_classifier(*both[0], *both[1], recipe=recipe, progress=True)
  net.save(path)
  return net


def check_labels(name: str, num_classes: int | None) -> None:
  """Raises UserError for a data set without classes."""
  if num_classes is None:
    raise UserError(f"{name} has no labels to train a classifier on: measure FID instead.")


def classifier_for(name: str, count: int | None = None) -> classifier.FeatureNet:
  """The feature network of the labeled data set `name`, stored in the cache.

  Args:
    count: number of images to compute moments of; too few are refused before training.
  """
  train, test = (data.load(name, split) for split in ("train", "test"))
  recipe = classifier.Recipe.suiting(train.info.channels)
  if count is not None:
    check_count(count, recipe)
  key = npz.text_digest([image_sets.of_source(train).sha256, dataclasses.asdict(recipe)])
  return classifier_of(train, test, download.cache_folder() / "classifiers" / f"{key[:16]}.npz", recipe)


def in_parts(function: Callable, images: np.ndarray, size: int = 500) -> np.ndarray:
  """function(images [B, H, W, C]), computed `size` images at a time."""
  return np.concatenate([np.asarray(function(images[i : i + size])) for i in range(0, len(images), size)])
