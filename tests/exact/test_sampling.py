"""What must hold of sampling whatever the network: the last step, seeds, compilation, what is saved, and transforms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from reference import Stored, poly, stable

from ddpm_jax.diffusion import grid, interpolation, noise, prediction, schedule, steps
from ddpm_jax.diffusion.covariance import CapLast, FixLast, Optimal, learned_diagonal, learned_range, marginal, posterior
from ddpm_jax.diffusion.dpm_solver import multistep, singlestep
from ddpm_jax.diffusion.guidance import ClassifierFree
from ddpm_jax.diffusion.heun import heun
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.likelihood import _bits_per_dim, bits_per_dim
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.prediction import Network, Prediction, eps_from_x0
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.solvers import Solver
from ddpm_jax.diffusion.transforms import ClipX0, DynamicThreshold
from ddpm_jax.diffusion.unipc import unipc
from ddpm_jax.jobs.progress import STEPS

LEVELS = schedule.cosine(40)
SHAPE = (6, 6, 3)
KEYS = noise.image_keys(np.arange(4))
X_T, *DRAWS = np.random.default_rng(0).standard_normal((41, 4, *SHAPE)).astype(np.float32)
GIVEN = Stored(np.array(DRAWS))  # noise in hand compiles in half the time


@struct.dataclass
class Knows:
  """A denoiser that knows x_0, and fills every field of a Prediction."""

  x_0: Any

  def __call__(self, x_t, level, cond=None):
    x_0 = jnp.broadcast_to(self.x_0, x_t.shape)
    zero = jnp.zeros_like(x_t)
    return Prediction(x_0, eps_from_x0(x_0, x_t, level), eps_var=zero, var_frac=zero + 0.3, log_var=zero - 2)


COVARIANCES = {
  "posterior": posterior,
  "marginal": marginal,
  "learned range": learned_range,
  "learned diagonal": learned_diagonal,
  "optimal": Optimal(),
  "optimal, averaged": Optimal(average=True),
  "capped": CapLast(Optimal(), level=2),
  "fixed last": FixLast(marginal, -3.0),
}
SOLVERS = {
  "DPM-Solver++ 2M": lambda visited: multistep(LEVELS, visited),
  "DPM-Solver++ 2M SDE": lambda visited: multistep(LEVELS, visited, sde=True),
  "DPM-Solver++ 2S": lambda visited: singlestep(LEVELS, visited),
  "UniPC": lambda visited: unipc(LEVELS, visited),
  "Heun": lambda visited: heun(LEVELS, visited),
}


def ancestral(visited, covariance=posterior, eta=1.0):
  return GaussianSampler(steps.gaussian(LEVELS, visited, eta), ReverseKernel(covariance))


def both(x, pred):
  return x, pred.x0


def last(x, pred):
  return x


def run(sampler, denoiser, x_T=X_T, noise=GIVEN, keys=KEYS, **options):
  return sample(keys, denoiser, sampler, x_T, noise=noise, **options)


def picture(seed=0, size=4):
  return np.random.default_rng(seed).uniform(-1, 1, (size, *SHAPE)).astype(np.float32)


# The last step.


@pytest.mark.parametrize("K", [1, 7])
@pytest.mark.parametrize("covariance", COVARIANCES.values(), ids=COVARIANCES)
def test_the_sampler_returns_what_the_denoiser_knows(covariance, K):
  x_0 = picture()
  for eta in (0.0, 0.5, 1.0):  # one program
    x, _ = run(ancestral(grid.uniform(40, K), covariance, eta), Knows(x_0))
    np.testing.assert_array_equal(x, x_0)


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_return_what_the_denoiser_knows(name):
  x, _ = run(Solver(SOLVERS[name](grid.uniform(40, 7))), Knows(picture()))
  np.testing.assert_allclose(x, picture(), atol=1e-5)  # a weighted sum whose other weights are roundings


def test_no_noise_is_added_into_the_image_whatever_the_covariance():
  loud = Stored(np.full((3, *X_T.shape), 1e6, np.float32))
  sampler = ancestral(grid.uniform(40, 3), FixLast(posterior, 0.0))
  np.testing.assert_array_equal(run(sampler, Knows(picture()), noise=loud)[0], picture())


# Seeds.


@pytest.mark.parametrize(
  "sampler, noise",
  [
    (ancestral(grid.uniform(40, 5), Optimal(average=True), eta=0.5), lambda b: None),
    (Solver(multistep(LEVELS, grid.uniform(40, 5), sde=True)), lambda b: Stored(GIVEN.draws[:, b])),
  ],
  ids=["ancestral", "solver"],
)
def test_a_batch_is_its_images_one_by_one_bit_by_bit(sampler, noise):
  denoiser = Uncertain(ClipX0(Network(None, poly)))
  everybody = slice(None)
  whole, _ = run(sampler, denoiser, noise=noise(everybody))
  for b in (slice(0, 1), slice(3, 4)):
    alone, _ = run(sampler, denoiser, X_T[b], noise(b), KEYS[b])
    np.testing.assert_array_equal(alone, whole[b])


@struct.dataclass
class Uncertain:
  """Adds some eps_var to beliefs."""

  inner: Any

  def __call__(self, x_t, level, cond=None):
    pred = self.inner(x_t, level, cond)
    return pred.replace(eps_var=0.1 * pred.x0**2)


@jax.jit
def draws(keys):
  """x_T, and the noise of the step that leaves level 7, by the two ways to ask for them."""
  row = steps.gaussian(LEVELS, grid.full(40)).leaving(jnp.array(7))
  stream = noise.PerImage(keys)
  x_T = stream.initial(SHAPE)
  return jnp.stack([x_T, stream(row, x_T)]), jnp.stack([noise.normal(keys, SHAPE), noise.normal(keys, SHAPE, 7)])


def test_a_seed_is_a_picture():
  ours, by_level = draws(noise.image_keys(jnp.array([3, 17, 5])))
  others, _ = draws(noise.image_keys(jnp.array([17, 0, 1])))
  np.testing.assert_array_equal(ours, by_level)
  np.testing.assert_array_equal(ours[:, 1], others[:, 0])
  # 6 independent standard normals of 108 pixels: correlations stay below 5 / sqrt(108)
  np.testing.assert_allclose(np.corrcoef(ours.reshape(6, -1)), np.eye(6), atol=0.48)
  np.testing.assert_allclose([ours.mean(), ours.var()], [0, 1], atol=0.2)


def test_bits_per_dim_follow_seeds_too():
  network = ClipX0(Network(None, poly))
  kernel = ReverseKernel()
  table = steps.gaussian(LEVELS, grid.uniform(40, 5))
  x_0 = picture()
  order = np.array([2, 0, 3, 1])
  bound = bits_per_dim(KEYS, network, kernel, table, x_0)
  shuffled = bits_per_dim(KEYS[order], network, kernel, table, x_0[order])
  assert bound.terms.shape == (4, 5)
  np.testing.assert_array_equal(shuffled.terms, bound.terms[order])


# Compilation.


def test_one_trace_for_all_etas_weights_scales_and_grids_of_one_length():
  traces = []

  def apply(params, x, time, cond):
    traces.append(x.shape)
    return params["w"] * x + 0.01 * cond["label"][:, None, None, None]

  def guided(w, scale, levels, visited, eta, offset=0.0):
    network = Network({"w": np.float32(w)}, apply, time=prediction.TimeScale())
    denoiser = ClipX0(ClassifierFree(network, np.float32(scale), {"label": np.int32(10)}))
    sampler = GaussianSampler(steps.gaussian(levels, visited, eta))
    return run(sampler, denoiser, X_T + np.float32(offset), cond={"label": np.arange(4, dtype=np.int32)})[0]

  first = guided(0.5, 2.0, LEVELS, grid.uniform(40, 8), 1.0)
  once = len(traces)
  others = [
    guided(0.5, 2.0, LEVELS, grid.uniform(40, 8), 0.0),
    guided(0.7, 2.0, LEVELS, grid.uniform(40, 8), 1.0),
    guided(0.5, 5.0, LEVELS, grid.uniform(40, 8), 1.0),
    guided(0.5, 2.0, LEVELS, grid.power(40, 8, 2.0), 1.0),
    guided(0.5, 2.0, schedule.linear(1000), grid.uniform(1000, 8), 1.0),
    guided(0.5, 2.0, LEVELS, grid.uniform(40, 8), 1.0, offset=0.1),
  ]
  assert len(traces) == once > 0
  assert all((np.asarray(first) != other).any() for other in others)


def test_a_progress_bar_costs_nothing_when_off(capsys):
  sampler = ancestral(grid.uniform(40, 5))
  network = Network(None, stable)
  arguments = (KEYS, network, sampler, X_T)
  assert "callback" not in sample.lower(*arguments).as_text()
  assert "callback" in sample.lower(*arguments, progress=STEPS).as_text()
  likelihood = (KEYS, network, sampler.kernel, sampler.steps, X_T, None)
  assert "callback" not in _bits_per_dim.lower(*likelihood, noise=None, progress=None).as_text()
  quiet = run(sampler, network)[0]
  shown = run(sampler, network, progress=STEPS)[0]
  jax.effects_barrier()
  # Two programs, which XLA may fuse differently: equal with jax 0.10, up to 1.7e-5 apart with 0.12, for values up to 3.
  np.testing.assert_allclose(quiet, shown, rtol=0, atol=1e-4)
  assert "5/5" in capsys.readouterr().err


# What is kept, and samplers one after the other.


def test_saved_states_are_those_with_a_multiple_of_save_every_steps_left():
  sampler = ancestral(grid.uniform(40, 7))
  network = ClipX0(Network(None, poly))
  x, (states, beliefs) = run(sampler, network, save=both)
  _, (kept, kept_beliefs) = run(sampler, network, save=both, save_every=3)
  np.testing.assert_array_equal(states[-1], x)
  np.testing.assert_array_equal(kept, states[::3])  # 6, 3 and 0 steps left
  np.testing.assert_array_equal(kept_beliefs, beliefs[::3])
  np.testing.assert_array_equal(run(sampler, network, save=last, save_every=100)[1], x[None])


@struct.dataclass
class OfLevel:
  """Noise that belongs to the level that a step leaves, as PerImage's does."""

  draws: jax.Array

  def __call__(self, row, x):
    return jnp.asarray(self.draws)[row.stream - 1]


