"""Networks whose time input is the standard deviation of the noise: EDM, VE, and consistency models.

Those papers write a noisy image as x = x_0 + sigma eps. In our levels x = x_t / alpha and their sigma is r = sigma / alpha,
so alpha = 1 / sqrt(1 + r^2) (schedule.karras). Their networks are one affine form (EDM eq. 7),

    x_0 = c_skip x + c_out F(c_in x, c_noise),

| name        | c_skip                          | c_out                        | c_in            | c_noise    |
|-------------|---------------------------------|------------------------------|-----------------|------------|
| edm         | d^2 / (r^2 + d^2)               | r d / sqrt(r^2 + d^2)        | 1/sqrt(r^2+d^2) | log(r) / 4 |
| consistency | d^2 / ((r - r_1)^2 + d^2)       | (r - r_1) d / sqrt(r^2+d^2)  | 1/sqrt(r^2+d^2) | 250 log r  |
| ve          | 1                               | r                            | 1               | log(r / 2) |
| vp          | 1                               | -r                           | 1/sqrt(r^2+1)   | 999 t(r)   |

where d is sigma_data, the standard deviation of the data, and r_1 is that of level 1, the least noise (EDM table 1; Song et
al. 2023, "Consistency Models", appendix C). A consistency model's x_0 is the end of the probability flow, not a mean.

"vp" is an eps network of score_sde's VP SDE, and t(r) is the time at which that SDE has this noise. EDM's iDDPM networks are
eps networks on the schedule `cosine` and need none of this.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion.prediction import Parameterization, Prediction, eps_from_x0, of_level
from ddpm_jax.diffusion.schedule import Level, Schedule
from ddpm_jax.errors import UserError


@struct.dataclass
class Preconditioned(Parameterization):
  """x_0 = skip x_t + out F(scale x_t), with one number of each per level."""

  skip: jax.Array  # float32 [T+1], c_skip / alpha
  out: jax.Array  # float32 [T+1], c_out
  scale: jax.Array  # float32 [T+1], c_in / alpha

  def input(self, x_t: jax.Array, level: Level) -> jax.Array:
    return of_level(self.scale, level, x_t) * x_t

  def target(self, x_0: jax.Array, eps: jax.Array, level: Level) -> jax.Array:
    rest = x_0 - of_level(self.skip, level, x_0) * level.diffuse(x_0, eps)
    return rest / of_level(self.out, level, x_0)

  def eps_per_output(self, level: Level) -> jax.Array | float:
    return jnp.abs(jnp.asarray(self.out)[level.n]) * level.alpha / level.sigma

  def decode(self, out: jax.Array, x_t: jax.Array, level: Level) -> Prediction:
    x0 = of_level(self.skip, level, x_t) * x_t + of_level(self.out, level, x_t) * out
    return Prediction(x0, eps_from_x0(x0, x_t, level))


@struct.dataclass
class NoiseTime:
  """The time input of a network by level: c_noise, float32 [T+1]."""

  values: jax.Array

  def __call__(self, n: jax.Array) -> jax.Array:
    return jnp.asarray(self.values)[n]


def preconditioned(
  name: str, schedule: Schedule, sigma_data: float = 0.5, time_scale: float = 1.0
) -> tuple[Preconditioned, NoiseTime]:
  """The parameterization and the time input of such a network.

  Args:
    name: "edm", "consistency", "ve" or "vp".
    schedule: the noise levels.
    sigma_data: standard deviation of the training images, in [-1, 1].
    time_scale: factor of c_noise; 1000 for the EDM networks of consistency_models.

  Raises:
    UserError: for another name, or a sigma_data that is not above 0.
  """
  if name not in PRECONDITIONINGS:
    raise UserError(f"The preconditioning {name!r} is unknown; choose one of {', '.join(PRECONDITIONINGS)}.")
  if not sigma_data > 0:
    raise UserError(f"prediction.sigma_data = {sigma_data:g} must be above 0; EDM's networks have 0.5.")
  alpha = np.sqrt(schedule.alpha_bar[1:])
  r = schedule.noise_to_signal[1:]
  skip, out, scale, time = PRECONDITIONINGS[name](r, sigma_data)
  # Level 0 is not used. It has the entries of level 1.
  tables = (
    np.concatenate([column[:1], column]).astype(np.float32)
    for column in (skip / alpha, out, scale / alpha, time_scale * time)
  )
  *affine, time = tables
  return Preconditioned(*affine), NoiseTime(time)


def _edm(r: np.ndarray, d: float) -> tuple[np.ndarray, ...]:
  root = np.sqrt(r**2 + d**2)
  return d**2 / root**2, r * d / root, 1 / root, np.log(r) / 4


def _consistency(r: np.ndarray, d: float) -> tuple[np.ndarray, ...]:
  root = np.sqrt(r**2 + d**2)
  above = r - r[0]
  return d**2 / (above**2 + d**2), above * d / root, 1 / root, 250 * np.log(r)


def _ve(r: np.ndarray, d: float) -> tuple[np.ndarray, ...]:
  return np.ones_like(r), r, np.ones_like(r), np.log(r / 2)


def _vp(r: np.ndarray, d: float, beta_min: float = 0.1, beta_max: float = 20.0) -> tuple[np.ndarray, ...]:
  slope = beta_max - beta_min
  t = (np.sqrt(beta_min**2 + 2 * slope * np.log1p(r**2)) - beta_min) / slope
  return np.ones_like(r), -r, 1 / np.sqrt(1 + r**2), 999 * t


PRECONDITIONINGS: dict[str, Callable[[np.ndarray, float], tuple[np.ndarray, ...]]] = {
  "edm": _edm,
  "consistency": _consistency,
  "ve": _ve,
  "vp": _vp,
}
