"""The embedded data set: scikit-learn's 1,797 handwritten digits, 8x8 pixels of 17 grey levels."""

import importlib.metadata

import numpy as np

from ddpm_jax.data.sources import Arrays, Info

SPLITS = {"train": 1437, "test": 360}  # images: the last and the first of a fixed permutation


def levels_to_pixels(levels: np.ndarray) -> np.ndarray:
  """Grey levels 0..16 as uint8, spread evenly over 0..255: round(255 v / 16).

  Examples:
    >>> levels_to_pixels(np.arange(17)).tolist()
    [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
  """
  return np.round(np.asarray(levels) * (255 / 16)).astype(np.uint8)


def digits(split: str) -> Arrays:
  """The 1,437 "train" or the 360 "test" digits, uint8 [N, 8, 8, 1]."""
  scikit_learn = importlib.metadata.distribution("scikit-learn")  # importing it would take 1.3 s
  table = np.loadtxt(str(scikit_learn.locate_file("sklearn/datasets/data/digits.csv.gz")), delimiter=",")
  images = table[:, :-1].reshape(-1, 8, 8)
  labels = table[:, -1].astype(int)
  # RandomState's stream is frozen by NumPy: this permutation is always the same.
  order = np.random.RandomState(0).permutation(len(labels))
  chosen = order[: SPLITS["test"]] if split == "test" else order[SPLITS["test"] :]
  info = Info("digits", split, image_size=8, channels=1, num_classes=10)
  return Arrays(info, levels_to_pixels(images[chosen])[..., None], labels[chosen])
