"""Trains a network, or continues where the last run in the same --workdir stopped.

The directory then holds checkpoints/, metrics.jsonl, events/ for TensorBoard, and preview grids of samples by the raw
and the averaged weights. SIGTERM or Ctrl-C saves and exits with code 42; the same command continues bitwise.

  ddpm-jax train --config digits --workdir runs/digits
  ddpm-jax train --init runs/converted --workdir runs/mine --config.data.name=./images --config.train.total_steps=20000
  ddpm-jax train --config configs/mnist.py:smoke --workdir /tmp/mnist --config.train.batch_size=64
"""

import argparse

from ddpm_jax.cli import environment
from ddpm_jax.errors import Terminated, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--config", metavar="NAME[:VARIANT]", help="a config of configs/, or a .py file (default: that of --init)"
  )
  parser.add_argument("--init", metavar="WEIGHTS", help="start from this run or these published weights (fine-tuning)")
  parser.add_argument("--workdir", help="the output directory; required unless --dry_run")
  parser.add_argument("--dry_run", action="store_true", help="check everything, print the config, train nothing")
  parser.add_argument("--wandb", action="store_true", help="also write metrics to Weights & Biases (pip install wandb)")
  parser.add_argument("--profile", action="store_true", help="also write a profile of a few steps to WORKDIR/profile")
  environment.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  if not args.dry_run and not args.workdir:
    raise UserError("train needs --workdir, the directory in which to keep checkpoints and metrics.")
  print(f"Checking {args.config}" if args.dry_run else f"Training {args.config or args.init} in {args.workdir}", flush=True)
  environment.prepare(args, saves=True)
  import jax
  from clu import parameter_overview

  from ddpm_jax import build
  from ddpm_jax import config as configs
  from ddpm_jax.jobs import train, trained
  from ddpm_jax.training.loop import Preempted

  if not args.config and not args.init:
    raise UserError("train needs --config NAME, or --init WEIGHTS to fine-tune weights with their own config.")
  config = configs.load(args.config) if args.config else trained.load(args.init).config
  if args.init:
    with config.ignore_type():
      config.train.init = args.init
    if not args.config and any(assignment.startswith("data.name=") for assignment in args.overrides):
      config.data.update(num_classes=None, class_names=None)  # which were those of the other images
  config = build.configure(config, args.overrides)
  if args.dry_run:
    run = train.prepare(config)
    jax.eval_shape(run.step, *run.arguments())  # tracing finds networks that do not fit these images
    print(run.config)
    print(parameter_overview.get_parameter_overview(jax.eval_shape(run.init).params, include_stats=False))
    print(train.describe(run))
    for line in run.source.summary:
      print(f"  {line}")
    print("The config can be trained.")
    return 0
  try:
    train.train(config, args.workdir, wandb=args.wandb, profile=args.profile)
  except Preempted as stopped:
    print(stopped)
    return stopped.exit_code
  except Terminated:
    print("Stopped by SIGTERM outside of the training steps; the same command continues.")
    return Preempted.exit_code
  verb = "evaluate" if build.is_classifier(config) else "sample"
  print(f"Trained to step {config.train.total_steps} in {args.workdir}. Next: ddpm-jax {verb} --workdir {args.workdir}")
  return 0
