"""Measures what was trained in --workdir: bits/dim on held-out images, and the distance of samples to real images.

  ddpm-jax evaluate --workdir runs/digits                           the bound on 128 test images, its terms plotted
  ddpm-jax evaluate --workdir runs/digits --likelihood 0 --distance 360

Results go to WORKDIR/evaluation: bits_per_dim.json and .png, distance.json, nearest_neighbours.png. The distance is a
Fréchet distance in the features of a small classifier that is trained on the data set the first time; it stands beside the
same distance between two halves of the real images.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
  where = "a training run, a converted checkpoint, or the name of published weights (ddpm-jax convert --list)"
  parser.add_argument("--workdir", "--weights", required=True, help=where)
  parser.add_argument("--likelihood", type=int, default=128, metavar="N", help="bits/dim of N test images; 0: not")
  parser.add_argument("--ode", type=int, default=0, metavar="N", help="bits/dim by the ODE, for networks of vp_sde; 0: not")
  parser.add_argument("--distance", type=int, default=0, metavar="N", help="distance of N samples to real images")
  parser.add_argument("--ema", help="which average of the weights: a rate, or raw (default: the slowest)")
  parser.add_argument("--step", type=int, help="which checkpoint (default: the latest sound one)")


def run(args: argparse.Namespace) -> int:
  from ddpm_jax.cli import environment

  environment.prepare()
  import pathlib

  from ddpm_jax import build, experiment

  trained = experiment.load(args.workdir, ema=args.ema, step=args.step, overrides=args.overrides)
  print(f"{args.workdir}, step {trained.step}, {trained.weights}")
  out = pathlib.Path(args.workdir) / "evaluation"
  out.mkdir(parents=True, exist_ok=True)
  if build.is_classifier(trained.config):
    accuracy(trained, out)
    return 0
  if args.likelihood:
    likelihood(trained, args.likelihood, out)
  if args.ode:
    ode(trained, args.ode, out)
  if args.distance:
    distance(trained, args.distance, out)
  return 0


def accuracy(trained, out) -> None:
  import json

  source = trained.dataset(trained.config.data.test_split)
  found = trained.accuracy(source)
  result = found | {"images": len(source), "split": source.info.split, "weights": trained.weights, "step": trained.step}
  (out / "accuracy.json").write_text(json.dumps(result, indent=2))
  print(f"Noisy classifier on {len(source)} {source.info.split} images, by quarter of the noise level (0: least noise):")
  print("            all      0      1      2      3")
  for name in ("top1", "top5"):
    print(f"  {name}  " + "".join(f"{found[name + part]:7.1%}" for part in ("", "_q0", "_q1", "_q2", "_q3")))


def likelihood(trained, count: int, out) -> None:
  import json

  import numpy as np

  from ddpm_jax import build
  from ddpm_jax.evaluation import plots

  source = trained.dataset(trained.config.data.test_split)
  bound = trained.bits_per_dim(source, count, progress=True)
  total = np.asarray(bound.total)
  levels = len(np.unique(source.gather(np.arange(min(len(source), 1000)))[0]))
  result = {
    "images": len(total),
    "split": source.info.split,
    "bits_per_dim": float(total.mean()),
    "standard_error": float(total.std(ddof=1) / np.sqrt(len(total))) if len(total) > 1 else None,
    "prior": float(bound.prior.mean()),
    "decoder": float(bound.terms[:, -1].mean()),
    "between": float(bound.terms[:, :-1].sum(1).mean()),
    "grey_levels": levels,
    "uniform_over_grey_levels": float(np.log2(levels)),
    "terms": np.asarray(bound.terms.mean(0), float).tolist(),
    "weights": trained.weights,
    "step": trained.step,
  }
  (out / "bits_per_dim.json").write_text(json.dumps(result, indent=2))
  plots.bound_terms(bound, build.bound(trained.config)[0].t.n, out / "bits_per_dim.png")
  plots.rate_distortion_curve(bound, out / "rate_distortion.png")
  print(
    f"bits/dim on {len(total)} {source.info.split} images: {result['bits_per_dim']:.3f} "
    f"(prior {result['prior']:.3f}, steps {result['between']:.3f}, decoder {result['decoder']:.3f}); "
    f"8 bits cost 8, {levels} grey levels coded uniformly {np.log2(levels):.3f}"
  )


def ode(trained, count: int, out) -> None:
  import json

  source = trained.dataset(trained.config.data.test_split)
  found = trained.ode_bits_per_dim(source, count)
  bits, steps = float(found.bits.mean()), float(found.steps.mean())
  error = float(found.bits.std(ddof=1) / len(found.bits) ** 0.5) if len(found.bits) > 1 else None
  result = {"images": len(found.bits), "bits_per_dim": bits, "standard_error": error, "steps": steps, "step": trained.step}
  (out / "ode_bits_per_dim.json").write_text(json.dumps(result, indent=2))
  print(f"bits/dim of the ODE on {len(found.bits)} {source.info.split} images: {bits:.3f}, in {steps:.0f} steps on average")


def distance(trained, count: int, out) -> None:
  import dataclasses
  import json

  import numpy as np

  from ddpm_jax.evaluation import plots, quality
  from ddpm_jax.evaluation.features import Recipe

  train, test = (trained.dataset(split) for split in (trained.config.data.train_split, trained.config.data.test_split))
  net = quality.classifier_of(train, test, out / "classifier.npz", Recipe())
  samples = trained.sample(range(count), progress=True)
  real, _ = train.gather(np.arange(len(train)))
  found = quality.distances(net, samples, real)
  (out / "distance.json").write_text(json.dumps(dataclasses.asdict(found), indent=2))
  plots.nearest_neighbours(samples[:8], real, out / "nearest_neighbours.png")
  print(
    f"Fréchet distance of {found.count} samples to {found.reference_count} real images: {found.samples:.3f}; "
    f"of as many other real images: {found.real:.3f} (features: {net.name}, test accuracy {net.test_accuracy:.1%})"
  )
