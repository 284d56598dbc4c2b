"""Evaluates a network (--workdir) or any images (--samples).

  ddpm-jax evaluate --workdir runs/digits                           bits/dim of 128 test images; figure 5 of DDPM
  ddpm-jax evaluate --workdir runs/mnist --covariance all           with every covariance that the network provides
  ddpm-jax evaluate --workdir runs/mnist --split train,test         of both, and the gap (DDPM table 1)
  ddpm-jax evaluate --workdir runs/mnist --figures                  samples, figures 6 and 8 of DDPM, nearest neighbours
  ddpm-jax evaluate --workdir runs/mnist --distance 1000            of samples, in features of the data's own classifier

  ddpm-jax evaluate --workdir runs/cifar10 --reference cifar10@train                    FID ... of 50,000 samples
  ddpm-jax evaluate --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz   as OpenAI's evaluator
  ddpm-jax evaluate --samples cifar10@test --num_samples 10000 --reference cifar10@train --features cifar10
  ddpm-jax evaluate --samples cifar10@train --make_reference cifar10_train.npz          moments, in OpenAI's layout
  ddpm-jax evaluate --samples samples.npz --captions captions.txt                       CLIP score, a line per image

A SET is an .npz file (arr_0, uint8 NHWC), a folder, a zip, or a data set as NAME@SPLIT. A network's samples are drawn as
needed, with seeds 0, 1, ... and its classes in turn. Features are stored, so the same command continues an interrupted one.
Results for a network are written to WORKDIR/evaluation; ddpm-jax report makes a page of them.
"""

import argparse

import ddpm_jax
from ddpm_jax.cli import against, environment, short

