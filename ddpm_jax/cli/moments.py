"""Measures what Analytic-DPM needs to know of the network in --workdir: its second moments per level, over training images.

  ddpm-jax moments --workdir runs/mnist --images 1000
  ddpm-jax sample  --workdir runs/mnist --config.sampling.grid=uniform --config.sampling.steps=25 \\
                   --config.sampling.covariance=optimal --config.sampling.moments=runs/mnist/evaluation/moments.npz

The cost is one evaluation of the network per image and level. A run that was stopped goes on where it was, and more images
are added to those measured. With --costs it also measures what every possible step would add to the bound, which gives the
best trajectory (grid dp_vb) for that covariance; the best one for the analytic covariance (dp_seg) needs only moments.

Results go to WORKDIR/evaluation: moments.npz, moments.png, costs_COVARIANCE.npz.
"""

import argparse

import ddpm_jax
from ddpm_jax.cli import environment

EXPORTS = (".npy", ".pth", ".pt", ".ckpt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  where = "a training run, a converted checkpoint, or the name of published weights (ddpm-jax convert --list)"
  parser.add_argument("--workdir", "--weights", required=True, help=where)
  parser.add_argument("--images", type=int, default=1000, help="training images, in whole batches (default %(default)s)")
  parser.add_argument("--levels", type=int, metavar="K", help="measure K even levels and interpolate (default: measure all)")
  parser.add_argument("--seed", type=int, default=0, help="draws the images and their noise (default %(default)s)")
  costs = dict(choices=("marginal", "posterior", "optimal"), metavar="COVARIANCE")
  parser.add_argument(
    "--costs", **costs, help="also measure what every step costs by this covariance: marginal, posterior or optimal"
  )
  parser.add_argument("--export", metavar="FILE", help="also write the vector: .npy, or .pth for Analytic-DPM's own code")
  parser.add_argument("--ema", help="which average of the weights: a rate, or raw (default: the slowest)")
  parser.add_argument("--step", type=int, help="which checkpoint (default: the latest sound one)")
  environment.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  environment.prepare(args)
  import pathlib

  from ddpm_jax import build
  from ddpm_jax.errors import UserError
  from ddpm_jax.files import atomic, measurements
  from ddpm_jax.jobs import analytic

  if args.export:
    if pathlib.Path(args.export).suffix not in EXPORTS:
      raise UserError(f"--export {args.export} should end in one of {', '.join(EXPORTS)}.")
    atomic.check(args.export)
  trained = ddpm_jax.load(args.workdir, ema=args.ema, step=args.step, overrides=args.overrides)
  schedule, out = build.schedule(trained.config), pathlib.Path(args.workdir) / "evaluation"
  print(f"{args.workdir}, step {trained.step}, {trained.weights}")
  moments = analytic.moments(trained, out / "moments.npz", args.images, K=args.levels, seed=args.seed)
  measurements.plot_moments(moments, schedule, out / "moments.png")
  gamma = moments.gamma(schedule.T)
  print(
    f"Gamma over {moments.count} images at {len(moments.levels)} levels: {gamma[1]:.4f} at level 1, {gamma[-1]:.4f} at "
    f"level {schedule.T}; standard errors up to {moments.standard_error[0].max():.1e}"
  )
  if above := int((gamma > 1).sum()):
    print(
      f"It exceeds 1 at {above} levels, which no true moment does: measure more images, or use the error of eps_hat "
      "instead of its length, --config.sampling.residual=True."
    )
  print(
    f"Wrote {out / 'moments.npz'} and .png. Next: --config.sampling.covariance=optimal "
    f"--config.sampling.moments={out / 'moments.npz'}"
  )
  if args.export:
    measurements.write_vector(args.export, gamma)
    print(f"Wrote {args.export}")
  if args.costs:
    if args.costs == "optimal" and trained.config.prediction.second not in build.OPTIMAL_HEADS:
      trained = trained.changed(sampling=dict(moments=str(out / "moments.npz")))
    path = out / f"costs_{args.costs}.npz"
    analytic.costs(trained, path, args.costs, args.images, seed=args.seed)
    print(f"Wrote {path}. Next: --config.sampling.grid=dp_vb --config.sampling.costs={path}")
  return 0
