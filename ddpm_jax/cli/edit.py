"""Edits images with what was trained in --workdir, and writes pictures to WORKDIR/edits.

  reconstruct     to latents and back with few and many steps (DDIM table 2): a table of errors, and a picture
  image_to_image  taken part of the way to noise, and drawn again from there
  inpaint         the middle, or a half, is drawn anew around what is known (RePaint)
  interpolate     between the latents of seeds 0 and 1, 2 and 3, ... (DDIM figure 6)

  ddpm-jax edit reconstruct    --workdir runs/mnist --images 0-255 --steps 10,20,50,100,200,500
  ddpm-jax edit reconstruct    --workdir runs/mnist --config.sampling.solver=dpm++2m --config.sampling.grid=log_snr
  ddpm-jax edit image_to_image --workdir runs/mnist --images 0-15 --strength 0.4
  ddpm-jax edit inpaint        --workdir runs/mnist --images 0-15 --hide center --jump 10 --resamples 10
  ddpm-jax edit interpolate    --workdir runs/mnist --seeds 0-7 --config.sampling.eta=0

--images are places in the data set's test split, from 0. Steps are those of the config's sampling section, as for sample.
"""

import argparse
from typing import Any

TASKS = ("reconstruct", "image_to_image", "inpaint", "interpolate")
HIDDEN = ("center", "left", "top")
SHOWN = 16  # images of a picture's row; all frames of an interpolation


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("task", choices=TASKS)
  parser.add_argument("--workdir", required=True, help="a training run, or a converted checkpoint")
  parser.add_argument("--images", default="0-15", help="which test images (default %(default)s)")
  parser.add_argument("--seeds", help="of the noise (default: the numbers of the images)")
  parser.add_argument("--steps", default="10,20,50,100", help="of reconstruct: numbers of steps (default %(default)s)")
  parser.add_argument("--strength", type=float, default=0.5, help="of image_to_image: 0 keeps, 1 replaces (default 0.5)")
  parser.add_argument("--hide", choices=HIDDEN, default="center", help="of inpaint (default %(default)s)")
  parser.add_argument("--jump", type=int, default=10, help="of inpaint: steps of a jump back (default %(default)s)")
  parser.add_argument("--resamples", type=int, default=10, help="of inpaint: 1 does not jump (default %(default)s)")
  parser.add_argument("--frames", type=int, default=9, help="of interpolate (default %(default)s)")
  parser.add_argument("--ema", help="which average of the weights: a rate, or raw (default: the slowest)")
  parser.add_argument("--step", type=int, help="which checkpoint (default: the latest sound one)")


def run(args: argparse.Namespace) -> int:
  from ddpm_jax.cli import environment

  environment.prepare_alone("edit")
  import json
  import pathlib

  import numpy as np

  from ddpm_jax import edits, experiment
  from ddpm_jax.cli.numbers import integers
  from ddpm_jax.data import images as pixels
  from ddpm_jax.errors import UserError

  trained = experiment.load(args.workdir, ema=args.ema, step=args.step, overrides=args.overrides)
  out = pathlib.Path(args.workdir) / "edits"
  out.mkdir(parents=True, exist_ok=True)

  if args.task == "interpolate":
    seeds = integers(args.seeds or "0-7", "--seeds")
    pairs = list(zip(seeds[::2], seeds[1::2], strict=False))
    if not pairs:
      raise UserError("Interpolation is between seeds 0 and 1, 2 and 3 of --seeds: name at least two.")
    classes = trained.config.data.num_classes or 1
    rows = [edits.interpolate(trained, *ends, args.frames, label=k % classes) for k, ends in enumerate(pairs)]
  else:
    numbers = integers(args.images, "--images")
    source = trained.dataset(trained.config.data.test_split)
    if max(numbers) >= len(source):
      raise UserError(f"There is no test image {max(numbers)}: there are {len(source)}, counted from 0.")
    seeds = integers(args.seeds, "--seeds") if args.seeds else numbers
    if len(seeds) != len(numbers):
      raise UserError(f"There are {len(numbers)} images but {len(seeds)} seeds: give one for each, or leave --seeds out.")
    real = source.gather(np.asarray(numbers))[0]
    if args.task == "image_to_image":
      rows = [real, edits.image_to_image(trained, source, numbers, seeds, args.strength)]
    elif args.task == "inpaint":
      known = shown(args.hide, real.shape[1])
      options = dict(jump=args.jump, resamples=args.resamples)
      drawn = edits.inpaint(trained, source, numbers, seeds, known, **options)
      rows = [real, np.where(known[:, :, None], real, 128).astype(np.uint8), drawn]
    else:
      rows, errors = [real], {}
      for steps in integers(args.steps, "--steps"):
        again, error = edits.reconstruct(trained, source, numbers, steps)
        rows.append(again)
        errors[steps] = float(error.mean())
        print(f"{steps:5d} steps: mean square error {errors[steps]:.6f} per pixel, which is from 0 to 1")
      result = {"images": len(numbers), "weights": trained.weights, "error": errors}
      (out / "reconstruct.json").write_text(json.dumps(result, indent=2))

  if args.task != "interpolate":
    rows = [row[:SHOWN] for row in rows]
  scale = max(1, 64 // rows[0].shape[1])
  pixels.save_png(out / f"{args.task}.png", pixels.grid(np.concatenate(rows), columns=len(rows[0]), scale=scale))
  print(f"Wrote {args.task}.png to {out}")
  return 0


def shown(hidden: str, size: int):
  """bool [size,size], which pixels are known."""
  import numpy as np

  known = np.ones((size, size), bool)
  quarter, half = size // 4, size // 2
  area: dict[str, Any] = {"center": np.s_[quarter:-quarter, quarter:-quarter], "left": np.s_[:, :half], "top": np.s_[:half]}
  known[area[hidden]] = False
  return known
