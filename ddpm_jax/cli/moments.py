"""Measures the second moments of the network in --workdir per level, over training images, as Analytic-DPM needs them.

  ddpm-jax moments --workdir runs/mnist --images 1000
  ddpm-jax sample  --workdir runs/mnist --sampler analytic --steps 25

The cost is one evaluation of the network per image and level. An interrupted run resumes, and a second run with more images
adds them to those measured. With --per_pixel it also measures the moments of each pixel, for the covariance
optimal_diagonal. With --costs it also measures the contribution of every possible step to the bound. The costs give the best
trajectory (grid dp_vb) for that covariance. The best trajectory for the analytic covariance (dp_seg) needs only the moments.

With --flow it measures trajectories of the probability flow instead. They give the statistics of the solver dpm_v3 and the
levels of the grid gits, for the clipping and guidance of the config.

Results are written to WORKDIR/evaluation: flow.npz or moments.npz, moments.png, costs_COVARIANCE.npz.
"""

import argparse

import ddpm_jax
from ddpm_jax.cli import environment

EXPORTS = (".npy", ".pth", ".pt", ".ckpt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  where = "a training run, a converted checkpoint, or the name of published weights (ddpm-jax convert --list)"
  parser.add_argument("--workdir", "--weights", required=True, help=where)
  parser.add_argument("--images", type=int, default=1000, help="training images, in whole batches (default %(default)s)")
  parser.add_argument("--levels", type=int, metavar="K", help="measure K even levels and interpolate (default: all)")
  parser.add_argument("--per_pixel", action="store_true", help="also measure each pixel, for covariance=optimal_diagonal")
  parser.add_argument(
    "--flow", action="store_true", help="measure trajectories instead, for the solver dpm_v3 and the grid gits (flow.npz)"
  )
  parser.add_argument("--seed", type=int, help="selects the images and their noise (default 0)")
  costs = dict(choices=("marginal", "posterior", "optimal"), metavar="COVARIANCE")
  parser.add_argument(
    "--costs", **costs, help="also measure the cost of every step with this covariance: marginal, posterior or optimal"
  )
  parser.add_argument("--export", metavar="FILE", help="also write the vector: .npy, or .pth for Analytic-DPM's own code")
  parser.add_argument("--ema", help="which average of the weights: a rate, or raw (default: the slowest)")
  parser.add_argument("--step", type=int, help="which checkpoint (default: the latest sound one)")
  environment.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  print(f"Measuring the moments of {args.workdir}", flush=True)
  environment.prepare(args)
  import pathlib

  from ddpm_jax import build
  from ddpm_jax.errors import UserError
  from ddpm_jax.files import atomic, measurements
  from ddpm_jax.jobs import analytic, flow

  if args.flow and (
    odd := next((name for name in ("levels", "costs", "export", "seed") if getattr(args, name) is not None), None)
  ):
    raise UserError(f"--{odd} has no effect on --flow, which measures trajectories from pure noise: leave it out.")
  seed = args.seed or 0
  if args.export:
    if pathlib.Path(args.export).suffix not in EXPORTS:
      raise UserError(f"--export {args.export} should end in one of {', '.join(EXPORTS)}.")
    atomic.check(args.export)
  trained = ddpm_jax.load(args.workdir, ema=args.ema, step=args.step, overrides=args.overrides)
  schedule = build.schedule(trained.config)
  out = pathlib.Path(args.workdir) / "evaluation"
  print(f"{args.workdir}, step {trained.step}, {trained.weights}")
  if args.flow:
    path = out / "flow.npz"
    found = flow.measure(trained, path, args.images, per_pixel=args.per_pixel)
    print(f"Wrote {path}: {found.count} trajectories. Next: --config.sampling.solver=dpm_v3 --config.sampling.flow={path}")
    return 0
  moments = analytic.moments(trained, out / "moments.npz", args.images, K=args.levels, seed=seed, per_pixel=args.per_pixel)
  measurements.plot_moments(moments, schedule, out / "moments.png")
  gamma = moments.gamma(schedule.T)
  print(
    f"Gamma over {moments.count} images at {len(moments.levels)} levels: {gamma[1]:.4f} at level 1, {gamma[-1]:.4f} at "
    f"level {schedule.T}; standard errors up to {moments.standard_error[0].max():.1e}"
  )
  if above := int((gamma > 1).sum()):
    print(
      f"Gamma exceeds 1 at {above} levels, which is impossible for the exact moment: measure more images, or use the error "
      "of eps_hat instead of its length, --config.sampling.residual=True."
    )
  covariance = "optimal_diagonal --config.sampling.residual=True" if args.per_pixel else "optimal"
  print(
    f"Wrote {out / 'moments.npz'} and .png. Next: --config.sampling.covariance={covariance} "
    f"--config.sampling.moments={out / 'moments.npz'}"
  )
  if args.export:
    measurements.write_vector(args.export, gamma)
    print(f"Wrote {args.export}")
  if args.costs:
    if args.costs == "optimal" and trained.config.prediction.second not in build.OPTIMAL_HEADS:
      trained = trained.changed(sampling=dict(moments=str(out / "moments.npz")))
    path = out / f"costs_{args.costs}.npz"
    analytic.costs(trained, path, args.costs, args.images, seed=seed)
    print(f"Wrote {path}. Next: --config.sampling.grid=dp_vb --config.sampling.costs={path}")
  return 0
