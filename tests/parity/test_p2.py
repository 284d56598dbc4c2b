"""The weights and losses of P2 against its authors' code, jychoi118/P2-weighting 3da0947.

families_p2.npz holds, for linear schedules of T levels, weights/linear_T<T>: snr, weight_g<gamma>_k<k> [T], float64; and
losses/0 (gamma = 1, with a learned range), losses/1 (gamma = 0.5, without): the terms of each of four images, NCHW.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import nhwc

from ddpm_jax import build, config
from ddpm_jax.diffusion import loss_weights, schedule
from ddpm_jax.diffusion.prediction import Network


@pytest.mark.parametrize("T", [100, 1000])
@pytest.mark.parametrize("gamma", [0, 0.5, 1])
def test_weights(golden, T, gamma):
  group = f"weights/linear_T{T}"
  found = loss_weights.p2(schedule.linear(T), "eps", float(gamma), 1.0)
  # float64; at the last of 100 levels 1 - alpha_bar rounds snr = 2e-5 by 1e-11 of itself
  np.testing.assert_allclose(found[1:], golden("families_p2")[f"{group}/weight_g{gamma:g}_k1"], rtol=1e-10)


@pytest.mark.parametrize("group, gamma, learned", [("losses/0", 1.0, True), ("losses/1", 0.5, False)])
def test_losses(golden, group, gamma, learned):
  numbers = golden("families_p2")
  fields = config.load("ffhq_p2")
  assert fields.loss.mse_weight.to_dict() == {"name": "p2", "gamma": 1.0, "k": 1.0}
  fields.loss.mse_weight.gamma = gamma
  if not learned:
    with fields.unlocked(), fields.ignore_type():
      fields.prediction.second = None
      fields.loss = dict(name="p2", gamma=gamma, k=1.0)
  parameterization = build.parameterization(fields)
  network = Network(
    None, lambda params, x, time, cond: jnp.asarray(nhwc(numbers[f"{group}/model_output"])), parameterization
  )
  n = jnp.asarray(numbers[f"{group}/t"] + 1, jnp.int32)
  given = jax.jit(lambda eps, x_0: build.loss(fields).given(eps, network, x_0, n))
  loss, parts = given(nhwc(numbers[f"{group}/noise"]), nhwc(numbers[f"{group}/x_start"]))
  # float32 on both sides
  np.testing.assert_allclose(loss, numbers[f"{group}/loss"], rtol=2e-5)
  if learned:
    np.testing.assert_allclose(parts["vlb"], numbers[f"{group}/vb"], rtol=1e-4)
