"""What else a network can do: images between two seeds, an image encoded and decoded, and a hidden part filled in."""

from typing import Any

import numpy as np

from ddpm_jax import build
from ddpm_jax.data import images as pixels
from ddpm_jax.errors import UserError
from ddpm_jax.explore.drawing import compiling, program
from ddpm_jax.explore.settings import Say, Settings, number, one_of, silent, whole
from ddpm_jax.jobs import edit
from ddpm_jax.jobs.trained import Trained, checked_seeds

FRAMES = 9  # images from one seed to the other
HIDDEN = ("center", "left", "top")
MOST_RESAMPLES = 20  # twice the paper's number


def mix(
  trained: Trained,
  settings: Settings,
  first: int,
  last: int,
  weight: float,
  label: int | None = None,
  say: Say = silent,
) -> np.ndarray:
  """Images uint8 [1 + FRAMES,H,W,C] between two seeds: at `weight`, and at even weights from 0 to 1 (DDIM section 5.3).

  Raises:
    UserError: for a weight that is not between 0 and 1, and as edit.between_seeds.
  """
  if not 0 <= number(weight, "Weight") <= 1:
    raise UserError(f"Weight {weight} must be between 0, the first seed, and 1, the last.")
  ends = [whole(seed, "Seed") for seed in (first, last)]
  checked_seeds(ends)
  label = 0 if label is None else whole(label, "Class")
  run = settings.of(trained, say)
  with compiling(("mix", program(run, 1 + FRAMES)), f"{1 + FRAMES} images between two seeds", say):
    return edit.between_seeds(run, ends[0], ends[1], [weight, *np.linspace(0, 1, FRAMES)], label)


def encode(trained: Trained, settings: Settings, index: int, say: Say = silent) -> tuple[np.ndarray, float]:
  """(uint8 [3,H,W,C]: a test image, its latent, its reconstruction; mean square error of pixels from 0 to 1)."""
  run = settings.of(trained, say)
  source, index = _test_image(run, index)
  steps = number_of_steps(run)
  with compiling(("encode", program(run, 1)), f"{steps} steps up and {steps} down", say):
    latent, again, error = edit.encode_and_decode(run, source, [index], steps)
  shown = pixels.to_uint8(latent / 3)  # three standard deviations, so that noise is not cut off
  return np.concatenate([source.gather(np.array([index]))[0], shown, again]), float(error[0])


def fill(
  trained: Trained, settings: Settings, index: int, seed: int, hidden: str, resamples: int, say: Say = silent
) -> np.ndarray:
  """uint8 [3,H,W,C]: a test image, the same without a part, and with that part drawn by RePaint.

  Args:
    hidden: which part; see edit.known_pixels.
    resamples: passes over each stretch of up to 10 steps.
  """
  one_of(hidden, HIDDEN, "Part")
  resamples = whole(resamples, "--resamples")
  if not 1 <= resamples <= MOST_RESAMPLES:
    raise UserError(f"--resamples {resamples} must be between 1 and {MOST_RESAMPLES} on this page.")
  seed = whole(seed, "Seed")
  checked_seeds([seed])
  run = settings.of(trained, say)
  source, index = _test_image(run, index)
  known = edit.known_pixels(hidden, *run.image_shape[:2])
  with compiling(("fill", resamples, program(run, 1)), f"{number_of_steps(run)} steps and their repetitions", say):
    drawn = edit.inpaint(run, source, [index], [seed], known, jump=jump(run), resamples=resamples)
  real = source.gather(np.array([index]))[0]
  return np.concatenate([real, np.where(known[:, :, None], real, 128).astype(np.uint8), drawn])


def number_of_steps(trained: Trained) -> int:
  """The steps of the grid of config.sampling."""
  return len(build.grid(trained.config)) - 1


def jump(trained: Trained) -> int:
  """The length of RePaint's jumps: the paper's 10 steps, or half of the steps if those are fewer."""
  return max(1, min(10, number_of_steps(trained) // 2))


def _test_image(trained: Trained, index: Any) -> tuple[Any, int]:
  source = trained.dataset(trained.config.data.test_split)
  index = whole(index, "Image")
  if not 0 <= index < len(source):
    raise UserError(f"There is no test image {index}: it must be between 0 and {len(source) - 1}.")
  return source, index
