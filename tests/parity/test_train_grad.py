"""Gradients of whole training losses through a whole network, against improved-diffusion's autograd.

The batch has levels n = 1, 334 and 1000. At n = 1 the bound takes the logarithm of a pixel's probability, a difference of
two float32 CDFs: of pixels that the network holds for unlikely (1e-7) it has one significant digit, on both sides, and
its gradient is noise there. Hence the tolerances, and why the network of x_0, which knows no pixel well, is compared
only where the bound does not reach.
"""

import jax
import numpy as np
import pytest
from networks import jit, ours, shapes
from reference import nhwc

from ddpm_jax.convert import names
from ddpm_jax.diffusion import grid, losses, prediction, schedule, steps


def gradient(stored, loss, mean):
  """The gradient of a loss in the reference's names and layout: it is laid out as its parameter."""
  x_0, eps = nhwc(stored["model/x_start"]), nhwc(stored["model/noise"])
  n = stored["model/t"].astype(np.int32) + 1
  network, dialect, _ = ours(stored.args("model"), size=8)
  table = names.entries(network, shapes(network, x_0, n.astype(np.float32)), dialect)
  params, _ = names.load(table, stored.state_dict("model"))
  apply = lambda params, x, time, cond: network.apply({"params": params}, x, time, cond)

  @jit
  @jax.grad
  def of(params):
    total, _ = loss.given(eps, prediction.Network(params, apply, prediction.TwoHeads(mean, "range")), x_0, n)
    return total.mean()

  return names.save(table, of(params))


@pytest.fixture(scope="module")
def table():
  linear = schedule.linear(1000)
  return steps.gaussian(linear, grid.full(linear.T))


@pytest.mark.parametrize(
  "case, loss, tolerance",  # measured: 3e-4 and 9e-4
  [
    ("RESCALED_MSE_EPSILON_LEARNED_RANGE", lambda table: losses.Hybrid(table, weight=1.0), 1e-3),
    ("RESCALED_KL_EPSILON_LEARNED_RANGE", lambda table: losses.Vlb(table, scale=1000.0), 5e-3),
  ],
)
def test_gradient_of_every_parameter(golden, table, case, loss, tolerance):
  stored, group = golden("train_grad"), f"grad/{case}"
  grads = gradient(stored, loss(table), prediction.Eps())
  order = stored.groups[group]["parameter_names"]
  norms = np.array([np.linalg.norm(grads[key].astype(np.float64)) for key in order])
  np.testing.assert_allclose(norms, stored[f"{group}/grad_l2"], rtol=tolerance, atol=1e-5 * norms.max())

  wanted = [stored[f"{group}/{'full' if grads[key].size <= 1100 else 'head64'}/{key}"].reshape(-1) for key in order]
  errors = [grads[key].reshape(-1)[: want.size] - want for key, want in zip(order, wanted, strict=True)]
  assert np.linalg.norm(np.concatenate(errors)) < tolerance * np.linalg.norm(np.concatenate(wanted))
  largest = max(np.abs(want).max() for want in wanted)
  for key, error, want in zip(order, errors, wanted, strict=True):
    assert np.abs(error).max() < 20 * tolerance * np.abs(want).max() + 1e-6 * largest, key


def test_gradient_of_the_mean_of_a_network_of_x0(golden, table):
  """The bound trains the variance only, so the last layer's mean half has the gradient of the square alone."""
  stored, group = golden("train_grad"), "grad/MSE_START_X_LEARNED_RANGE"
  grads = gradient(stored, losses.Hybrid(table, weight=1.0), prediction.X0())
  weight, bias = stored[f"{group}/head64/out.2.weight"], stored[f"{group}/full/out.2.bias"][:3]
  np.testing.assert_allclose(grads["out.2.weight"].reshape(-1)[:64], weight, rtol=0, atol=1e-5 * np.abs(weight).max())
  np.testing.assert_allclose(grads["out.2.bias"][:3], bias, rtol=0, atol=1e-5 * np.abs(bias).max())
