"""Which levels are trained on: ranges, distributions, and the importance sampler's memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.time_sampling import TIME_SAMPLERS, Antithetic, LossSecondMoment, Stratified, Uncertainty

T = 8
B = 20_000
KEY = jax.random.key(3)


def warm(sampler):
  """A state that has seen every level ten times, with losses that grow with the level."""
  n = jnp.tile(jnp.arange(1, T + 1), 10)
  return jax.jit(sampler.update)(sampler.init(), n, n.astype(jnp.float32))


@functools.cache
def draw(name):
  """(n, weight) [B]."""
  sampler = TIME_SAMPLERS[name](T)
  return jax.jit(sampler.sample, static_argnums=2)(warm(sampler), KEY, B)


@pytest.mark.parametrize("name", [name for name in TIME_SAMPLERS if name != "uncertainty"])
def test_every_time_sampler_estimates_the_mean_over_levels(name):
  n, weight = draw(name)
  assert n.shape == weight.shape == (B,) and n.dtype == jnp.int32
  assert set(np.unique(n)) == set(range(1, T + 1))
  # 4 standard errors of 20,000 draws whose losses spread over 1..64
  loss = np.square(np.float32(n))
  np.testing.assert_allclose((weight * loss).mean(), np.mean(np.arange(1, T + 1) ** 2), rtol=4 * 0.9 / np.sqrt(B))


@pytest.mark.parametrize("name", ["uniform", "antithetic", "stratified"])
def test_plain_time_samplers_are_uniform(name):
  n, weight = draw(name)
  np.testing.assert_allclose(np.bincount(n, minlength=T + 1)[1:] / B, 1 / T, atol=4 * np.sqrt(1 / T / B))
  np.testing.assert_array_equal(weight, 1)


@pytest.mark.parametrize("batch_size", [1, 7, 8])
def test_antithetic_levels_come_in_mirrored_pairs(batch_size):
  n, _ = jax.jit(Antithetic(T).sample, static_argnums=2)((), KEY, batch_size)
  drawn = batch_size // 2 + 1
  assert len(n) == batch_size
  np.testing.assert_array_equal(n[drawn:], T + 1 - n[: batch_size - drawn])


def test_a_stratified_batch_covers_all_levels():
  stratified = jax.jit(Stratified(1000).sample, static_argnums=2)
  for seed in range(5):
    key = jax.random.key(seed)
    np.testing.assert_array_equal(np.sort(stratified((), key, 1000)[0]), np.arange(1, 1001))
    few = np.sort(stratified((), key, 4)[0])
    np.testing.assert_allclose(np.diff(few), 250, atol=1)  # equal strides


class Queue:
  """`LossSecondMomentResampler`, one loss after the other, in NumPy."""

  def __init__(self, sampler):
    self.sampler = sampler
    self.losses = [[] for _ in range(sampler.T)]

  def update(self, n, loss):
    for level, value in zip(n, loss, strict=True):
      self.losses[level - 1] = [*self.losses[level - 1], value][-self.sampler.kept :]

  def probabilities(self):
    if min(map(len, self.losses)) < self.sampler.kept:
      return np.full(self.sampler.T, 1 / self.sampler.T)
    p = np.sqrt([np.mean(np.square(losses)) for losses in self.losses])
    return p / p.sum() * (1 - self.sampler.uniform) + self.sampler.uniform / self.sampler.T


def test_loss_second_moment_remembers_what_a_queue_would():
  """Batches of 64 over 5 levels: many duplicates, often more of one level than are kept."""
  sampler = LossSecondMoment(5, kept=10)
  rng = np.random.default_rng(0)
  queue = Queue(sampler)
  state = sampler.init()
  update = jax.jit(sampler.update)
  probabilities = jax.jit(sampler.probabilities)
  uniform = 0
  for _ in range(12):
    n = rng.choice(5, 64, p=[0.5, 0.3, 0.1, 0.06, 0.04]) + 1
    loss = rng.exponential(size=64).astype(np.float32)
    queue.update(n, loss)
    state = update(state, jnp.asarray(n), loss)
    expected = queue.probabilities()
    uniform += (expected == 0.2).all()
    np.testing.assert_allclose(probabilities(state), expected, rtol=1e-5)  # float32 means of 10 squares
    for level, kept in enumerate(queue.losses):
      ring = np.asarray(state.losses[level, : min(10, state.count[level])])
      np.testing.assert_array_equal(np.sort(ring), np.sort(kept))
  assert 0 < uniform < 12  # began before every level was known, and went on after


def test_loss_second_moment_draws_and_weighs_by_its_probabilities():
  p = np.arange(1, T + 1) / np.arange(1, T + 1).sum() * 0.999 + 0.001 / T  # the losses of `warm` are n
  n, weight = draw("loss_second_moment")
  np.testing.assert_allclose(np.bincount(n, minlength=T + 1)[1:] / B, p, atol=4 * np.sqrt(0.25 / B))
  np.testing.assert_allclose(weight, 1 / (T * p[n - 1]), rtol=1e-5)


def test_uncertainty_divides_by_the_mean_loss_of_a_level():
  sampler = Uncertainty(T=100, buckets=4, rate=0.9)
  state = sampler.init()
  n = jnp.arange(1, 101)
  loss = jnp.repeat(jnp.array([8.0, 4.0, 2.0, 1.0]), 25)
  np.testing.assert_array_equal(sampler.sample(state, jax.random.key(0), 8)[1], 1)  # before any loss is known
  for _ in range(3):
    state = sampler.update(state, n, loss)
  np.testing.assert_allclose(sampler.means(state), [8, 4, 2, 1], rtol=1e-6)
  drawn, weight = sampler.sample(state, jax.random.key(0), 64)
  np.testing.assert_allclose(weight * loss[drawn - 1], 1, rtol=1e-6)
  moved = sampler.update(state, jnp.array([100]), jnp.array([3.0]))
  np.testing.assert_allclose(sampler.means(moved)[:3], [8, 4, 2], rtol=1e-6)
  assert 1 < sampler.means(moved)[3] < 3
