"""Gradients of whole training losses through a whole network, against improved-diffusion's autograd."""

import jax
import numpy as np
import pytest
from networks import ours, shapes
from reference import nhwc

from ddpm_jax.convert import names
from ddpm_jax.diffusion import grid, losses, prediction, schedule, steps

CASES = {
  "RESCALED_MSE_EPSILON_LEARNED_RANGE": (lambda table: losses.Hybrid(table, weight=1.0), prediction.Eps()),
  "RESCALED_KL_EPSILON_LEARNED_RANGE": (lambda table: losses.Vlb(table, scale=1000.0), prediction.Eps()),
  "MSE_START_X_LEARNED_RANGE": (lambda table: losses.Hybrid(table, weight=1.0), prediction.X0()),
}


@pytest.mark.parametrize("case", CASES)
def test_gradient_of_every_parameter(golden, case):
  stored = golden("train_grad")
  x_0, eps = nhwc(stored["model/x_start"]), nhwc(stored["model/noise"])
  n = stored["model/t"].astype(np.int32) + 1
  network, dialect, _ = ours(stored.args("model"), size=8)
  table = names.entries(network, shapes(network, x_0, n.astype(np.float32)), dialect)
  params, _ = names.load(table, stored.state_dict("model"))

  linear = schedule.linear(1000)
  loss, mean = CASES[case]
  loss = loss(steps.gaussian(linear, grid.full(linear.T)))
  apply = lambda params, x, time, cond: network.apply({"params": params}, x, time, cond)

  @jax.jit
  @jax.grad
  def gradient(params):
    total, _ = loss.given(eps, prediction.Network(params, apply, prediction.TwoHeads(mean, "range")), x_0, n)
    return total.mean()

  grads = names.save(table, gradient(params))  # a gradient is laid out as its parameter
  group = f"grad/{case}"
  order = stored.groups[group]["parameter_names"]
  norms = np.array([np.linalg.norm(grads[key].astype(np.float64)) for key in order])
  np.testing.assert_allclose(norms, stored[f"{group}/grad_l2"], rtol=1e-3, atol=1e-6 * norms.max())

  wanted = [stored[f"{group}/{'full' if grads[key].size <= 1100 else 'head64'}/{key}"].reshape(-1) for key in order]
  errors = [grads[key].reshape(-1)[: want.size] - want for key, want in zip(order, wanted, strict=True)]
  assert np.linalg.norm(np.concatenate(errors)) < 1e-3 * np.linalg.norm(np.concatenate(wanted))
  # Entry by entry the bound at n = 1 is worth less: pixels that the network holds for unlikely (1e-7) have as probability
  # a difference of two float32 CDFs, with one significant digit, on both sides; in float64 either side would be another.
  # Biases before a norm of single channels have a gradient of zero, and rounding.
  largest = max(np.abs(want).max() for want in wanted)
  for key, error, want in zip(order, errors, wanted, strict=True):
    assert np.abs(error).max() < 1e-2 * np.abs(want).max() + 1e-6 * largest, key
