"""Editing images with a trained network, in pixels from 0 to 255. The mathematics is in diffusion/editing.py.

run = ddpm_jax.load("runs/mnist")
images, error = edit.reconstruct(run, run.dataset("test"), range(16), steps=50)
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import build, data
from ddpm_jax.config import nearest
from ddpm_jax.diffusion import editing
from ddpm_jax.diffusion.interpolation import latent_interpolation, slerp
from ddpm_jax.diffusion.noise import PerImage, image_keys
from ddpm_jax.diffusion.samplers import sample
from ddpm_jax.diffusion.solvers import Solver
from ddpm_jax.errors import UserError
from ddpm_jax.jobs.progress import STEPS
from ddpm_jax.jobs.trained import Trained, checked_seeds

ORDERS = {"gaussian": 1, "dpm++1": 1, "dpm++2m": 2, "dpm++3m": 3}  # of the solvers that can also go from images to latents


def reconstruct(trained: Trained, source: data.Source, indices: Sequence[int], steps: int) -> tuple[np.ndarray, np.ndarray]:
  """(uint8 [B,H,W,C], mean square error of each image): `encode_and_decode` without the latents."""
  _, images, error = encode_and_decode(trained, source, indices, steps)
  return images, error


def encode_and_decode(
  trained: Trained, source: data.Source, indices: Sequence[int], steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The latents of these images, and their reconstructions, along the grid of config.sampling with `steps` steps.

  A full grid is replaced by even steps. Nothing is clipped, as in DDIM section 5.4, because clipping is not invertible.

  Returns:
    (latents float32 [B,H,W,C], images uint8 [B,H,W,C], mean square error of each image, pixels from 0 to 1: DDIM table 2).

  Raises:
    UserError: for a solver that cannot go from images to latents.
  """
  grid = trained.config.sampling.grid
  flow = dict(clip="none", eta=0.0, steps=steps, grid="uniform" if grid == "full" else grid)
  trained = trained.changed(sampling=flow)
  config = trained.config
  solver = config.sampling.solver
  if solver not in ORDERS:
    raise UserError(f"sampling.solver {solver!r} cannot go from images to latents; use one of {', '.join(ORDERS)}.")
  x_0, cond = trained.images(source, np.asarray(indices))
  how = dict(cond=cond, order=ORDERS[solver])
  chain = build.guided(config, trained.network, trained.guide), build.schedule(config), build.grid(config)
  x_T = editing.encode(*chain, x_0, **how)
  again = editing.decode(*chain, x_T, **how)
  return np.asarray(x_T), trained.to_pixels(again, indices), np.asarray(editing.reconstruction_error(x_0, again))


def image_to_image(
  trained: Trained, source: data.Source, indices: Sequence[int], seeds: Sequence[int], strength: float
) -> np.ndarray:
  """Variations [B,H,W,C] of these images. `strength`, above 0 and at most 1, is the fraction of the levels to noise."""
  x_0, cond = trained.images(source, np.asarray(indices))
  keys = image_keys(checked_seeds(seeds))
  denoiser, sampler = build.sampling(trained.config, trained.network, trained.guide, strength)
  return trained.to_pixels(editing.image_to_image(keys, denoiser, sampler, x_0, cond), seeds)


def inpaint(
  trained: Trained,
  source: data.Source,
  indices: Sequence[int],
  seeds: Sequence[int],
  known: np.ndarray,
  *,
  jump: int = 10,
  resamples: int = 10,
) -> np.ndarray:
  """These images [B,H,W,C] with new samples for the pixels that are not `known`, bool [H,W] (RePaint).

  Raises:
    UserError: for a solver other than "gaussian", since RePaint needs noise in every step.
  """
  config = trained.config
  if config.sampling.solver != "gaussian":
    raise UserError(f'Inpainting resamples with noise: use sampling.solver = "gaussian", not {config.sampling.solver!r}.')
  x_0, cond = trained.images(source, np.asarray(indices))
  grid = build.grid(config)
  steps = editing.repaint(build.schedule(config), grid, jump=jump, resamples=resamples, eta=config.sampling.eta)
  denoiser, usual = build.sampling(config, trained.network, trained.guide)
  keys = image_keys(checked_seeds(seeds))
  sampler = editing.Inpaint(steps, x_0, jnp.asarray(known)[None, :, :, None], usual.kernel)
  x_T = PerImage(keys).initial(trained.image_shape)
  drawn = trained.to_pixels(sample(keys, denoiser, sampler, x_T, cond, progress=STEPS)[0], seeds)
  stored = source.gather(np.asarray(indices))[0]  # 8 bits; a conversion from floats would truncate them again
  return np.where(known[:, :, None], stored, drawn)


