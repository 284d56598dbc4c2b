"""Draws images from the network in --workdir. Everything that it needs comes from its checkpoint.

Image i depends on seed i alone, not on the batch size or the machine.

  ddpm-jax sample --workdir runs/digits --seeds 0-63                              as its config says
  ddpm-jax sample --workdir runs/digits --sampler ddim --steps 50
  ddpm-jax sample --weights cifar10-ddpm --sampler dpm++2m --steps 15             published weights
  ddpm-jax sample --workdir runs/digits --sampler analytic --steps 25             measures moments first if there are none
  ddpm-jax sample --workdir runs/mnist --classes 3,5 --guidance 3 --classifier runs/mnist_classifier
  ddpm-jax sample --workdir runs/digits --seeds 0-49999 --formats npz             for an evaluator
  ddpm-jax sample --workdir runs/mnist_14 --upsampler runs/mnist_sr               a cascade

`ddpm-jax samplers` lists them. Any field of the config's sampling section can be set by --config.sampling.FIELD=VALUE.
"""

import argparse
import re
from typing import Any

import ddpm_jax
from ddpm_jax.cli import environment, short

FORMATS = {
  "grid": "grid.png, all images in one picture",
  "png": "png/000000.png ..., one file per image, named by its seed",
  "npz": "samples.npz in the layout of OpenAI's evaluator: arr_0 uint8 [N,H,W,C], arr_1 labels",
  "gif": "denoising.gif, predictions of x_0 during sampling, for the first 16 images",
  "strip": "denoising.png, the same as rows of one picture, for the first 8 images",
}


TEXTS = ("sampler", "classifier", "weaker")  # short flags whose values are not numbers
MOST_FRAMED = 16  # images of an animation


