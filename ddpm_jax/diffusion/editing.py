"""Editing real images: inversion and reconstruction, image to image, inpainting."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion.dpm_solver import multistep
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.noise import Noise, normal
from ddpm_jax.diffusion.prediction import Denoiser, Prediction
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.schedule import Level, Schedule
from ddpm_jax.diffusion.solvers import Solver
from ddpm_jax.diffusion.steps import GaussianSteps, check, gaussian, steps_left
from ddpm_jax.errors import UserError

# ---------------------------------------------------------------- inversion


def encode(
  denoiser: Denoiser, schedule: Schedule, grid: np.ndarray, x_0: jax.Array, cond: Any = None, *, order: int = 1
) -> jax.Array:
  """The latents x_T of images x_0 [B,H,W,C]: the flow upwards along a grid T ... 0 (DDIM section 4.3).

  The images stand for states at the lowest level of the grid above 0, since a denoiser is not defined at level 0.

  Args:
    order: 1 is DDIM. 2 and 3 are DPM-Solver++ multistep, whose reconstructions are closer.
  """
  return sample(None, denoiser, Solver(multistep(schedule, grid[-2::-1], order)), x_0, cond)[0]


def decode(
  denoiser: Denoiser, schedule: Schedule, grid: np.ndarray, x_T: jax.Array, cond: Any = None, *, order: int = 1
) -> jax.Array:
  """The images of latents x_T: the flow down the grid."""
  return sample(None, denoiser, Solver(multistep(schedule, grid, order)), x_T, cond)[0]


def reconstruction_error(x_0: jax.Array, again: jax.Array) -> jax.Array:
  """Mean square difference per image [B], of pixels scaled from [-1, 1] to [0, 1] (DDIM table 2)."""
  return ((x_0 - again) ** 2).mean((1, 2, 3)) / 4


# ---------------------------------------------------------------- image to image


def image_to_image(keys: jax.Array, denoiser: Denoiser, sampler: Any, x_0: jax.Array, cond: Any = None) -> jax.Array:
  """Variations of x_0 [B,H,W,C], diffused to the sampler's first level and sampled from there (SDEdit, Meng et al. 2021).

  Args:
    keys: [B], one per image.
    sampler: starts at the level of the edit; see grid.below.
  """
  level = jax.tree.map(lambda column: column[0], sampler.steps.t)
  return sample(keys, denoiser, sampler, level.diffuse(x_0, normal(keys, x_0.shape[1:])), cond)[0]


# ---------------------------------------------------------------- inpainting


@struct.dataclass
class Draw:
  """The noise stream of a draw. Levels cannot name the stream, since RePaint leaves them several times."""

  stream: jax.Array


@struct.dataclass
class InpaintSteps:
  """Rows of RePaint (Lugmayr et al. 2022, algorithm 1). Every leaf is [K].

  A row steps down from t to s, inserts the known pixels diffused to s, and may jump back up to a level u:

      x_u = up_x x_s + up_std z,      up_x = alpha_u / alpha_s,      up_std^2 = 1 - alpha_u^2 / alpha_s^2

  This combines the paper's single steps up. Without a jump u = s, so up_x = 1 and up_std = 0.
  """

  down: GaussianSteps
  up_x: np.ndarray
  up_std: np.ndarray
  draw_down: Draw
  draw_up: Draw
  left: np.ndarray  # int32, how many rows follow

  @property
  def t(self) -> Level:
    return self.down.t


def repaint(schedule: Schedule, grid: np.ndarray, *, jump: int = 10, resamples: int = 1, eta: float = 1.0) -> InpaintSteps:
  """The rows of RePaint along a grid T ... 0.

  Args:
    jump: number of steps of the grid that a jump goes up.
    resamples: number of passes over each stretch of `jump` steps. 1 is plain replacement. The paper uses 10.
    eta: of the steps down.

  Returns:
    K rows, plus `jump` rows for every repeated pass.

  Raises:
    UserError: if a jump does not fit the grid, or resamples < 1.
  """
  grid = check(schedule, grid)
  K = len(grid) - 1
  if not 1 <= jump <= K or resamples < 1:
    raise UserError(f"jump = {jump} must be 1 ... {K}, the steps of the grid, and resamples = {resamples} at least 1.")
  rows, s, u = K - np.array(path(K, jump, resamples)).T
  kept = schedule.alpha_bar[grid[u]] / schedule.alpha_bar[grid[s]]
  number = np.arange(1, len(rows) + 1, dtype=np.int32)
  return InpaintSteps(
    down=jax.tree.map(lambda column: column[rows], gaussian(schedule, grid, eta)),
    up_x=np.sqrt(kept).astype(np.float32),
    up_std=np.sqrt(1 - kept).astype(np.float32),
    draw_down=Draw(2 * number - 1),
    draw_up=Draw(2 * number),
    left=steps_left(np.append(number, 0)),
  )


def path(K: int, jump: int, resamples: int) -> list[tuple[int, int, int]]:
  """(from, down to, then up to) of every row, counted in steps left of K.

  At 1, 1 + jump, 1 + 2 jump, ... steps left, the path goes up again `resamples` - 1 times.
  """
  returns = dict.fromkeys(range(1, K - jump + 1, jump), resamples - 1)
  rows = []
  left = K
  while left > 0:
    down = left - 1
    again = returns.get(down, 0) > 0
    if again:
      returns[down] -= 1
    rows.append((left, down, down + jump if again else down))
    left = rows[-1][2]
  return rows


@struct.dataclass
class Inpaint:
  """Samples images that agree with x_0 in the `known` pixels."""

  steps: InpaintSteps
  x_0: jax.Array  # [B,H,W,C]
  known: jax.Array  # bool, [B,H,W,C] or with single axes
  kernel: Any = ReverseKernel()

  def init(self, x_T: jax.Array) -> jax.Array:
    return x_T

  def step(
    self, noise: Noise, x_t: jax.Array, row: InpaintSteps, denoise: Denoiser, cond: Any
  ) -> tuple[jax.Array, Prediction]:
    z = noise(row.draw_down, x_t)  # shared by known and unknown pixels, which are disjoint
    drawn, pred = GaussianSampler(self.steps.down, self.kernel).step(lambda *_: z, x_t, row.down, denoise, cond)
    x_s = jnp.where(self.known, row.down.s.diffuse(self.x_0, z), drawn)
    return row.up_x * x_s + row.up_std * noise(row.draw_up, x_t), pred

  def image(self, x: jax.Array) -> jax.Array:
    return x
