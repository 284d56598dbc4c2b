"""Draws the figures of the papers that do not need a network.

  ddpm-jax figures schedule                                  Improved DDPM's figures 1, 3, and 5
  ddpm-jax figures schedule --schedules linear,cosine,sigmoid --data mnist --out figures

Writes variances.png (posterior variance over beta), alpha_bar.png, and noised.png (images on the way to noise).
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("what", choices=("schedule",), help="schedule: noise schedules")
  parser.add_argument("--schedules", default="linear,cosine", metavar="NAMES", help="comma-separated (default %(default)s)")
  parser.add_argument("--T", default="100,1000,10000", metavar="NUMBERS", help="chain lengths (default %(default)s)")
  parser.add_argument("--data", default="digits", metavar="NAME", help="the data set whose images are noised (%(default)s)")
  parser.add_argument("--images", type=int, default=2, metavar="N", help="how many of them (default %(default)s)")
  parser.add_argument("--out", default="figures", metavar="DIR", help="where figures go (default ./%(default)s)")


def run(args: argparse.Namespace) -> int:
  import pathlib

  import numpy as np

  from ddpm_jax import data
  from ddpm_jax.cli.numbers import integers
  from ddpm_jax.config import nearest
  from ddpm_jax.diffusion.schedule import SCHEDULES
  from ddpm_jax.errors import UserError
  from ddpm_jax.evaluation import schedule_plots
  from ddpm_jax.files import atomic

  names = args.schedules.split(",")
  simple = sorted(set(SCHEDULES) - {"from_betas"})
  for name in names:
    if name not in simple:
      raise UserError(f"Schedule {name!r} is unknown; {nearest(name, simple)}")
  lengths = integers(args.T, "--T")
  if min(lengths) < 2:
    raise UserError(f"--T {min(lengths)} is too short: a chain needs at least two levels.")
  if args.images < 1:
    raise UserError(f"--images {args.images} is too few: use at least 1.")
  out = pathlib.Path(args.out)
  atomic.check(out / "variances.png")
  source = data.load(args.data, "train")
  images, _ = source.gather(np.arange(min(args.images, len(source))))
  schedule_plots.variances({f"{names[0]}, T = {T}": SCHEDULES[names[0]](T) for T in lengths}, out / "variances.png")
  of_length = {name: SCHEDULES[name](1000) for name in names}
  schedule_plots.alpha_bars(of_length, out / "alpha_bar.png")
  schedule_plots.noised_images(of_length, images, out / "noised.png")
  print(f"Wrote variances.png, alpha_bar.png, noised.png to {out}")
  return 0
