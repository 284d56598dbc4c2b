"""Losses are terms of the bound, and their gradients go where they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import Stored, poly, two_heads, var

from ddpm_jax.diffusion import grid, losses, noise, prediction, schedule, steps
from ddpm_jax.diffusion.covariance import learned_range, posterior
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.likelihood import bits_per_dim
from ddpm_jax.diffusion.prediction import Eps, Network
from ddpm_jax.diffusion.second_heads import TwoHeads

LEVELS = schedule.linear(60)
TABLE = steps.gaussian(LEVELS, grid.full(60))
X_0 = np.random.default_rng(0).uniform(-1, 1, (4, 4, 4, 3)).astype(np.float32)
EPS = np.random.default_rng(1).standard_normal(X_0.shape).astype(np.float32)
N = np.array([1, 2, 30, 60])


@jax.jit
def given(loss, eps, network, x_0, n):
  return loss.given(eps, network, x_0, n)


def test_the_mean_of_vlb_over_levels_is_the_bound():
  visited = grid.sections(60, "ddim12")
  table = steps.gaussian(LEVELS, visited)
  network = Network(np.float32(0), two_heads(poly, var), TwoHeads.named(Eps(), "range"))
  draws = np.random.default_rng(2).standard_normal((12, 1, 4, 4, 3)).astype(np.float32)
  keys = noise.image_keys(np.arange(1))  # not used: the noise is given
  bound = bits_per_dim(keys, network, ReverseKernel(learned_range), table, X_0[:1], noise=Stored(draws))
  loss, parts = given(losses.Vlb(table, scale=12.0), draws[:, 0], network, np.repeat(X_0[:1], 12, 0), visited[:-1])
  np.testing.assert_allclose(loss / 12, bound.terms[0], rtol=1e-5)  # the same sums, compiled differently
  np.testing.assert_allclose(loss.mean() + bound.prior[0], bound.total[0], rtol=1e-5)
  np.testing.assert_array_equal(loss, parts["vlb"])
  # and the bound's part of the hybrid is the same term, weighed
  _, parts = given(losses.Hybrid(table, 0.25), draws[:, 0], network, np.repeat(X_0[:1], 12, 0), visited[:-1])
  np.testing.assert_allclose(parts["vlb"] / 0.25, bound.terms[0], rtol=1e-5)


def test_a_network_that_knows_has_nothing_to_learn():
  knows = Network(X_0, lambda params, x, time, cond: params, prediction.X0())
  simple, _ = given(losses.Simple(TABLE), EPS, knows, X_0, N)
  np.testing.assert_array_equal(simple, 0)
  vlb, _ = given(losses.Vlb(TABLE, ReverseKernel(posterior)), EPS, knows, X_0, N)
  np.testing.assert_allclose(vlb[1:], 0, atol=1e-12)  # squares of roundings
  assert vlb[0] > 0  # the decoder still has to say which of 256 grey levels


def test_losses_are_per_image_and_their_noise_is_the_images_own():
  network = Network(None, poly)
  keys = noise.image_keys(np.arange(4))
  draw = jax.jit(lambda keys, x_0, n: (losses.Simple(TABLE)(keys, network, x_0, n)[0], noise.normal(keys, x_0.shape[1:])))
  whole, eps = draw(keys, X_0, N)
  np.testing.assert_allclose(whole, given(losses.Simple(TABLE), eps, network, X_0, N)[0], rtol=1e-6)
  order = np.array([2, 0, 3, 1])
  np.testing.assert_array_equal(draw(keys[order], X_0[order], N[order])[0], whole[order])


def test_a_sum_is_the_mean_times_the_dimensions():
  mean, total = (given(losses.Simple(TABLE, how), EPS, Network(None, poly), X_0, N)[0] for how in ("mean", "sum"))
  np.testing.assert_allclose(total, mean * 48, rtol=1e-6)


def linear_heads(params, x, time, cond=None):
  """A network of two weights, one per head."""
  return jnp.concatenate([params["mean"] * x, jnp.tanh(params["second"] * x)], -1)


WEIGHTS = {"mean": jnp.float32(0.4), "second": jnp.float32(0.3)}


def gradients(loss, kind, part=None):
  def scalar(weights):
    total, parts = loss.given(EPS, Network(weights, linear_heads, TwoHeads.named(Eps(), kind)), X_0, N)
    return (parts[part] if part else total).mean()

  return jax.jit(jax.grad(scalar))(WEIGHTS)


def test_the_bound_of_the_hybrid_trains_the_variance_alone():
  hybrid = losses.Hybrid(TABLE, weight=0.7)
  bound = gradients(hybrid, "range", "vlb")
  whole = gradients(hybrid, "range")
  simple = gradients(losses.Simple(TABLE), "range")
  assert bound["mean"] == 0 != bound["second"]
  np.testing.assert_allclose(whole["mean"], simple["mean"], rtol=1e-6)
  np.testing.assert_allclose(whole["second"], bound["second"], rtol=1e-6)
  assert simple["second"] == 0
  free = gradients(losses.Vlb(TABLE), "range")
  assert free["mean"] != 0 != free["second"]  # the full bound trains both


def test_gradients_are_finite_at_both_ends_of_4000_cosine_levels():
  """Where alpha is 1e-5 or sigma 0.003, for beliefs about x_0 that are far out."""
  table = steps.gaussian(schedule.cosine(4000), grid.full(4000))

  def loss(weights, which):
    network = Network(weights, linear_heads, TwoHeads.named(Eps(), "range"))
    return which.given(EPS, network, X_0, np.array([1, 2, 3999, 4000]))[0].mean()

  for which in (losses.Vlb(table, scale=4000.0), losses.Hybrid(table, 4.0)):
    value, gradient = jax.jit(jax.value_and_grad(loss))(WEIGHTS, which)
    assert np.isfinite([value, *jax.tree.leaves(gradient)]).all()


@pytest.mark.parametrize("kind", ["residual", "second_moment"])
def test_second_heads_do_not_train_the_backbone(kind):
  both = gradients(losses.SecondHead(TABLE), kind)
  assert both["mean"] == 0 != both["second"]


def test_the_best_second_head_knows_the_conditional_moment():
  """The loss of a constant head is least at the mean squared error, and at the mean square."""
  constant = lambda c, x, time, cond: jnp.concatenate([0.4 * x, c + 0 * x], -1)
  error = (EPS - 0.4 * TABLE.leaving(N).t.diffuse(X_0, EPS)) ** 2
  for kind, best in (("residual", error.mean()), ("second_moment", (EPS**2).mean())):

    def loss(c, kind=kind):
      network = Network(c, constant, TwoHeads.named(Eps(), kind))
      return losses.SecondHead(TABLE).given(EPS, network, X_0, N)[1]["head"].mean() / 48

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(jnp.float32(best)), 0, atol=1e-5)
