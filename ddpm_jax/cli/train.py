"""Trains a network, or continues where the last run in the same --workdir stopped.

The directory then holds checkpoints/, metrics.jsonl, events/ for TensorBoard, and preview grids of samples by the raw
and the averaged weights. SIGTERM or Ctrl-C saves and exits with code 42; the same command continues, bit for bit.

  ddpm-jax train --config digits --workdir runs/digits
  ddpm-jax train --config configs/mnist.py:smoke --workdir /tmp/mnist --config.train.batch_size=64
"""

import argparse

from ddpm_jax.cli import environment


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", required=True, metavar="NAME[:VARIANT]", help="a config of configs/, or a .py file")
  parser.add_argument("--workdir", help="where everything goes; needed unless --dry_run")
  parser.add_argument("--dry_run", action="store_true", help="print the config and the network's size, train nothing")
  environment.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  environment.prepare(args, saves=True)
  import jax

  from ddpm_jax import build
  from ddpm_jax import config as configs
  from ddpm_jax.errors import UserError
  from ddpm_jax.jobs import train
  from ddpm_jax.sizes import text
  from ddpm_jax.training.loop import Preempted

  config = build.configure(configs.load(args.config), args.overrides)
  if args.dry_run:
    run = train.prepare(config)
    params = jax.eval_shape(run.init).params
    print(run.config)
    info = run.source.info
    print(f"{len(run.source):,} images of {info.name} {info.split}: {text(info.image_size)}x{info.channels}")
    for line in run.source.summary:
      print(f"  {line}")
    print(f"{train.parameter_count(params):,} parameters on {run.mesh.size} devices ({jax.default_backend()})")
    return 0
  if not args.workdir:
    raise UserError("train needs --workdir, the directory in which to keep checkpoints and metrics.")
  try:
    train.train(config, args.workdir)
  except Preempted as stopped:
    print(stopped)
    return stopped.exit_code
  verb = "evaluate" if build.is_classifier(config) else "sample"
  print(f"Trained to step {config.train.total_steps} in {args.workdir}. Next: ddpm-jax {verb} --workdir {args.workdir}")
  return 0
