"""Inception score (Salimans et al. 2016): exp of the mutual information between images and labels.

    IS = mean over splits of exp( E_x KL( p(y | x) || p(y) ) ),    p(y) = E_x p(y | x) within the split

A split is `split_size` consecutive images; the last may be shorter (OpenAI: 5,000; Ho: all images at once).
"""

from typing import NamedTuple

import numpy as np
import scipy.special

from ddpm_jax.errors import UserError


class InceptionScore(NamedTuple):
  """Mean and standard deviation over the splits, between 1 and the number of classes."""

  mean: float
  std: float


def inception_score(logits: np.ndarray, split_size: int | None = 5000) -> InceptionScore:
  """The Inception score of images with these `logits` [N, classes]. OpenAI and Ho use Inception's logits without bias.

  Args:
    logits: unnormalized log-probabilities.
    split_size: images per split; None means one split of all images.

  Raises:
    UserError: if there are no images or no positive split size.
  """
  count = len(logits)
  split_size = count if split_size is None else split_size
  if not count or split_size < 1:
    raise UserError(f"An Inception score needs images and a positive split size, not {count} and {split_size}.")
  scores = []
  for start in range(0, count, split_size):
    p = scipy.special.softmax(np.asarray(logits[start : start + split_size], np.float64), axis=1)
    kl = scipy.special.rel_entr(p, p.mean(axis=0)).sum(axis=1)
    scores.append(np.exp(kl.mean()))
  return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