@pytest.mark.parametrize("covariance", [posterior, CapLast(marginal, level=12)], ids=["posterior", "capped"])
def test_samplers_in_a_row_are_one(covariance):
  visited = grid.uniform(40, 8)
  network = ClipX0(Network(None, poly))
  whole, states = run(ancestral(visited, covariance), network, noise=OfLevel(GIVEN.draws), save=last)
  parts = [ancestral(visited[:4], covariance), ancestral(visited[3:], covariance)]
  x, saved = run(parts, network, noise=OfLevel(GIVEN.draws), save=last)
  np.testing.assert_array_equal(x, whole)
  np.testing.assert_array_equal(np.concatenate(saved), states)


# Parameterizations and transforms.


@pytest.mark.parametrize(
  "mean",
  [
    prediction.Eps(),
    prediction.X0(),
    prediction.V(),
    prediction.x_prev(steps.gaussian(LEVELS, grid.full(40))),
  ],
)
def test_a_perfect_output_is_decoded_to_the_truth(mean):
  n = jnp.array([1, 2, 20, 39])
  x_0 = picture()
  eps = picture(1)
  level = LEVELS.level(n)
  x_t = level.diffuse(x_0, eps)
  pred = mean.decode(mean.target(x_0, eps, level), x_t, level)
  # roundings of x_t over alpha (0.04 at n = 39) in x_0, over sigma (0.04 at n = 1) in eps, and both by x_prev
  np.testing.assert_allclose(pred.x0, x_0, atol=2e-5)
  np.testing.assert_allclose(pred.eps, eps, atol=2e-5)


