"""Writes a sampler as one program with its weights, which JAX runs without this package on CPUs, GPUs and TPUs.

  ddpm-jax export --workdir runs/digits --program sampler.stablehlo
  ddpm-jax export --workdir runs/digits --program sampler.stablehlo --sampler ddim --steps 20

The program takes seeds, and labels if the network is conditional, and returns uint8 images: those of ddpm-jax sample with
the same settings. Beside it, sampler.stablehlo.json holds its digest, inputs, and settings. docs/export.md shows the ten
lines that run it.
"""

import argparse

import ddpm_jax
from ddpm_jax.cli import environment, short


def add_arguments(parser: argparse.ArgumentParser) -> None:
  where = "a training run, a converted checkpoint, or the name of published weights (ddpm-jax convert --list)"
  parser.add_argument("--workdir", "--weights", required=True, help=where)
  parser.add_argument("--program", required=True, metavar="FILE", help="where to write, such as sampler.stablehlo")
  parser.add_argument("--platforms", default="cpu,cuda,tpu", metavar="NAMES", help="comma-separated (default %(default)s)")
  parser.add_argument("--ema", help="which average of the weights: a rate, or raw (default: the slowest)")
  parser.add_argument("--step", type=int, help="which checkpoint (default: the latest sound one)")
  short.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  environment.prepare_alone("export")
  from ddpm_jax.files import atomic
  from ddpm_jax.jobs import program

  atomic.check(args.program)
  trained = ddpm_jax.load(args.workdir, ema=args.ema, step=args.step, overrides=args.overrides, **short.of(args))
  about = program.save(trained, args.program, args.platforms.split(","))
  print(f"{args.workdir}, step {trained.step}, {trained.weights}: {', '.join(about['inputs'])} -> {about['output']}")
  print(f"Wrote {args.program}, {about['bytes'] / 1e6:.1f} MB, sha256 {about['sha256'][:16]}...")
  return 0
