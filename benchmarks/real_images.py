"""Distances between real images, end to end, and Inception at its full width.

    python benchmarks/real_images.py features  --out benchmarks/real_images.json
    python benchmarks/real_images.py inception --out benchmarks/inception.json

"features": CIFAR-10's test images against its training images, whole and in halves, and one half against the other, in the
features of the project's own classifier, which is trained first and kept in the cache. Needs CIFAR-10 in $DDPM_JAX_DATA.

"inception": both forms of Inception with random weights on real CIFAR-10 images: seconds, memory, and whether features are
finite and bitwise the same on one and on four (virtual) devices. The published weights were out of reach.
"""

import argparse
import json
import os
import pathlib
import resource
import sys
import time

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")

import jax
import numpy as np

from ddpm_jax.evaluation import evaluate, image_sets, quality
from ddpm_jax.features.extract import extract
from ddpm_jax.features.inception import Inception
from ddpm_jax.files import download

COMPARED = {  # samples and reference, both of cifar10
  "test against train": ("test", "train"),
  "test against the first half of train": ("test", "train[:25000]"),
  "test against the second half of train": ("test", "train[25000:]"),
  "second half of train against the first": ("train[25000:]", "train[:25000]"),
  "10,000 of the second half against the first": ("train[25000:35000]", "train[:25000]"),
}


def own_features() -> dict:
  """The table of distances, with the recipe and the accuracy of the classifier."""
  start = time.perf_counter()
  net = quality.classifier_for("cifar10")
  rows = {}
  about = {"trained_in_seconds": round(time.perf_counter() - start, 1), "features": net.describe()}
  for title, (samples, reference) in COMPARED.items():
    samples, reference = (image_sets.open_set("cifar10", split) for split in (samples, reference))
    options = dict(metrics=("fid", "precision_recall"), batch_size=250, folder=download.cache_folder() / "features")
    found = evaluate.evaluate(samples, reference, net, count=len(samples), **options)
    rows[title] = found["metrics"] | {"samples": found["samples"], "reference": found["reference"]}
    near = rows[title]["precision_recall"]
    print(f"{title:45} {rows[title]['fid']:7.4f}  {near['precision']:.3f}  {near['recall']:.3f}", flush=True)
  return about | {"rows": rows}


# ---------------------------------------------------------------- Inception


def widths() -> dict[str, tuple[int, int, int, int]]:
  """The kernels [h, w, in, out] of Inception-v3 by the names of their layers (Szegedy et al. 2015, table 1)."""
  kernels = {}

  def chain(prefix, start, *convolutions):
    """Convolutions (h, w, out) one after the other; the last number of channels."""
    for index, (height, width, out) in enumerate(convolutions):
      kernels[prefix + ("conv" if index == 0 else f"conv_{index}")] = (height, width, start, out)
      start = out
    return start

  x = chain("", 3, (3, 3, 32), (3, 3, 32), (3, 3, 64), (1, 1, 80), (3, 3, 192))
  for block, pool in (("mixed", 32), ("mixed_1", 64), ("mixed_2", 64)):
    x = (
      chain(f"{block}/", x, (1, 1, 64))
      + chain(f"{block}/tower/", x, (1, 1, 48), (5, 5, 64))
      + chain(f"{block}/tower_1/", x, (1, 1, 64), (3, 3, 96), (3, 3, 96))
      + chain(f"{block}/tower_2/", x, (1, 1, pool))
    )
  x += chain("mixed_3/", x, (3, 3, 384)) + chain("mixed_3/tower/", x, (1, 1, 64), (3, 3, 96), (3, 3, 96))
  for block, inner in (("mixed_4", 128), ("mixed_5", 160), ("mixed_6", 160), ("mixed_7", 192)):
    x = (
      chain(f"{block}/", x, (1, 1, 192))
      + chain(f"{block}/tower/", x, (1, 1, inner), (1, 7, inner), (7, 1, 192))
      + chain(f"{block}/tower_1/", x, (1, 1, inner), *[(7, 1, inner), (1, 7, inner), (7, 1, inner)], (1, 7, 192))
      + chain(f"{block}/tower_2/", x, (1, 1, 192))
    )
  x += chain("mixed_8/tower/", x, (1, 1, 192), (3, 3, 320)) + chain(
    "mixed_8/tower_1/", x, (1, 1, 192), (1, 7, 192), (7, 1, 192), (3, 3, 192)
  )
  for block in ("mixed_9", "mixed_10"):
    out = chain(f"{block}/", x, (1, 1, 320)) + chain(f"{block}/tower_2/", x, (1, 1, 192))
    for tower, stem in (("tower", [(1, 1, 384)]), ("tower_1", [(1, 1, 448), (3, 3, 384)])):
      y = chain(f"{block}/{tower}/", x, *stem)
      for fork, shape in (("conv", (1, 3)), ("conv_1", (3, 1))):
        kernels[f"{block}/{tower}/mixed/{fork}"] = (*shape, y, 384)
        out += 384
    x = out
  return kernels


def random_inception(form: str) -> Inception:
  """Inception whose activations keep their size: kernels of variance 2 / fan-in, no batch statistics."""
  draw = np.random.default_rng(0)
  layers = {}
  for name, shape in widths().items():
    kernel = draw.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[:3]), dtype=np.float32)
    layers[name] = {"kernel": kernel, "scale": np.ones(shape[3], np.float32), "offset": np.zeros(shape[3], np.float32)}
  return Inception(layers, draw.standard_normal((2048, 1008), np.float32) / 45, form)


def inception(count: int) -> dict:
  """What both forms cost and give."""
  images = image_sets.open_set("cifar10", f"test[:{count}]")
  names = ("features", "spatial", "logits")
  rows = {}
  for form in ("tf", "torch"):
    net = random_inception(form)
    options = dict(outputs=names, batch_size=16)
    took = {}
    found = {}
    for devices in (1, 4):
      start = time.perf_counter()
      cpu = time.process_time()
      found[devices] = extract(net, images.source, devices=jax.devices()[:devices], **options)
      took[f"seconds_on_{devices}"] = round(time.perf_counter() - start, 1)
      took[f"cpu_seconds_on_{devices}"] = round(time.process_time() - cpu, 1)
    rows[form] = took | {
      "parameters": sum(leaf.size for leaf in jax.tree.leaves(net.layers) if leaf.ndim == 4),
      "outputs": {name: list(array.shape) for name, array in found[1].items()},
      "finite": all(np.isfinite(array).all().item() for array in found[1].values()),
      "same_on_1_and_4_devices": all(np.array_equal(found[1][name], found[4][name]) for name in names),
      "largest_difference": max(float(np.abs(found[1][name] - found[4][name]).max()) for name in names),
      "standard_deviation_of_features": float(found[1]["features"].std()),
    }
    print(form, rows[form], flush=True)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  return {"images": count, "cores": len(os.sched_getaffinity(0)), "peak_gib": round(peak, 2), "forms": rows}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=("features", "inception"))
  parser.add_argument("--images", type=int, default=256, help="for Inception (default %(default)s)")
  parser.add_argument("--out", required=True, type=pathlib.Path)
  args = parser.parse_args()
  result = own_features() if args.what == "features" else inception(args.images)
  args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
  sys.exit(main())
