"""What guidance costs: time per sampling step beside what the FLOPs of its parts predict, and compilations.

    python benchmarks/guided_step.py --workdir runs/mnist --classifier runs/mnist_classifier \\
      --out benchmarks/guided_step.json

Prediction: classifier guidance adds a forward and backward pass of the classifier, classifier-free guidance one more pass
of the network; FLOPs are those that XLA counts in each part compiled alone. Steps are timed in a scan of 20, the best of 5.
"""

import argparse
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

import ddpm_jax
from ddpm_jax import build
from ddpm_jax.diffusion import grid, steps
from ddpm_jax.diffusion.guidance import ClassifierFree, ClassifierScore
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.noise import PerImage, image_keys
from ddpm_jax.diffusion.samplers import GaussianSampler, sample

STEPS = 20


def flops(network, *inputs) -> float:
  """As XLA counts them."""
  return jax.jit(lambda network, *inputs: network(*inputs)).lower(network, *inputs).compile().cost_analysis()["flops"]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--classifier", required=True)
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--out")
  args = parser.parse_args()
  trained = ddpm_jax.load(args.workdir)
  guide = ddpm_jax.load(args.classifier).network
  net = trained.network
  levels = build.schedule(trained.config)
  keys = image_keys(np.arange(args.batch))
  x = PerImage(keys).initial(trained.image_shape)
  cond = {"label": jnp.arange(args.batch) % 10}
  sampler = GaussianSampler(steps.gaussian(levels, grid.uniform(levels.T, STEPS), 0.0), ReverseKernel())
  level = levels.level(np.array(levels.T // 2))
  network = flops(net, x, level, cond)
  gradient = flops(guide, x, level, cond)
  kinds = {
    "none": (lambda scale: net, 1.0),
    "classifier": (lambda scale: ClassifierScore(net, guide, scale), 1 + gradient / network),
    "classifier_free": (lambda scale: ClassifierFree(net, scale, {"label": 10}), 2.0),
  }
  result = {"load": os.getloadavg()[0], "device": str(jax.devices()[0]), "batch": args.batch}
  unguided = None
  for name, (guided, predicted) in kinds.items():
    before = sample._cache_size()
    times = []
    for attempt in range(6):
      start = time.perf_counter()
      jax.block_until_ready(sample(keys, guided(np.float32(attempt)), sampler, x, cond)[0])
      times.append((time.perf_counter() - start) / STEPS)
    best = min(times[1:])
    unguided = unguided or best
    result[name] = {
      "ms_per_step": round(1e3 * best, 2),
      "ratio": round(best / unguided, 3),
      "predicted_ratio": round(predicted, 3),
      "compilations": sample._cache_size() - before,
    }
    print(name, result[name], flush=True)
  if args.out:
    with open(args.out, "w") as file:
      json.dump(result, file, indent=2)
      file.write("\n")


if __name__ == "__main__":
  main()
