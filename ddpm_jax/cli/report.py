"""Writes a self-contained HTML page about a run: samples, curves, measurements, config, environment and commands.

  ddpm-jax report --workdir runs/digits

The page shows what is in the directory, so draw samples and evaluate first. It works offline and on a phone.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--workdir", required=True, help="a training run, or a converted checkpoint")
  parser.add_argument("--out", metavar="FILE", help="the page (default: WORKDIR/report.html)")


def run(args: argparse.Namespace) -> int:
  from ddpm_jax.jobs import report

  print(f"Wrote {report.write(args.workdir, args.out)}")
  return 0
