"""Editing where the answer is known: Gaussian pixels, alone or in correlated pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from ddpm_jax.diffusion import grid, noise, schedule, steps
from ddpm_jax.diffusion.editing import Inpaint, decode, encode, image_to_image, path, reconstruction_error, repaint
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.prediction import Prediction, eps_from_x0
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.errors import UserError

S = schedule.linear(1000)
MIXTURE = Mixture(np.float32([0.5, 0.5]), np.float32([-0.6, 0.6]), np.float32([0.04, 0.04]))
RHO = 0.9  # of the pairs
STD = 0.5


@struct.dataclass
class Pairs:
  """The exact denoiser of images of two pixels, N(0, STD^2) each, with correlation RHO; see test of inpainting."""

  def __call__(self, x_t, level, cond=None):
    # Sum and difference of the pixels are independent, with variances STD^2 (1 + RHO) and STD^2 (1 - RHO) along unit axes.
    along = (x_t[:, :, :1] + x_t[:, :, 1:]) / 2
    across = (x_t[:, :, :1] - x_t[:, :, 1:]) / 2
    shrink = lambda var: level.alpha * var / (level.alpha**2 * var + level.sigma**2)
    along = shrink(STD**2 * (1 + RHO)) * along
    across = shrink(STD**2 * (1 - RHO)) * across
    x0 = jnp.concatenate([along + across, along - across], axis=2)
    return Prediction(x0, eps_from_x0(x0, x_t, level))


# ---------------------------------------------------------------- inversion


@pytest.fixture(scope="module")
def images():
  return jnp.clip(MIXTURE.sample(jax.random.key(0), (32, 2, 2, 1)), -1, 1)


def test_reconstruction_error_falls_with_steps_and_order(images):
  def error(K, order=1):
    g = grid.uniform(1000, K)
    again = decode(MIXTURE, S, g, encode(MIXTURE, S, g, images, order=order), order=order)
    return float(reconstruction_error(images, again).mean())

  errors = [error(K) for K in (10, 50, 250)]
  # The trip is of first order in the step, so its square falls 25-fold; less where a step is still large.
  assert errors[1] < errors[0] / 5 and errors[2] < errors[1] / 10
  assert error(50, order=2) < errors[1]


def test_latents_of_gaussian_pixels_are_their_quantiles():
  data = Mixture(np.float32([1]), np.float32([0.2]), np.float32([0.25]))
  z = jnp.linspace(-2, 2, 5).reshape(5, 1, 1, 1)
  x_T = encode(data, S, grid.full(1000), 0.2 + 0.5 * z)
  # 1000 Euler steps, and level 1 for level 0
  np.testing.assert_allclose(x_T, S.level(np.array(1000)).alpha * 0.2 + z, atol=0.02)


def test_reconstruction_error_is_of_pixels_from_0_to_1():
  x_0 = jnp.zeros((2, 4, 4, 3))
  np.testing.assert_allclose(reconstruction_error(x_0, x_0.at[1].add(0.5)), [0, 0.25**2])


# ---------------------------------------------------------------- image to image


def test_image_to_image_diffuses_to_the_first_level_and_samples(images):
  keys = noise.image_keys(np.arange(32))
  g = grid.below(grid.uniform(1000, 20), 0.4)
  sampler = GaussianSampler(steps.gaussian(S, g), ReverseKernel())
  x = image_to_image(keys, MIXTURE, sampler, images)
  x_t = S.level(g[0]).diffuse(images, noise.PerImage(keys).initial((2, 2, 1)))
  np.testing.assert_allclose(x, sample(keys, MIXTURE, sampler, x_t)[0], atol=1e-6)
  np.testing.assert_allclose(x[:1], image_to_image(keys[:1], MIXTURE, sampler, images[:1]), atol=1e-6)


def test_weak_edits_stay_close(images):
  def change(strength):
    sampler = GaussianSampler(steps.gaussian(S, grid.below(grid.full(1000), strength)), ReverseKernel())
    return jnp.abs(image_to_image(noise.image_keys(np.arange(32)), MIXTURE, sampler, images) - images).mean()

  assert 0 < change(0.02) < 0.1 < 0.3 < change(0.9)


def test_below_cuts_a_grid():
  g = grid.uniform(1000, 10)
  np.testing.assert_array_equal(grid.below(g, 1.0), g)
  np.testing.assert_array_equal(grid.below(g, 0.5), [445, 334, 223, 112, 1, 0])
  for strength in (0.0, 1.5):
    with pytest.raises(UserError, match="strength"):
      grid.below(g, strength)


# ---------------------------------------------------------------- inpainting


def test_path_of_repaint():
  """By hand, after algorithm 1: from position 1, and 3, one return of two steps."""
  assert path(4, 2, 2) == [(4, 3, 3), (3, 2, 2), (2, 1, 3), (3, 2, 2), (2, 1, 1), (1, 0, 0)]
  assert path(3, 1, 2) == [(3, 2, 3), (3, 2, 2), (2, 1, 2), (2, 1, 1), (1, 0, 0)]
  assert path(3, 1, 1) == [(3, 2, 2), (2, 1, 1), (1, 0, 0)]
  rows = path(250, 10, 10)
  assert len(rows) == 250 + 24 * 9 * 10  # positions 1, 11, ... 231, nine returns of ten steps
  assert all(a[2] == b[0] for a, b in zip(rows, rows[1:], strict=False))


def test_no_noise_is_drawn_twice():
  table = repaint(S, grid.uniform(1000, 20), jump=4, resamples=3)
  streams = np.concatenate([table.draw_down.stream, table.draw_up.stream])
  assert len(np.unique(streams)) == 2 * len(table.left) and streams.min() > 0  # 0 is x_T's


def test_jumps_diffuse_from_s_to_u():
  table = repaint(S, grid.uniform(1000, 20), jump=4, resamples=2)
  u = jax.tree.map(lambda column: np.append(column[1:], column[-1]), table.t)  # where the next row begins
  s = table.down.s
  u, s = (jax.tree.map(lambda column: column[:-1], level) for level in (u, s))
  np.testing.assert_allclose(table.up_x[:-1] * s.alpha, u.alpha, rtol=1e-6)
  variance = table.up_x[:-1] ** 2 * s.sigma**2 + table.up_std[:-1] ** 2
  np.testing.assert_allclose(variance, u.sigma**2, rtol=1e-5)


@struct.dataclass
class ByLevel:
  """The noise of a plain chain, for whatever draws it."""

  keys: jax.Array
  levels: jax.Array  # [K] of row.stream = 1, 3, 5, ...

  def __call__(self, row, x):
    return noise.normal(self.keys, x.shape[1:], self.levels[(row.stream - 1) // 2])


def test_nothing_known_is_sampling_and_all_known_is_the_image(images):
  keys = noise.image_keys(np.arange(32))
  g = grid.uniform(1000, 10)
  table = repaint(S, g, jump=3)
  x_T = noise.PerImage(keys).initial((2, 2, 1))
  none = sample(keys, MIXTURE, Inpaint(table, images, jnp.zeros((1, 1, 1, 1), bool)), x_T, noise=ByLevel(keys, g[:-1]))[0]
  plain = sample(keys, MIXTURE, GaussianSampler(steps.gaussian(S, g), ReverseKernel()), x_T)[0]
  np.testing.assert_allclose(none, plain, atol=1e-6)
  everything = sample(keys, MIXTURE, Inpaint(table, images, jnp.ones((1, 1, 1, 1), bool)), x_T)[0]
  np.testing.assert_array_equal(everything, images)


def test_resampling_brings_unknown_pixels_into_harmony_with_known_ones():
  """E[b | a] = RHO a. Plain replacement falls far short of it, as RePaint's authors say."""
  count = 512
  a = STD * jax.random.normal(jax.random.key(0), (count,))
  x_0 = jnp.stack([a, 0 * a], axis=1).reshape(count, 1, 2, 1)
  known = jnp.asarray([True, False]).reshape(1, 1, 2, 1)
  keys = noise.image_keys(np.arange(count))
  x_T = noise.PerImage(keys).initial((1, 2, 1))

  def slope(resamples):
    table = repaint(S, grid.uniform(1000, 250), jump=10, resamples=resamples)
    x = sample(keys, Pairs(), Inpaint(table, x_0, known), x_T)[0]
    np.testing.assert_array_equal(x[:, 0, 0, 0], a)
    b = x[:, 0, 1, 0]
    return float((a * b).mean() / (a * a).mean())

  # Measured 0.61 and 0.86, with a standard error of 0.02.
  assert slope(1) < RHO - 0.2 and abs(slope(4) - RHO) < 0.08


def test_bad_jumps_are_refused():
  for options in ({"jump": 0}, {"jump": 11}, {"resamples": 0}):
    with pytest.raises(UserError, match="jump"):
      repaint(S, grid.uniform(1000, 10), **{"jump": 2, **options})