def known_pixels(hidden: str, height: int, width: int) -> np.ndarray:
  """The known pixels, bool [height,width], when the part `hidden` is not.

  Raises:
    UserError: for a part other than "center", "left", and "top".
  """
  areas: dict[str, Any] = {
    "center": np.s_[height // 4 : -(height // 4), width // 4 : -(width // 4)],
    "left": np.s_[:, : width // 2],
    "top": np.s_[: height // 2],
  }
  if hidden not in areas:
    raise UserError(f"Part {hidden!r} is unknown; {nearest(hidden, areas)}")
  known = np.ones((height, width), bool)
  known[areas[hidden]] = False
  return known


def between(trained: Trained, source: data.Source, pairs: np.ndarray, frames: int = 11, strength: float = 0.5) -> np.ndarray:
  """Images [P,frames,H,W,C] from the first to the second of each pair of `source`, [P,2] (DDPM section 4.4, figure 8).

  Both are diffused to the fraction `strength` of the levels, mixed, and sampled with the same noise in all frames of a pair.
  """
  places = np.arange(len(pairs)).repeat(frames)
  x_0, cond = trained.images(source, pairs[places, 0])
  y_0, _ = trained.images(source, pairs[places, 1])
  denoiser, sampler = build.sampling(trained.config, trained.network, trained.guide, strength)
  weight = jnp.tile(jnp.linspace(0, 1, frames), len(pairs))
  drawn = latent_interpolation(image_keys(places.astype(np.uint32)), denoiser, sampler, x_0, y_0, weight, cond)
  return trained.to_pixels(drawn, places).reshape(len(pairs), frames, *trained.image_shape)


def mixed(source: data.Source, pairs: np.ndarray, frames: int = 11) -> np.ndarray:
  """Mixtures of the pixels of each pair, uint8 [P,frames,H,W,C], the contrast to `between`."""
  first, last = (source.gather(pairs[:, end])[0].astype(np.float32)[:, None] for end in (0, 1))
  weight = np.linspace(0, 1, frames, dtype=np.float32)[:, None, None, None]
  return np.rint((1 - weight) * first + weight * last).astype(np.uint8)


def resample(trained: Trained, source: data.Source, indices: Sequence[int], count: int, level: int) -> np.ndarray:
  """Samples [B,count,H,W,C] that share x_t at `level` with each other, one x_t for each image (DDPM figure 7).

  x_t is the image diffused to `level`, or to the level of the sampler's grid that is nearest to it.

  Raises:
    UserError: for a level outside 1 ... T, or a sampler without noise.
  """
  T = build.schedule(trained.config).T
  if not 1 <= level <= T:
    raise UserError(f"Level {level} must be between 1 and {T}, the noisiest level.")
  denoiser, sampler = build.sampling(trained.config, trained.network, trained.guide, level / T)
  if trained.config.sampling.eta == 0 or (isinstance(sampler, Solver) and sampler.steps.std is None):
    raise UserError("This sampler adds no noise, so all samples of one x_t are the same: use DDPM, or an eta above 0.")
  places = np.arange(len(indices)).repeat(count)
  x_0, cond = trained.images(source, np.asarray(indices)[places])
  first = jax.tree.map(lambda column: column[0], sampler.steps.t)
  shared = PerImage(image_keys(places.astype(np.uint32))).initial(trained.image_shape)
  keys = image_keys(np.arange(len(places), dtype=np.uint32))
  drawn = trained.to_pixels(sample(keys, denoiser, sampler, first.diffuse(x_0, shared), cond)[0], places)
  return drawn.reshape(len(indices), count, *trained.image_shape)


def interpolate(trained: Trained, first: int, last: int, frames: int, label: int = 0) -> np.ndarray:
  """Images [frames,H,W,C] from one seed to another, at even weights; see `between_seeds`.

  Raises:
    UserError: for fewer than two frames, and as `between_seeds`.
  """
  if frames < 2:
    raise UserError(f"{frames} frames cannot show both ends: use at least 2.")
  return between_seeds(trained, first, last, np.linspace(0, 1, frames), label)


def between_seeds(trained: Trained, first: int, last: int, weights: Sequence[float], label: int = 0) -> np.ndarray:
  """Images [B,H,W,C] of latents on the great circle between those of two seeds (DDIM section 5.3).

  Use sampling.eta=0 or a solver without noise. Otherwise all images use the noise of the first seed.

  Args:
    weights: [B], 0 at the first seed and 1 at the last.
    label: the class of all images, if the network or its guide needs one.

  Raises:
    UserError: for an unknown class or seed, or a super-resolution network.
  """
  if trained.config.data.low_res_size:
    raise UserError("This network enlarges small images, which seeds do not provide: interpolate with the previous stage.")
  count = len(weights)
  labels = trained.labels(range(count))
  if labels is not None:
    labels = trained.labels(range(count), [label] * count)
  keys = image_keys(checked_seeds([first, last]))
  x_T = PerImage(keys).initial(trained.image_shape)
  x, y = (jnp.broadcast_to(end, (count, *trained.image_shape)) for end in x_T[:, None])
  latents = slerp(x, y, jnp.asarray(weights, jnp.float32))
  denoiser, sampler = build.sampling(trained.config, trained.network, trained.guide)
  cond = None if labels is None else {"label": jnp.asarray(labels, jnp.int32)}
  drawn = sample(keys[jnp.zeros(count, jnp.int32)], denoiser, sampler, latents, cond)[0]
  return trained.to_pixels(drawn, first + (last - first) * np.asarray(weights))
