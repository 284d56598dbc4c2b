"""A data set of your own. A folder or zip of images needs no code; this is for images that a program makes."""

import numpy as np

from ddpm_jax import data
from ddpm_jax.data.sources import Info, Source


class Discs(Source):
  """Ten thousand white discs, made when they are read; the label says whether a disc is large."""

  info = Info(name="discs", split="train", image_size=16, channels=1, num_classes=2)

  def __len__(self):
    return 10_000

  def gather(self, indices, draws=None):
    radius, x, y = np.random.default_rng(0).uniform([[2], [5], [5]], [[5], [11], [11]], (3, len(self)))[:, indices]
    rows, columns = np.mgrid[:16, :16]
    apart = np.hypot(rows - y[:, None, None], columns - x[:, None, None])
    return (255 * (apart < radius[:, None, None])).astype(np.uint8)[..., None], (radius > 3.5).astype(np.int32)


def discs(split, image_size, channels, crop):
  return Discs()


if __name__ == "__main__":
  batch = data.train_batches(Discs(), 8)[0]  # shuffled; the same for this step in every run and on every machine
  print("image", batch["image"].shape, batch["image"].min(), "to", batch["image"].max(), "labels", batch["label"].tolist())