def add_arguments(parser: argparse.ArgumentParser) -> None:
  where = "a training run, a converted checkpoint, or the name of published weights (ddpm-jax convert --list)"
  parser.add_argument("--workdir", "--weights", required=True, help=where)
  parser.add_argument("--seeds", default="0-63", help="such as 0-63 or 3,5,8-10; one image each (default %(default)s)")
  parser.add_argument("--classes", help="such as cat,dog or 3,5: label images with these in turn (default: all in turn)")
  parser.add_argument("--upsampler", metavar="WORKDIR", help="a super-resolution run: enlarges them as its own config says")
  short.add_arguments(parser)
  formats = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
  parser.add_argument("--formats", default="grid", help=f"comma-separated (default %(default)s). {formats}")
  parser.add_argument(
    "--beside",
    metavar="CHANGES",
    help='also draw the same seeds with other settings, such as "sampler=ddim steps=20", into beside.png',
  )
  parser.add_argument("--out", help="where to write (default: a directory in WORKDIR/samples named by the settings)")
  parser.add_argument("--ema", help="which average of the weights: a rate, or raw (default: the slowest)")
  parser.add_argument("--step", type=int, help="which checkpoint (default: the latest sound one)")
  parser.add_argument("--dry_run", action="store_true", help="print config and table of steps, draw nothing")
  environment.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  print(f"Loading {args.workdir}", flush=True)
  environment.prepare(args)
  import pathlib

  from ddpm_jax import build
  from ddpm_jax.cli.numbers import integers
  from ddpm_jax.config import nearest
  from ddpm_jax.data import images as pixels
  from ddpm_jax.data.classes import class_numbers
  from ddpm_jax.errors import UserError
  from ddpm_jax.evaluation import plots
  from ddpm_jax.files import atomic
  from ddpm_jax.jobs import drawing
  from ddpm_jax.jobs.trained import check_low_res

  formats = args.formats.split(",")
  for name in formats:
    if name not in FORMATS:
      raise UserError(f"Format {name!r} is unknown; {nearest(name, FORMATS)}")
  if args.beside is not None and args.upsampler:
    raise UserError("--beside compares what one network draws: leave out --upsampler.")
  seeds = integers(args.seeds, "--seeds")
  trained = ddpm_jax.load(args.workdir, ema=args.ema, step=args.step, overrides=args.overrides, **short.of(args))
  if not args.dry_run:
    trained = trained.with_moments()
  elif build.lacks_moments(trained.config):
    print("Moments of the network would be measured first.")
    print(trained.config)
    return 0
  labels = None
  if args.classes:
    classes = class_numbers(args.classes, trained.config.data.class_names, trained.config.data.num_classes)
    labels = [classes[i % len(classes)] for i in range(len(seeds))]

  upsampler = other = None
  if args.upsampler:
    upsampler = ddpm_jax.load(args.upsampler)
    check_low_res(upsampler.config.data, trained.image_shape)
  if args.beside is not None:
    other = beside(trained, args.beside.split())
  steps = build.sampler(trained.config).steps
  how = describe(trained.config.sampling, len(steps.left))
  print(f"{len(seeds)} images from {args.workdir}, step {trained.step}, {trained.weights}: {how}")
  if args.dry_run:
    build.guided(trained.config, trained.network, trained.guide)  # raises UserError for settings that cannot work
    print(trained.config)
    print("levels:", ", ".join(str(n) for n in [*steps.t.n[:8], *(["..."] if len(steps.t.n) > 8 else [])]))
    return 0

  words = [f"step{trained.step}", how]
  if args.ema:
    words.append(trained.weights)
  if args.classes:
    words.append(f"classes {args.classes}")
  if upsampler:
    words.append(f"by {pathlib.Path(args.upsampler).name}")
  out = pathlib.Path(args.out or pathlib.Path(args.workdir) / "samples" / re.sub(r"[^\w.+-]+", "_", " ".join(words)))
  atomic.check(out / "grid.png")
  settings = drawing.settings(trained, upsampler)
  drawing.check(out, settings)

  def each(seeds, images):
    if "png" in formats:
      for seed, image in zip(seeds, images, strict=True):
        pixels.save_png(out / "png" / f"{seed:06d}.png", image)

  frames: Any = believed(trained, seeds, labels) if {"gif", "strip"} & set(formats) else None
  images = drawing.draw(trained, seeds, labels, out, upsampler=upsampler, each=each)
  drawing.record(out, settings)
  scale = max(1, 64 // images.shape[1])
  for name in formats:
    if name == "grid":
      shown = trained.labels(seeds, labels)
      names = trained.config.data.class_names
      drawn = pixels.grid(images, scale=scale) if shown is None else pixels.grid_by_class(images, shown, names, scale=scale)
      pixels.save_png(out / "grid.png", drawn)
    elif name == "npz":
      pixels.save_npz(out / "samples.npz", images, trained.labels(seeds, labels))
    elif name == "gif":
      pixels.save_gif(out / "denoising.gif", [pixels.grid(frame[:16], scale=scale) for frame in frames])
    elif name == "strip":
      shown = frames[:: -(-len(frames) // 12)][:, :8].swapaxes(0, 1)
      strip = pixels.grid(shown.reshape(-1, *images.shape[1:]), columns=shown.shape[1], scale=scale)
      pixels.save_png(out / "denoising.png", strip)
  if other:
    other_how = describe(other.config.sampling, len(build.sampler(other.config).steps.left))
    others = other.sample(seeds, labels, progress=True)
    plots.side_by_side({how: images, other_how: others}, out / "beside.png")
    formats.append("beside.png")
  print(f"Wrote {', '.join(formats)} to {out}")
  return 0


def beside(trained, changes: list[str]):
  """The same network with these changes, such as sampler=ddim, steps=20 or sampling.clip=none."""
  from ddpm_jax import build
  from ddpm_jax.config import value_of
  from ddpm_jax.errors import UserError

  how = {name: value for name, _, value in (change.partition("=") for change in changes) if name in short.FLAGS}
  fields = [change for change in changes if change.partition("=")[0] not in short.FLAGS]
  odd = [field for field in fields if not field.startswith("sampling.")]
  if odd or not changes:
    what = repr(odd[0]) if odd else "nothing"
    raise UserError(f'--beside changes how images are drawn, not {what}: write "sampler=ddim steps=20 sampling.clip=none".')
  numbers = {name: value if name in TEXTS else value_of(value) for name, value in how.items()}
  for name, value in numbers.items():
    if not isinstance(value, (str,) if name in TEXTS else (int,) if name == "steps" else (int, float)):
      raise UserError(f"--beside {name}={value} should be a number.")
  other = trained.using(*fields, **numbers).with_moments()
  build.sampling(other.config, other.network, other.guide)  # raises UserError for settings that cannot work
  return other


def believed(trained, seeds, labels):
  """Predictions of x_0 during sampling for the first seeds, uint8 [frames, n, H, W, C]."""
  from ddpm_jax import build
  from ddpm_jax.data import images as pixels

  first = min(trained.config.sampling.batch_size, MOST_FRAMED)
  every = max(1, len(build.sampler(trained.config).steps.left) // 32)
  _, frames = trained.sample(seeds[:first], labels and labels[:first], save=_belief, save_every=every, progress=True)
  return pixels.to_uint8(frames)


def describe(sampling, steps: int) -> str:
  """A name for the settings of sampling, which is different for different settings and names the directory."""
  solver = sampling.solver.rpartition(":")[2]
  words = [solver if solver != "gaussian" else f"eta{sampling.eta:g}", f"{steps}steps"]
  if sampling.grid not in ("full", "uniform"):
    words.append(str(sampling.grid).replace(",", "-"))
  if sampling.covariance and solver == "gaussian":
    words.append(sampling.covariance.rpartition(":")[2])
  if sampling.cap_pixels is not None and solver == "gaussian":
    words.append(f"cap{sampling.cap_pixels:g}x{sampling.cap_steps}")
  if sampling.churn:
    words.append(f"churn{sampling.churn:g}")
    usual = (("churn_min", 0), ("churn_max", None), ("churn_noise", 1))
    words += [f"{name.removeprefix('churn_')}{sampling[name]:g}" for name, value in usual if sampling[name] != value]
  if sampling.skip:
    words.append(f"skip{sampling.skip:g}")
  if sampling.clip != "x0":
    words.append(f"clip_{sampling.clip}")
  words += [name for name in ("residual", "keep_eps") if sampling[name]]
  if sampling.rounding != "truncate":
    words.append("rounded")
  guidance = sampling.guidance
  if guidance.kind:
    words.append(f"{guidance.kind}{guidance.scale:g}")
    words += [str(value) for value in (guidance.form, guidance.ema, guidance.step) if value is not None]
    if guidance.interval:
      words.append("levels{}-{}".format(*guidance.interval))
  return " ".join(words)


def _belief(x, pred):
  return pred.x0
