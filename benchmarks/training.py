"""Training end to end beside the bare step, and how soon it starts: with an empty cache of programs, and again.

    python benchmarks/training.py --config mnist --out benchmarks/training.json

The bare step has one batch on the devices and is called again and again; end to end is `ddpm-jax train` from one checkpoint
to the next, with data, rows of metrics and the checkpoint halfway as the config has them, at a constant learning rate. Both
run twice, in turns. A start is timed from the command until the metrics of step 1 are on disk; the second one continues from
a checkpoint with everything compiled.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import side_by_side


class Bare:
  """The compiled step of a config on one batch."""

  def __init__(self, config, overrides):
    from ddpm_jax.cli import environment

    environment.prepare()
    import jax

    from ddpm_jax import config as configs
    from ddpm_jax.devices import compiler
    from ddpm_jax.devices import mesh as layout
    from ddpm_jax.jobs import train as experiment
    from ddpm_jax.training import state

    run = experiment.prepare(configs.override(configs.load(config), [text.removeprefix("--config.") for text in overrides]))
    self.jax = jax
    self.batch_size = run.config.train.batch_size
    self.recipe = run.config.train
    image, label = run.source.gather(range(self.batch_size))
    named = {"image": image} | ({"label": label} if run.config.loss.name == "classifier" else {})
    self.batch = layout.put_batch(named, run.mesh)
    self.state = state.place(run.init, run.mesh)
    self.step = compiler.repeated(run.step, self.state, self.batch, times=self.recipe.checkpoint_every)

  def between_checkpoints(self):
    """(steps, of them between rows of metrics)."""
    return self.recipe.checkpoint_every, self.recipe.log_every

  def rate(self, steps):
    """Images per second, by the median step."""
    times = []
    for _ in range(steps):
      start = time.perf_counter()
      self.state, metrics = self.step(self.state, self.batch)
      self.jax.block_until_ready(metrics)
      times.append(time.perf_counter() - start)
    return self.batch_size / statistics.median(times)


def train(config: str, overrides: list[str], workdir: str, cache: str, steps: int, every: int) -> dict:
  """Runs `ddpm-jax train` to step `steps`: seconds to its first row, and the means over the rows behind it."""
  log = pathlib.Path(workdir) / "metrics.jsonl"
  before = len(log.read_text().splitlines()) if log.exists() else 0
  command = [sys.executable, "-m", "ddpm_jax", "train", "--config", config, "--workdir", workdir]
  settings = dict(total_steps=steps, log_every=every, checkpoint_every=steps, preview_every=0, preview_images=1)
  command += overrides + [f"--config.train.{name}={value}" for name, value in settings.items()]
  start = time.perf_counter()
  with tempfile.TemporaryFile() as errors:
    process = subprocess.Popen(command, env=os.environ | {"XDG_CACHE_HOME": cache}, stdout=errors, stderr=errors)
    first = None
    while process.poll() is None:
      if first is None and log.exists() and len(log.read_text().splitlines()) > before:
        first = time.perf_counter() - start
      time.sleep(0.02)
    errors.seek(0)
    assert process.returncode == 0, errors.read().decode()[-2000:]
  rows = [json.loads(line) for line in log.read_text().splitlines()][before:]
  rows = rows[1:] or rows  # the first one compiles
  return {
    "first_row_s": round(first, 2),
    "images_per_second": statistics.harmonic_mean(row["images_per_second"] for row in rows),  # rows have as many images
    "data_wait": statistics.mean(row["data_wait"] for row in rows),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="mnist")
  parser.add_argument("--steps", type=int, default=60, help="of the bare step, each time (%(default)s)")
  parser.add_argument("--out")
  args, overrides = parser.parse_known_args()
  # Runs as short as these have no room for a warm-up; with a decay, which knows the end, a longer run is another program.
  overrides = ["--config.optimizer.warmup_steps=0", "--config.optimizer.decay=constant", *overrides]
  result = {"config": args.config, "bare": [], "end_to_end": []}
  with tempfile.TemporaryDirectory() as cache:
    bare = side_by_side.Contender(Bare, args.config, overrides)
    bare.ask("rate", 3)
    steps, every = bare.ask("between_checkpoints")
    for _ in range(2):
      result["bare"].append(bare.ask("rate", args.steps))
      with tempfile.TemporaryDirectory() as workdir:
        result["end_to_end"].append(train(args.config, overrides, workdir, cache, steps, every))
    result["bare"].append(bare.ask("rate", args.steps))
    bare.close()
    rates = [statistics.median(result["bare"]), statistics.median(row["images_per_second"] for row in result["end_to_end"])]
    result["share_of_bare"] = round(rates[1] / rates[0], 3)
    waits = [row["data_wait"] for row in result["end_to_end"]]
    print(f"bare {rates[0]:.0f} images/s, end to end {rates[1]:.0f}: {result['share_of_bare']:.1%}; waits for data {waits}")
  with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as workdir:
    starts = [train(args.config, overrides, workdir, cache, steps, 1)["first_row_s"] for steps in (4, 8)]
    result["starts"] = {"cold_s": starts[0], "resumed_s": starts[1]}
    print(f"first row of metrics after {starts[0]} s; resumed, with the cache, after {starts[1]} s", flush=True)
  side_by_side.write(args.out, result)


if __name__ == "__main__":
  main()
