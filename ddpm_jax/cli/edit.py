"""Edits images with the network in --workdir, and writes pictures to WORKDIR/edits.

  reconstruct     encodes images to latents and decodes them with few and many steps (DDIM table 2)
  image_to_image  diffuses images part of the way to noise, and samples from there
  inpaint         samples the middle or a half of images, given the rest (RePaint)
  interpolate     interpolates between the latents of seeds 0 and 1, 2 and 3, ... (DDIM figure 6)
  between         interpolates between test images 0 and 1, 2 and 3, ... in noise of several strengths (DDPM figures 8 and 9)
  resample        draws several images from the same noisy image (DDPM figure 7)
  restore         restores images from linear measurements with noise: mask, blur, downsample, grey, or your own function

  ddpm-jax edit reconstruct    --workdir runs/mnist --images 0-255 --steps 10,20,50,100,200,500
  ddpm-jax edit reconstruct    --workdir runs/mnist --sampler dpm++2m
  ddpm-jax edit image_to_image --workdir runs/mnist --images 0-15 --strength 0.4
  ddpm-jax edit inpaint        --workdir runs/mnist --images 0-15 --hide center --jump 10 --resamples 10
  ddpm-jax edit interpolate    --workdir runs/mnist --seeds 0-7 --sampler ddim
  ddpm-jax edit between        --workdir runs/mnist --images 0-3 --strength 0.1,0.25,0.5
  ddpm-jax edit resample       --workdir runs/mnist --images 0-3 --level 250
  ddpm-jax edit restore        --workdir runs/mnist --images 0-7 --operator downsample --factor 4 --steps 50
  ddpm-jax edit restore        --workdir runs/mnist --images 0-7 --operator mask --hide left --covariance marginal

--images are indices into the test split, from 0. The steps are those of the config's sampling section, as for sample.
Each task has its own flags: ddpm-jax edit inpaint --help.
"""

import argparse
from typing import Any

import ddpm_jax
from ddpm_jax.cli import short

HIDDEN = ("center", "left", "top")
OF_OPERATOR = {"hide": "mask", "blur": "blur", "factor": "downsample"}  # flags of edit restore
SHOWN = 16  # largest number of images in a row of the picture; an interpolation shows all frames


def add_arguments(parser: argparse.ArgumentParser) -> None:
  network = argparse.ArgumentParser(add_help=False)
  network.add_argument("--workdir", required=True, help="a training run, or a converted checkpoint")
  network.add_argument("--ema", help="which average of the weights: a rate, or raw (default: the slowest)")
  network.add_argument("--step", type=int, help="which checkpoint (default: the latest sound one)")
  network.add_argument("--trust", action="store_true", help="import the code that a checkpoint's config names, if any")
  real = argparse.ArgumentParser(add_help=False, parents=[network])
  real.add_argument("--images", default="0-15", help="which test images (default %(default)s)")
  noisy = argparse.ArgumentParser(add_help=False, parents=[real])
  noisy.add_argument("--seeds", help="of the noise (default: the numbers of the images)")

  tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)

  def task(name: str, parent: argparse.ArgumentParser, summary: str) -> argparse.ArgumentParser:
    made = tasks.add_parser(name, parents=[parent], help=summary, description=summary, allow_abbrev=False)
    short.add_arguments(made, steps=name != "reconstruct")  # whose --steps are several numbers
    return made

  reconstruct = task("reconstruct", real, "encode to latents and decode: errors by number of steps, and a picture")
  reconstruct.add_argument("--steps", default="10,20,50,100", help="numbers of steps (default %(default)s)")
  image_to_image = task("image_to_image", noisy, "diffuse part of the way to noise, and sample from there")
  image_to_image.add_argument(
    "--strength", type=float, default=0.5, help="that part, above 0 and at most 1, which is pure noise (default 0.5)"
  )
  inpaint = task("inpaint", noisy, "sample a part of images, given the rest")
  inpaint.add_argument("--hide", choices=HIDDEN, default="center", help="which part (default %(default)s)")
  inpaint.add_argument(
    "--jump", type=int, metavar="N", default=10, help="steps that a jump goes back to more noise (default 10)"
  )
  inpaint.add_argument(
    "--resamples", type=int, metavar="N", default=10, help="passes over each stretch; 1 makes no jumps (default 10)"
  )
  interpolate = task("interpolate", network, "interpolate between the latents of pairs of seeds")
  interpolate.add_argument("--seeds", default="0-7", help="the ends: the first two, the next two, ... (default %(default)s)")
  interpolate.add_argument("--frames", type=int, metavar="N", default=9, help="images from end to end (default 9)")
  interpolate.add_argument("--classes", help="such as cat,dog or 3,5: of the pairs in turn (default: all in turn)")
  between = task(
    "between", real, "interpolate between pairs of test images; a row per strength below a row of pixel mixtures"
  )
  between.add_argument("--strength", default="0.1,0.25,0.5", help="parts of the way to noise (default %(default)s)")
  between.add_argument("--frames", type=int, metavar="N", default=11, help="images from end to end (default 11)")
  resample = task("resample", real, "draw several images from the same noisy image")
  resample.add_argument("--level", type=int, required=True, help="the level at which they are still the same")
  resample.add_argument("--count", type=int, metavar="N", default=8, help="images for each (default 8)")
  restore = task("restore", noisy, "restore from linear measurements with noise; prints PSNR and SSIM")
  restore.add_argument(
    "--operator", default="mask", help="mask, blur, downsample, grey, or my_pkg.ops:fn (default %(default)s)"
  )
  restore.add_argument("--hide", choices=HIDDEN, help="what a mask hides (default center)")
  restore.add_argument("--blur", type=float, metavar="STD", help="standard deviation of a blur in pixels (default 1)")
  restore.add_argument("--factor", type=int, metavar="N", help="factor of downsampling (default 2)")
  restore.add_argument(
    "--noise", type=float, metavar="STD", default=0.05, help="of the measurements; pixels are from -1 to 1 (default 0.05)"
  )
  restore.add_argument(
    "--covariance",
    default="full",
    help="of x_0: posterior (DPS), marginal (PiGDM), optimal, optimal_diagonal, jacobian (TMPD), full (MMPS; default)",
  )
  restore.add_argument(
    "--iterations", type=int, metavar="N", default=5, help="steps of conjugate gradients (default %(default)s)"
  )


