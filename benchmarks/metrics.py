"""Time and memory of the metrics at the size of a published evaluation, on the CPU.

    python benchmarks/metrics.py --out benchmarks/metrics.json

Features of 50,000 samples and 50,000 (FID, sFID, KID) or 10,000 (precision and recall) reference images, 2,048 each,
drawn at random. Each metric runs in a process of its own; its peak memory includes the features and the imports.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import time

SAMPLES = 50_000
REFERENCE = 50_000
NEAR_REFERENCE = 10_000
DIMS = 2048
CLASSES = 1008


def measure(name: str) -> dict:
  """Seconds, seconds of all cores together and of the kernel among them, and peak memory in GiB of one metric.

  A run that took much longer than seconds of cores explain was kept waiting: `preempted` counts how often.
  """
  import numpy as np

  from ddpm_jax.metrics.frechet import fid
  from ddpm_jax.metrics.inception_score import inception_score
  from ddpm_jax.metrics.mmd import kid
  from ddpm_jax.metrics.precision_recall import precision_recall

  def features(seed, count, dims=DIMS):
    return np.abs(np.random.default_rng(seed).standard_normal((count, dims), np.float32))

  metric, arguments = {
    "fid": (fid, lambda: (features(0, REFERENCE), features(1, SAMPLES))),
    "kid": (kid, lambda: (features(0, REFERENCE), features(1, SAMPLES))),
    "precision_recall": (precision_recall, lambda: (features(0, NEAR_REFERENCE), features(1, SAMPLES))),
    "inception_score": (inception_score, lambda: (features(0, SAMPLES, CLASSES),)),
  }[name]
  arguments = arguments()
  start = time.perf_counter()
  before = resource.getrusage(resource.RUSAGE_SELF)
  metric(*arguments)
  seconds = time.perf_counter() - start
  after = resource.getrusage(resource.RUSAGE_SELF)
  user = after.ru_utime - before.ru_utime
  kernel = after.ru_stime - before.ru_stime
  return {
    "seconds": round(seconds, 2),
    "cpu_seconds": round(user + kernel, 2),
    "kernel_seconds": round(kernel, 2),
    "preempted": after.ru_nivcsw - before.ru_nivcsw,
    "peak_gib": round(after.ru_maxrss / 2**20, 2),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", help="also write the figures to this JSON file")
  args = parser.parse_args()
  result = {
    "samples": SAMPLES,
    "reference": {"fid": REFERENCE, "precision_recall": NEAR_REFERENCE},
    "features": DIMS,
    "cores": len(os.sched_getaffinity(0)),
    "processor": platform.processor() or platform.machine(),
    "load_before": round(os.getloadavg()[0], 1),
    "metrics": {},
  }
  for name in ("fid", "kid", "precision_recall", "inception_score"):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
      result["metrics"][name] = pool.apply(measure, (name,))
    print(f"{name:17} {result['metrics'][name]}", flush=True)
  if args.out:
    with open(args.out, "w") as file:
      json.dump(result, file, indent=2)
      file.write("\n")


if __name__ == "__main__":
  main()
