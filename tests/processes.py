"""One of several processes of the run of tiny_run.py; launch/local.sh starts them. The first one prints JSON."""

import argparse
import json
import logging
import os
import signal

import tiny_run

from ddpm_jax.cli import environment
from ddpm_jax.data.pipeline import train_batches
from ddpm_jax.scale import distributed

parser = argparse.ArgumentParser()
parser.add_argument("directory")
parser.add_argument("--steps", type=int, default=tiny_run.TOTAL)
parser.add_argument("--fsdp", type=int, default=1)
parser.add_argument("--die", type=int, help="SIGKILL to the last process as it reads this step's batch")
args = parser.parse_args()
logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
for noisy in ("absl", "orbax", "jax"):
  logging.getLogger(noisy).setLevel(logging.ERROR)
environment.prepare(argparse.Namespace(coordinator=None, processes=None, process=None, wait=300.0))

import jax  # noqa: E402  (after the processes have met)

from ddpm_jax.scale import mesh as layout  # noqa: E402

process, processes = jax.process_index(), jax.process_count()
source = train_batches(tiny_run.data(), tiny_run.BATCH, flip=True, process=process, processes=processes)


def feed(start):
  for i, batch in enumerate(source.iterate(start), start):
    if i == args.die and process == processes - 1:
      os.kill(os.getpid(), signal.SIGKILL)
    yield batch


with distributed.together():
  mesh = layout.make_mesh(fsdp=args.fsdp)
  final = tiny_run.run(args.directory, mesh, total_steps=args.steps, feed=feed, every=10)
  parts = max(len({str(s.index) for s in x.global_shards}) for x in jax.tree.leaves(final.params))
  here = [str(path) for path in distributed.output(args.directory).glob("*")]
  report = {"processes": processes, "devices": jax.device_count(), "parts": parts, "files_seen": len(here)}
  print(json.dumps(report), flush=True)