def run(args: argparse.Namespace) -> int:
  from ddpm_jax.cli import environment

  print(f"Loading {args.workdir}", flush=True)
  environment.prepare_alone("edit")
  import pathlib

  import numpy as np

  from ddpm_jax import build
  from ddpm_jax.cli.numbers import integers
  from ddpm_jax.data import images as pixels
  from ddpm_jax.data.classes import class_numbers
  from ddpm_jax.diffusion import grid
  from ddpm_jax.errors import UserError
  from ddpm_jax.jobs import edit, measure

  how = short.of(args)
  if args.task == "restore":
    for name, operator in OF_OPERATOR.items():
      if getattr(args, name) is not None and args.operator != operator:
        raise UserError(f"--{name} has no effect on --operator {args.operator}: it is for {operator}.")
  if args.task == "reconstruct":
    if args.eta:
      raise UserError(f"--eta {args.eta:g} has no effect here: images are reconstructed without noise. Leave it out.")
    how.pop("steps", None)  # which are numbers of steps, one after the other
  trained = ddpm_jax.load(args.workdir, ema=args.ema, step=args.step, overrides=args.overrides, **how).with_moments()
  out = pathlib.Path(args.workdir) / "edits"
  print(f"{args.workdir}, step {trained.step}, {trained.weights}")

  if args.task == "interpolate":
    seeds = integers(args.seeds, "--seeds")
    if len(seeds) % 2:
      raise UserError(f"--seeds {args.seeds} names {len(seeds)} seeds: use an even number, two for each interpolation.")
    about = trained.config.data
    classes = list(range(about.num_classes or 1))
    if args.classes:
      if trained.labels([0]) is None:
        raise UserError("This network takes no labels: leave out --classes.")
      classes = class_numbers(args.classes, about.class_names, about.num_classes)
    pairs = zip(seeds[::2], seeds[1::2], strict=True)
    rows = [edit.interpolate(trained, *ends, args.frames, label=classes[k % len(classes)]) for k, ends in enumerate(pairs)]
  else:
    numbers = integers(args.images, "--images")
    source = trained.dataset(trained.config.data.test_split)
    if max(numbers) >= len(source):
      raise UserError(f"There is no test image {max(numbers)}: --images must be between 0 and {len(source) - 1}.")
    real = source.gather(np.asarray(numbers))[0]
    if args.task == "between":
      rows = _between(args, trained, source, numbers)
    elif args.task == "resample":
      _at_least(args.count, 1, "--count")
      drawn = edit.resample(trained, source, numbers, args.count, args.level)
      rows = [np.concatenate([real[k : k + 1], several]) for k, several in enumerate(drawn)]
    elif args.task == "reconstruct":
      rows = [real]
      errors = {}
      many = integers(args.steps, "--steps")
      for steps in many:
        grid.check_steps(build.schedule(trained.config).T, steps)
      for steps in many:
        again, error = edit.reconstruct(trained, source, numbers, steps)
        rows.append(again)
        errors[steps] = float(error.mean())
        print(f"{steps:5d} steps: mean square error {errors[steps]:.6f} per pixel, on the scale 0 to 1")
      measure.write_json(out / "reconstruct.json", {"images": len(numbers), "weights": trained.weights, "error": errors})
    else:
      seeds = integers(args.seeds, "--seeds") if args.seeds else numbers
      if len(seeds) != len(numbers):
        raise UserError(f"There are {len(numbers)} images but {len(seeds)} seeds: give one per image, or leave --seeds out.")
      if args.task == "image_to_image":
        rows = [real, edit.image_to_image(trained, source, numbers, seeds, args.strength)]
      elif args.task == "restore":
        rows = _restore(args, trained, source, numbers, seeds, out)
      else:
        known = edit.known_pixels(args.hide, *real.shape[1:3])
        drawn = edit.inpaint(trained, source, numbers, seeds, known, jump=args.jump, resamples=args.resamples)
        rows = [real, np.where(known[:, :, None], real, 128).astype(np.uint8), drawn]

  if args.task not in ("interpolate", "between", "resample"):
    rows = [row[:SHOWN] for row in rows]
  scale = max(1, 64 // rows[0].shape[1])
  pixels.save_png(out / f"{args.task}.png", pixels.grid(np.concatenate(rows), columns=len(rows[0]), scale=scale))
  print(f"Wrote {args.task}.png to {out}")
  return 0


def _between(args: argparse.Namespace, trained: Any, source: Any, numbers: list[int]) -> list:
  """Rows of a picture, for each pair of images: mixtures of pixels, then one row per strength."""
  import numpy as np

  from ddpm_jax.cli.numbers import floats
  from ddpm_jax.errors import UserError
  from ddpm_jax.jobs import edit

  if len(numbers) % 2:
    raise UserError(f"--images {args.images} names {len(numbers)} images: use an even number, two for each interpolation.")
  _at_least(args.frames, 2, "--frames")
  strengths = floats(args.strength, "--strength")
  pairs = np.reshape(numbers, (-1, 2))
  drawn = [edit.mixed(source, pairs, args.frames)]
  drawn += [edit.between(trained, source, pairs, args.frames, strength) for strength in strengths]
  return [part[k] for k in range(len(pairs)) for part in drawn]


def _at_least(value: int, least: int, flag: str) -> None:
  from ddpm_jax.errors import UserError

  if value < least:
    raise UserError(f"{flag} {value} is too few: use at least {least}.")


def _restore(args: argparse.Namespace, trained: Any, source: Any, numbers: list[int], seeds: list[int], out: Any) -> list:
  """Rows of a picture: originals, measurements, restored images. Prints and writes their quality."""
  from ddpm_jax.jobs import edit, measure, restoring

  known = edit.known_pixels(args.hide or "center", *trained.image_shape[:2])
  blur = 1.0 if args.blur is None else args.blur
  factor = 2 if args.factor is None else args.factor
  operator = restoring.operator(args.operator, trained.image_shape, known=known, std=blur, factor=factor)
  how = dict(noise=args.noise, covariance=args.covariance, iterations=args.iterations)
  found = restoring.restore(trained, source, numbers, seeds, operator, **how)
  print(f"PSNR {found.psnr.mean():.2f} dB, SSIM {found.ssim.mean():.3f}, means over {len(numbers)} images")
  result = {"images": len(numbers), "operator": args.operator, **how, "weights": trained.weights}
  measure.write_json(out / "restore.json", result | {"psnr": found.psnr.tolist(), "ssim": found.ssim.tolist()})
  return [row for row in (found.real, found.pictures, found.images) if row is not None]
