"""Restores test images from linear measurements with a trained network. The mathematics is in diffusion/restoring.py.

run = ddpm_jax.load("runs/mnist")
restored = restore(run, run.dataset("test"), range(8), range(8), operator("downsample", run.image_shape))
print(restored.psnr.mean())
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ddpm_jax import build, data, importable
from ddpm_jax.config import nearest
from ddpm_jax.data import images as pixels
from ddpm_jax.devices import mesh as layout
from ddpm_jax.diffusion import restoring
from ddpm_jax.diffusion.noise import PerImage, image_keys, normal
from ddpm_jax.diffusion.samplers import sample
from ddpm_jax.errors import UserError
from ddpm_jax.jobs.progress import STEPS
from ddpm_jax.jobs.trained import Trained, checked_seeds
from ddpm_jax.metrics.restoration import psnr, ssim

OPERATORS = ("mask", "blur", "downsample", "grey")
COVARIANCES = {  # of x_0 given x_t, named like the corresponding covariances of sampling
  "posterior": restoring.known,
  "marginal": restoring.unit_gaussian,
  "optimal": restoring.believed,
  "optimal_diagonal": restoring.believed,
  "jacobian": restoring.believed,
  "full": restoring.believed,
}


@dataclasses.dataclass(frozen=True)
class Restored:
  """Originals, measurements and restored images, and the similarity of originals and restored images."""

  real: np.ndarray  # uint8 [B,H,W,C]
  measured: np.ndarray  # float32 [B,...]
  images: np.ndarray  # uint8 [B,H,W,C]
  psnr: np.ndarray  # dB, [B]
  ssim: np.ndarray  # [B]

  @property
  def pictures(self) -> np.ndarray | None:
    """The measurements as uint8 [B,H,W,C], enlarged to the images' size; None if they are not images."""
    _, height, width, channels = self.real.shape
    y = self.measured
    if y.ndim != 4 or height % y.shape[1] or width % y.shape[2] or y.shape[3] not in (1, channels):
      return None
    y = y.repeat(height // y.shape[1], 1).repeat(width // y.shape[2], 2)
    return pixels.to_uint8(np.broadcast_to(np.clip(y, -1, 1), self.real.shape))


def operator(name: str, shape: tuple[int, int, int], *, known: Any = None, std: float = 1.0, factor: int = 2) -> Callable:
  """The measurement `name` of images of this shape [H,W,C].

  Args:
    name: "mask", "blur", "downsample", "grey", or code as "package.module:function".
    shape: of one image.
    known: bool [H,W], the pixels that a mask leaves.
    std: of the blur, in pixels.
    factor: of the downsampling.

  Raises:
    UserError: for an unknown name, arguments that do not fit the images, or a function that is not linear.
  """
  height, width, channels = shape
  match name:
    case "mask":
      return restoring.Mask(jnp.asarray(known, jnp.float32)[None, :, :, None])
    case "blur":
      if std <= 0:
        raise UserError(f"A blur of {std:g} pixels does nothing: use a positive number.")
      return restoring.blur(height, width, std)
    case "downsample":
      return restoring.downsample(height, width, factor)
    case "grey":
      if channels == 1:
        raise UserError('These images are already grey: choose an operator other than "grey".')
      return restoring.Grey()
  if not importable.is_code(name):
    raise UserError(f"Operator {name!r} is unknown; {nearest(name, OPERATORS)} Or name a function as my_pkg.ops:fn.")
  importable.trust(name)
  found = restoring.Function(importable.resolve(name))
  restoring.check_linear(found, shape)
  return found


def restore(
  trained: Trained,
  source: data.Source,
  indices: Sequence[int],
  seeds: Sequence[int],
  measure: Callable,
  *,
  noise: float = 0.05,
  covariance: str = "full",
  iterations: int = 5,
) -> Restored:
  """Measures these images with noise and restores them, by the sampler of the config.

  The steps use the posterior variance of the inference process. A covariance given x_t alone would be too large, since y is
  also known.

  Args:
    trained: the network. Its guidance is not used.
    source: the images.
    indices: [B], the images to restore.
    seeds: [B], the seeds of the noise.
    measure: a linear operator; see `operator`.
    noise: standard deviation of the noise in the measurements. Pixels are from -1 to 1.
    covariance: the covariance of x_0 given x_t, a name in COVARIANCES.
    iterations: number of iterations of conjugate gradients in each step.

  Raises:
    UserError: for an unknown covariance, one whose moments cannot be measured, or a number out of range.
  """
  if covariance not in COVARIANCES:
    raise UserError(f"Covariance {covariance!r} is unknown; {nearest(covariance, COVARIANCES)}")
  if noise < 0 or iterations < 1:
    raise UserError(f"The noise, {noise:g}, must be at least 0, and the number of iterations, {iterations}, at least 1.")
  if covariance in ("optimal", "optimal_diagonal", "jacobian"):
    trained = trained.changed(sampling=dict(covariance=covariance)).with_moments()
    build.covariance_of(trained.config, covariance, eta=1.0)
  believing = trained.changed(sampling=dict(covariance=covariance)).config
  config = trained.changed(sampling=dict(covariance="posterior", cap_pixels=None, guidance=dict(kind=None))).config

  x_0, cond = trained.images(source, np.asarray(indices))
  keys = image_keys(checked_seeds(seeds))
  clean = measure(x_0)
  y = clean + noise * normal(keys, clean.shape[1:], build.schedule(config).T + 1)  # a stream that no step uses
  inner = build.uncertain(believing, trained.network)
  knowing = restoring.Restore(inner, measure, y, jnp.float32(noise), COVARIANCES[covariance], iterations)
  x_T = PerImage(keys).initial(trained.image_shape)
  drawn, _ = sample(keys, build.clipped(config, knowing), build.sampler(config), x_T, cond, progress=STEPS)
  real = source.gather(np.asarray(indices))[0]
  images = trained.to_pixels(drawn, seeds)
  return Restored(real, layout.to_host(y), images, psnr(real, images), ssim(real, images))