def test_x_prev_needs_no_clipping_and_its_chain_returns_to_the_image():
  table = steps.gaussian(LEVELS, grid.uniform(40, 6))
  x_0 = picture()
  mean = prediction.x_prev(table)

  def posterior_mean(params, x, time, cond):
    level = LEVELS.level((time + 1).astype(int))
    return mean.target(params, eps_from_x0(params, x, level), level)

  x, states = run(GaussianSampler(table), Network(x_0, posterior_mean, mean), save=last)
  np.testing.assert_allclose(x, x_0, atol=1e-4)  # out -> x0 -> mean, six times
  assert np.isfinite(states).all()


@pytest.mark.parametrize("keep_eps", [False, True])
@pytest.mark.parametrize("wrap", [ClipX0, DynamicThreshold])
def test_clipping_moves_eps_along_unless_told_not_to(wrap, keep_eps):
  level = LEVELS.level(np.array([30, 20, 10, 1]))
  x = 3 * X_T
  raw = Network(None, stable)(x, level)
  clipped = wrap(Network(None, stable), keep_eps=keep_eps)(x, level)
  assert np.abs(raw.x0).max() > 1.5 and np.abs(clipped.x0).max() <= 1
  np.testing.assert_allclose(clipped.eps, raw.eps if keep_eps else eps_from_x0(clipped.x0, x, level))