OF_DRAWING = ("likelihood", "covariance", "split", "ode", "distance", "figures")
OF_NETWORKS = (*OF_DRAWING, "ema", "step", *short.FLAGS, "overrides")
LEAST = {"likelihood": 0, "ode": 0, "distance": 0, "num_samples": 1, "batch_size": 1}
AGAINST = ("reference", "make_reference", "captions")
OF_SAMPLES = ("distance", "figures", *AGAINST)
IDLE = {  # flags without effect on a comparison
  "reference": ("clip",),
  "make_reference": ("clip", "metrics", "out"),
  "captions": ("features", "inception", "metrics"),
}
OF_COMPARISONS = (
  "num_samples",
  "image_size",
  "crop",
  "features",
  "inception",
  "clip",
  "metrics",
  "batch_size",
  "keep",
  "out",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  source = parser.add_mutually_exclusive_group(required=True)
  where = "a training run, a converted checkpoint, or the name of published weights (ddpm-jax convert --list)"
  source.add_argument("--workdir", "--weights", help=where)
  source.add_argument("--samples", metavar="SET", help="the images to evaluate, instead of samples of a network")

  network = parser.add_argument_group("of a network")
  network.add_argument(
    "--likelihood",
    type=int,
    metavar="N",
    help="bits/dim of N test images, the first ones, or random "
    "ones of a folder or zip (default: 128, or none where something else is asked for)",
  )
  network.add_argument(
    "--covariance",
    metavar="NAMES",
    help="covariances for bits/dim, such as posterior,optimal, or all (default: config.evaluation.covariance)",
  )
  network.add_argument(
    "--split", metavar="NAMES", help="splits for bits/dim, such as train,test (default: config.data.test_split)"
  )
  network.add_argument("--ode", type=int, default=0, metavar="N", help="bits/dim of N such images by the ODE (vp_sde)")
  network.add_argument(
    "--distance",
    type=int,
    default=0,
    metavar="N",
    help="Fréchet distance of N samples to half of the training images, in features of a small classifier of the data",
  )
  network.add_argument(
    "--figures",
    action="store_true",
    help="64 samples, progressive decoding, interpolations, the "
    "training images nearest to samples (DDPM figures 6, 8 and 13)",
  )
  network.add_argument("--ema", help="which average of the weights: a rate, or raw (default: the slowest)")
  network.add_argument("--step", type=int, help="which checkpoint (default: the latest sound one)")

  group = parser.add_argument_group("of samples against a reference: FID, sFID, Inception score, precision and recall, KID")
  what = group.add_mutually_exclusive_group()
  what.add_argument(
    "--reference", metavar="SET", help="images, or an .npz of moments (mu, sigma); @test is the run's own test split"
  )
  what.add_argument("--make_reference", metavar="FILE", help="write the moments of the samples to FILE instead")
  what.add_argument("--captions", metavar="FILE", help="a line of text for each sample: measure the CLIP score instead")
  group.add_argument(
    "--image_size",
    metavar="N",
    help="resize and crop the images of --samples and --reference to N or HEIGHT,WIDTH (default: as the run does)",
  )
  group.add_argument("--crop", help="how to crop: adm, lsun, ddim, celeba (default: as the run does, or adm)")
  group.add_argument(
    "--num_samples", type=int, metavar="N", help="number of samples given or to draw (default: 50,000, as published)"
  )
  kinds = "; ".join(f"{name}: {meaning}" for name, meaning in against.INCEPTIONS.items())
  group.add_argument(
    "--features",
    help=f"{kinds}; the name of a data set, or own for that of the run: those of a small "
    "classifier, trained on it the first time; or a file of such a classifier (default: inception_tf)",
  )
  group.add_argument("--inception", metavar="FILE", help="Inception's weights (default: from the cache, fetched once)")
  group.add_argument("--clip", metavar="FILE", help="CLIP's weights, a ViT of OpenAI's (default: ViT-B/32, fetched once)")
  group.add_argument(
    "--metrics",
    metavar="NAMES",
    help="some of fid,sfid,inception_score,precision_recall,kid (default: all possible), or a metric of your own as "
    "file.py:function, see docs/extend.md",
  )
  group.add_argument("--batch_size", type=int, metavar="N", help="images per device (default: 64)")
  group.add_argument("--keep", metavar="DIR", help="where to store features (default: features/ in the cache)")
  group.add_argument(
    "--out",
    metavar="FILE",
    help="the results as JSON (default: ./metrics.json, or WORKDIR/evaluation/metrics.json; results of other settings are "
    "kept beside it as metrics_2.json, ...)",
  )
  short.add_arguments(parser)
  environment.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  print(f"Evaluating {args.workdir or args.samples}", flush=True)
  environment.prepare(args)
  import pathlib

  from ddpm_jax import build
  from ddpm_jax.cli.sample import describe
  from ddpm_jax.errors import UserError
  from ddpm_jax.evaluation import image_sets
  from ddpm_jax.jobs import measure

  for name, least in LEAST.items():
    if (value := getattr(args, name)) is not None and value < least:
      raise UserError(f"--{name} {value} is too few: use at least {least}.")
  compared = next((name for name in AGAINST if getattr(args, name)), None)
  if compared and (odd := next((name for name in IDLE[compared] if getattr(args, name) is not None), None)):
    raise UserError(f"--{odd} has no effect on --{compared}: leave it out.")
  if args.samples is not None:
    if odd := next((name for name in OF_NETWORKS if getattr(args, name) not in (None, 0, False, [])), None):
      flag = f"config.{args.overrides[0]}" if odd == "overrides" else odd
      raise UserError(f"--{flag} is about a network and has no effect on --samples: leave it out, or give a --workdir.")
    if not compared:
      raise UserError("--samples needs something to compare with: give --reference, --make_reference or --captions.")
    for name in ("samples", "reference"):
      if (given := getattr(args, name) or "").startswith("@"):
        raise UserError(
          f"--{name} {given} is a split of a run's data: give a --workdir, or name a data set, as in mnist{given}."
        )
    fit = against.fit_of(args)
    against.run(args, image_sets.open_set(*against.named_set(args.samples), **fit), args.out or "metrics.json", fit)
    return 0

  if not compared and (odd := next((name for name in OF_COMPARISONS if getattr(args, name) is not None), None)):
    raise UserError(f"--{odd} is about a comparison: give --reference, --make_reference or --captions, or leave it out.")
  trained = ddpm_jax.load(args.workdir, ema=args.ema, step=args.step, overrides=args.overrides, **short.of(args))
  print(f"{args.workdir}, step {trained.step}, {trained.weights}")
  out = pathlib.Path(args.workdir) / "evaluation"
  if build.is_classifier(trained.config):
    if odd := next((name for name in (*OF_DRAWING, *AGAINST) if getattr(args, name)), None):
      raise UserError(f"--{odd} needs a network that draws images, but this is a noisy classifier: leave it out.")
    accuracy(trained, out)
    return 0
  trained = trained.with_moments()
  count = args.likelihood
  if count is None and (args.covariance or args.split or not (compared or args.ode or args.distance or args.figures)):
    count = 128
  if trained.config.data.low_res_size and (odd := next((name for name in OF_SAMPLES if getattr(args, name)), None)):
    raise UserError(f"--{odd} needs samples, but this network only enlarges those of another: leave it out.")
  if args.ode:
    build.sde(trained.config)
  if args.distance:
    measure.check_distance(trained, out, args.distance)
  if compared:
    fit = against.fit_of(args, trained.config.data)
    how = describe(trained.config.sampling, len(build.sampler(trained.config).steps.left))
    against.run(args, image_sets.of_run(trained, against.count(args)), args.out, fit, trained, out, how)
  if count:
    splits(trained, out, count, args.covariance, args.split)
  if args.ode:
    ode(trained, out, args.ode)
  if args.distance:
    distance(trained, out, args.distance)
  if args.figures:
    figures(trained, out)
  return 0


def accuracy(trained, out) -> None:
  from ddpm_jax.jobs import measure

  found = measure.accuracy(trained, out)
  print(f"Noisy classifier on {found['images']} {found['split']} images, by quarter of the noise level (0: least noise):")
  print("            all      0      1      2      3")
  for name in ("top1", "top5"):
    print(f"  {name}  " + "".join(f"{found[name + part]:7.1%}" for part in ("", "_q0", "_q1", "_q2", "_q3")))


def splits(trained, out, count: int, covariances: str | None, names: str | None) -> None:
  """bits/dim of one split or several, and the gap between the first and the last (DDPM table 1)."""
  chosen = names.split(",") if names else [trained.config.data.test_split]
  several = [trained.changed(data=dict(test_split=name)) for name in chosen]
  for one in several:
    one.dataset(one.config.data.test_split)  # an unknown split is refused before anything is measured
  found = [likelihood(one, out, count, covariances) for one in several]
  if len(chosen) > 1:
    for first, last in zip(found[0], found[-1], strict=True):
      gap = last["bits_per_dim"] - first["bits_per_dim"]
      print(f"{last['covariance']} covariance: {chosen[-1]} needs {gap:+.3f} bits/dim beside {chosen[0]}")


def likelihood(trained, out, count: int, covariances: str | None) -> list[dict]:
  from ddpm_jax.jobs import measure

  results = measure.held_out_bits_per_dim(trained, out, count, covariances.split(",") if covariances else None)
  for found in results:
    error = "" if found["standard_error"] is None else f" ± {found['standard_error']:.3f}"
    print(
      f"bits/dim on {found['images']} {found['split']} images, {found['steps']} steps, {found['covariance']} covariance: "
      f"{found['bits_per_dim']:.3f}{error} (prior {found['prior']:.3f}, steps {found['between']:.3f}, decoder "
      f"{found['decoder']:.3f}); 8 bits cost 8, {found['grey_levels']} grey levels coded uniformly "
      f"{found['uniform_over_grey_levels']:.3f}"
    )
  return results


def ode(trained, out, count: int) -> None:
  from ddpm_jax.jobs import measure

  found = measure.held_out_ode_bits_per_dim(trained, out, count)
  print(
    f"bits/dim of the ODE on {found['images']} {found['split']} images: {found['bits_per_dim']:.3f}, "
    f"in {found['steps']:.0f} steps on average"
  )


def distance(trained, out, count: int) -> None:
  from ddpm_jax.jobs import measure

  found = measure.distance(trained, out, count)
  print(
    f"Fréchet distance of {found.count} samples to {found.reference_count} real images: {found.samples:.3f}; of as many "
    f"other real images: {found.real:.3f} (features: {found.classifier['name']}, test accuracy "
    f"{found.classifier['test_accuracy']:.1%})"
  )


def figures(trained, out) -> None:
  from ddpm_jax.jobs import measure

  print(f"Wrote {', '.join(measure.figures(trained, out))} to {out}")
