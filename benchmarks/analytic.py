"""What Analytic-DPM costs before the first sample: measuring moments, and choosing a trajectory.

    python benchmarks/analytic.py --out benchmarks/analytic.json

Moments cost one evaluation of the network per image and level: their throughput stands beside that of the bare network, on
the MNIST network with random weights. Trajectories are chosen on the host; peak memory is what NumPy allocates.
"""

import argparse
import json
import platform
import time
import tracemalloc

import jax
import numpy as np

from ddpm_jax import build, config
from ddpm_jax.diffusion import grid, moments, schedule, trajectory
from ddpm_jax.diffusion.steps import gaussian

BATCH = 64
LEVELS = 10
BATCHES = 2


def throughput() -> dict:
  """Evaluations per second of the network alone, and within the estimation of its moments."""
  run = config.load("mnist")
  levels = build.schedule(run)
  module = build.model(run, 1, 10)
  network = build.network(run, module, build.initial_params(module, jax.random.key(0), 28, 1))
  x = jax.random.normal(jax.random.key(1), (BATCH, 28, 28, 1))
  visited = grid.uniform(levels.T, LEVELS)[:-1]
  rows = gaussian(levels, np.append(visited, 0))

  @jax.jit
  def bare(network, x):
    return jax.lax.scan(lambda total, row: (total + network.output(x, row.t).mean(), None), 0.0, rows)[0]

  def measure():
    for _ in moments.estimate(levels, network, [(x, None)] * BATCHES, levels=visited):
      pass

  def forward():
    for _ in range(BATCHES):
      bare(network, x).block_until_ready()

  seconds = {forward: [], measure: []}
  for _ in range(4):  # the first compiles; the best of three, taken in turns
    for work, times in seconds.items():
      begin = time.perf_counter()
      work()
      times.append(time.perf_counter() - begin)
  alone, within = (BATCH * LEVELS * BATCHES / min(times[1:]) for times in seconds.values())
  return {"network_evaluations_per_second": alone, "moments_evaluations_per_second": within, "ratio": within / alone}


def dynamic_programming(T: int, K: int) -> dict:
  """Seconds and megabytes of dp_seg and dp_vb."""
  chain = schedule.cosine(T)
  gamma = 0.5 * sum((1 - chain.alpha_bar) / (1 - chain.alpha_bar + chain.alpha_bar * v) for v in (0.01, 1.0))
  s, t = np.indices((T + 1, T + 1))
  table = (t - s) ** 2.0 * (1 + 0.1 * s)
  result = {"T": T, "K": K}
  programs = {"dp_seg": lambda: trajectory.dp_seg(chain, gamma, K), "dp_vb": lambda: trajectory.dp_vb(table, K)}
  for name, choose in programs.items():
    tracemalloc.start()
    begin = time.perf_counter()
    choose()
    result[f"{name}_seconds"] = round(time.perf_counter() - begin, 2)
    result[f"{name}_megabytes"] = round(tracemalloc.get_traced_memory()[1] / 2**20)
    tracemalloc.stop()
  return result


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", help="where to write the numbers, as JSON")
  args = parser.parse_args()
  programs = [dynamic_programming(T, K) for T in (1000, 4000) for K in (10, 100, T // 3)]
  result = {
    "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
    "moments": throughput(),
    "dynamic_programming": programs,
  }
  print(json.dumps(result, indent=2))
  if args.out:
    with open(args.out, "w") as file:
      json.dump(result, file, indent=2)


if __name__ == "__main__":
  main()