def test_dynamic_thresholding_clips_each_image_at_its_own_quantile_and_rescales():
  x_0 = picture() * np.array([0.5, 1.0, 3.0, 30.0], np.float32)[:, None, None, None]
  pred = DynamicThreshold(Knows(x_0), quantile=0.9)(X_T, LEVELS.level(20))
  bound = np.maximum(np.quantile(np.abs(x_0).reshape(4, -1), 0.9, axis=1), 1)[:, None, None, None]
  np.testing.assert_allclose(pred.x0, np.clip(x_0, -bound, bound) / bound, rtol=1e-5)
  np.testing.assert_array_equal(pred.x0[:2], x_0[:2])  # in range: untouched


# Interpolation.


@jax.jit
def interpolate(x_0, y_0, weight):
  sampler = GaussianSampler(steps.gaussian(LEVELS, grid.uniform(40, 20)[-8:], eta=0.0))
  data = Mixture(np.ones(1, np.float32), np.float32([0.2]), np.float32([0.3]))
  return interpolation.latent_interpolation(KEYS, data, sampler, x_0, y_0, jnp.full(4, weight))


def test_latent_interpolation_runs_from_one_image_to_the_other():
  x_0 = picture(0)
  y_0 = picture(1)
  start, middle, end = (interpolate(x_0, y_0, weight) for weight in (0.0, 0.5, 1.0))
  np.testing.assert_array_equal(start, interpolate(x_0, -y_0, 0.0))
  np.testing.assert_array_equal(end, interpolate(-x_0, y_0, 1.0))
  # this denoiser is affine, and eta is 0
  np.testing.assert_allclose(middle, (start + end) / 2, atol=1e-6)
  # 14 of 40 levels of noise leave most of an image
  assert np.corrcoef(np.ravel(start), np.ravel(x_0))[0, 1] > 0.6 > np.corrcoef(np.ravel(start), np.ravel(y_0))[0, 1]


def test_slerp_turns_one_latent_into_the_other():
  turn = jax.jit(interpolation.slerp)
  at = lambda x, y, *weight: np.asarray(turn(x, y, np.float32(np.broadcast_to(weight, 2))))
  size = lambda x: np.linalg.norm(x.reshape(2, -1), axis=1)[:, None, None, None]
  x = X_T[:2]
  y = X_T[2:] * size(X_T[:2]) / size(X_T[2:])
  np.testing.assert_allclose(at(x, y, 0), x, atol=1e-6)
  np.testing.assert_allclose(at(x, y, 1), y, atol=1e-6)
  np.testing.assert_allclose(at(x, y, 0.3), at(y, x, 0.7), atol=1e-6)
  np.testing.assert_allclose(size(at(x, y, 0.4)), size(x), rtol=1e-5)  # stays on the sphere
  np.testing.assert_allclose(at(x, 2 * x, 0.25), 1.25 * x, rtol=1e-5)  # parallel: linear
  np.testing.assert_allclose(at(x, y, 0, 1), [x[0], y[1]], atol=1e-6)  # a weight per image
