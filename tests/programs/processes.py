"""One of several processes of the run of tiny_run.py; launch/local.sh starts them. The first one prints JSON."""

import argparse
import collections
import json
import logging
import os
import pathlib
import resource
import signal
import sys

import tiny_run

from ddpm_jax.cli import environment
from ddpm_jax.data.pipeline import train_batches
from ddpm_jax.devices import processes as distributed

parser = argparse.ArgumentParser()
parser.add_argument("directory")
parser.add_argument("--steps", type=int, default=tiny_run.TOTAL)
parser.add_argument("--fsdp", type=int, default=1)
parser.add_argument("--at", type=int, help="the batch before which processes get a signal")
parser.add_argument("--signal", default="KILL", help="KILL, TERM (default %(default)s)")
parser.add_argument("--who", type=int, help="which process gets it (default: all)")
parser.add_argument("--disk", type=int, help="bytes that a file of theirs may have at most")
args = parser.parse_args()
logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
for noisy in ("absl", "orbax", "jax"):
  logging.getLogger(noisy).setLevel(logging.ERROR)
environment.prepare(argparse.Namespace(coordinator=None, processes=None, process=None, wait=300.0), saves=True)

import jax  # noqa: E402  (after the processes have met)

events: collections.Counter = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))

from ddpm_jax.devices import mesh as layout  # noqa: E402
from ddpm_jax.training import loop  # noqa: E402

process = jax.process_index()
processes = jax.process_count()
if args.disk and args.who in (None, process):
  resource.setrlimit(resource.RLIMIT_FSIZE, (args.disk, args.disk))
source = train_batches(tiny_run.data(), tiny_run.BATCH, flip=True, process=process, processes=processes)


def feed(start):
  for i, batch in enumerate(source.iterate(start), start):
    if i == args.at and args.who in (None, process):
      pathlib.Path(args.directory, f"signalled_{process}").touch()
      os.kill(os.getpid(), signal.Signals[f"SIG{args.signal}"])
    yield batch


def run() -> int:
  mesh = layout.make_mesh(fsdp=args.fsdp)
  try:
    final = tiny_run.run(args.directory, mesh, total_steps=args.steps, feed=feed, every=10)
  except loop.Preempted as stopped:
    print(stopped, flush=True)
    return stopped.exit_code
  parts = max(len({str(s.index) for s in x.global_shards}) for x in jax.tree.leaves(final.params))
  found = {"processes": processes, "devices": jax.device_count(), "parts": parts}
  found["compiled"] = events["/jax/compilation_cache/cache_misses"]  # and not found in the cache
  print(json.dumps(found), flush=True)
  return 0


with distributed.together():
  code = run()
sys.exit(code)
