"""A whole training run in miniature, for tests; also a program, for tests that kill it or need many devices."""

import argparse
import functools
import hashlib
import itertools
import json
import logging
import os
import signal
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.pipeline import train_batches
from ddpm_jax.data.sources import Arrays, Info
from ddpm_jax.devices import mesh as layout
from ddpm_jax.diffusion import grid, losses, prediction, schedule, steps, time_sampling
from ddpm_jax.errors import UserError
from ddpm_jax.training import checkpoints, loop, manifest, optimizer, state, step, writers

T = 20
SIZE = 4
BATCH = 16
TOTAL = 40  # steps of the run, and between its checkpoints
EVERY = 5
TIME_SAMPLER = time_sampling.LossSecondMoment(T, kept=1)


class Net(nn.Module):
  """Two convolutions and a time embedding. Width 32 makes the middle kernel large enough to be cut by fsdp."""

  width: int = 32
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, time, cond=None, *, train=False):
    angle = time[:, None] * jnp.asarray([[0.1, 0.4]])
    emb = nn.Dense(self.width, name="time")(jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1))
    h = nn.silu(nn.Conv(self.width, (3, 3), name="conv_in")(x) + emb[:, None, None])
    h = nn.Dropout(self.dropout)(nn.silu(nn.Conv(self.width, (3, 3), name="middle")(h)), deterministic=not train)
    return nn.Conv(x.shape[-1], (3, 3), name="conv_out")(h)


@functools.cache
def chain():
  return steps.gaussian(schedule.linear(T), grid.full(T))


def data(count: int = 50) -> Arrays:
  """50 random images, so that 40 steps of 16 go through many epochs."""
  pixels = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 1)).astype(np.uint8)
  return Arrays(Info("noise", "train", SIZE, 1, None), pixels, np.zeros(count))


def batches(start: int):
  source = train_batches(data(), BATCH, flip=True)
  return (source[i] for i in itertools.count(start))


def make(
  mesh=None, *, accumulate=1, width=32, dropout=0.0, ema_rates=(0.9, 0.99), time_sampler=TIME_SAMPLER, tx=None, **options
):
  """(init, train_step)."""
  mesh = layout.make_mesh() if mesh is None else mesh
  net = Net(width, dropout)
  tx = tx or optimizer.make_optimizer(optimizer.schedule(1e-3, TOTAL, warmup_steps=3), clip_norm=1.0)

  def init():
    key, params_key = jax.random.split(jax.random.key(7))
    params = net.init(params_key, jnp.zeros((1, SIZE, SIZE, 1)), jnp.zeros(1))["params"]
    return state.create(key, params, tx, ema_rates=ema_rates, time_sampler=time_sampler.init(), learns=options.get("learns"))

  def network_of(params, dropout_key):
    rngs = {"dropout": dropout_key}
    return prediction.Network(params, lambda p, x, t, c: net.apply({"params": p}, x, t, c, train=True, rngs=rngs))

  train_step = step.make_train_step(
    losses.Simple(chain()), network_of, tx, time_sampler, mesh=mesh, accumulate=accumulate, **options
  )
  return init, train_step


def run(directory, mesh=None, *, total_steps=TOTAL, accumulate=1, made=None, feed=batches, keep=3, every=EVERY, **options):
  """The final state of a run that keeps its checkpoints and metrics in `directory`."""
  mesh = layout.make_mesh() if mesh is None else mesh
  init, train_step = made or make(mesh, accumulate=accumulate)
  saved = checkpoints.Checkpoints(directory, keep=keep, every=every)
  more = {name: options.pop(name) for name in ("preview_every", "max_skipped") if name in options}
  try:
    return loop.fit(
      init,
      train_step,
      feed,
      loop.Intervals(total_steps, every, log_every=1, **more),
      mesh=mesh,
      checkpoints=saved,
      config={"width": 32},
      open_writer=lambda after: writers.open_all(f"{directory}/log", total_steps, after),
      **options,
    )
  finally:
    saved.close()


def fingerprint(tree) -> str:
  """SHA-256 of every bit of a state."""
  arrays = manifest.flatten(tree)
  digest = hashlib.sha256()
  for name in sorted(arrays):
    digest.update(name.encode() + np.asarray(arrays[name]).tobytes())
  return digest.hexdigest()


def losses_of(directory) -> list[float]:
  """The loss of every step, from the metrics file; each step once."""
  with open(f"{directory}/log/metrics.jsonl") as file:
    rows = [json.loads(row) for row in file]
  assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
  return [row["loss"] for row in rows]


def main() -> int:
  parser = argparse.ArgumentParser()
  parser.add_argument("directory")
  parser.add_argument("--steps", type=int, default=TOTAL)
  parser.add_argument("--every", type=int, default=EVERY, help="steps between checkpoints")
  parser.add_argument("--dropout", type=float, default=0.0)
  parser.add_argument("--die", type=int, help="SIGKILL to itself as this step begins")
  parser.add_argument("--verbose", action="store_true", help="a line per step")
  args = parser.parse_args()
  logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s", force=True)
  for noisy in ("absl", "orbax", "jax"):
    logging.getLogger(noisy).setLevel(logging.ERROR)

  def feed(start):
    for i, batch in enumerate(batches(start), start=start + 1):
      if i - 2 == args.die:  # the loop reads two ahead
        os.kill(os.getpid(), signal.SIGKILL)
      yield batch

  mesh = layout.make_mesh(fsdp=jax.device_count())
  try:
    made = make(mesh, dropout=args.dropout)
    print(fingerprint(run(args.directory, mesh, total_steps=args.steps, made=made, feed=feed, every=args.every)))
  except loop.Preempted as stop:
    return stop.exit_code
  except UserError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
