"""Opens a page in the browser to explore a network: move one setting of the sampler, and see what changes.

  ddpm-jax explore                                     a small network of digits, trained on first use in 6 minutes
  ddpm-jax explore --workdir runs/digits
  ddpm-jax explore --weights cifar10-ddpm              published weights

The page shows two settings side by side on the same seeds: images, the way from noise, levels, variances, and the same in
Python and as a command to copy. It is served on 127.0.0.1 alone, reads and writes no other files than those of the run,
and needs Gradio: pip install "ddpm_jax[explore]".
"""

import argparse
import contextlib
import logging
import pathlib
import threading

from ddpm_jax.cli import environment

OWN = ["train.class_conditional=True", "train.label_dropout=0.1"]  # so that guidance has an effect


def add_arguments(parser: argparse.ArgumentParser) -> None:
  where = "a training run, a converted checkpoint, or the name of published weights (default: a small network of digits)"
  parser.add_argument("--workdir", "--weights", help=where)
  parser.add_argument("--port", type=int, help="of the page (default: the first free one from 7860)")
  parser.add_argument("--no_browser", action="store_true", help="print the address instead of opening it")
  parser.add_argument("--ema", help="which average of the weights: a rate, or raw (default: the slowest)")
  parser.add_argument("--step", type=int, help="which checkpoint (default: the latest sound one)")


def run(args: argparse.Namespace) -> int:
  environment.prepare_alone("explore")
  from ddpm_jax.explore import server
  from ddpm_jax.explore.settings import Origin
  from ddpm_jax.training.loop import Preempted

  server.check()
  try:
    workdir = args.workdir or str(_own_network())
  except Preempted as stopped:
    print(stopped)
    return stopped.exit_code
  print(f"Loading {workdir}", flush=True)
  origin = Origin(workdir, args.ema, args.step, tuple(args.overrides), args.trust)
  logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks itself whether it runs
  page = server.launch(origin.load(), origin, port=args.port, inbrowser=not args.no_browser)
  print(f"The page is at {page.local_url} until Ctrl-C.", flush=True)
  with contextlib.suppress(KeyboardInterrupt):
    threading.Event().wait()
  page.close()
  return 0


def _own_network() -> pathlib.Path:
  """The run of a small class-conditional network of handwritten digits in the cache. It is trained if it is not there."""
  from ddpm_jax import build, config
  from ddpm_jax.files import download
  from ddpm_jax.jobs import train
  from ddpm_jax.training import checkpoints

  workdir = download.cache_folder() / "explore" / "digits"
  made = build.configure(config.load("digits"), OWN)
  if made.train.total_steps not in checkpoints.steps_in(workdir / "checkpoints"):
    print(f"Training a network of digits in {workdir}: about 6 minutes on two cores, on first use only.", flush=True)
    train.train(made, workdir)
  return workdir
