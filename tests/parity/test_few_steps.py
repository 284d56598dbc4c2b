"""iPNDM, DEIS and DPM-Solver-v3 against their authors' code, in float64: zju-pi/diff-sampler and thu-ml/DPM-Solver-v3."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import adams, noise, schedule
from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.diffusion.samplers import sample
from ddpm_jax.diffusion.solvers import Solver

S = schedule.linear(1000)


def coupled(x, t):
  """The index's model `coupled`: an eps that mixes neighboring pixels. x [B,C,H,W]; t is a scalar."""
  return (
    x * (0.15 + 0.78 * jnp.sin(t / 640.0))
    + 0.1 * jnp.sin(2 * x + t / 120.0)
    + 0.12 * jnp.sin(x + jnp.roll(x, 1, 3) - jnp.roll(x, 1, 2))
  )


@jax.tree_util.Partial
def denoiser(x, level, cond=None):
  """`coupled` as a denoiser in float64 (the levels' own alphas are float32)."""
  alpha_bar = jnp.asarray(S.alpha_bar)[level.n]
  eps = coupled(x, level.n - 1.0)
  return Prediction((x - jnp.sqrt(1 - alpha_bar) * eps) / jnp.sqrt(alpha_bar), eps)


def last_state(table, x_T):
  return np.asarray(sample(noise.image_keys(np.arange(len(x_T))), denoiser, Solver(table), jnp.asarray(x_T))[0])


SOLVERS = {"ipndm": adams.ipndm, "deis_rhoab": adams.rho_ab, "deis_tab/vp_linear": adams.t_ab}
# The authors' float64 runs. For tAB they integrate by a sum over 400,000 points, hence 5e-5, as the index says. The ends of
# their time in "vp_linear" differ from 0.1 and 20 by 5e-5.
TOLERANCE = {"ipndm": 1e-9, "deis_rhoab": 1e-9, "deis_tab/vp_linear": 5e-5}


@pytest.mark.parametrize("K", ["K5", "K8", "K12", "K8_to0"])
@pytest.mark.parametrize("name", SOLVERS)
def test_multistep_in_eps(golden, name, K):
  numbers = golden("methods_solvers")
  grid = numbers[f"multistep/levels/{K.removesuffix('_to0')}/t"] + 1
  if K.endswith("_to0"):
    grid = np.append(grid, 0)
  orders = [order for order in (2, 3, 4) if f"multistep/{name}/order{order}/{K}" in numbers.arrays.files]
  with jax.enable_x64(True):
    for order in orders:
      table = SOLVERS[name](S, grid, order, lower_order_final=False, dtype=np.float64)
      theirs = numbers[f"multistep/{name}/order{order}/{K}"]
      np.testing.assert_allclose(last_state(table, numbers["multistep/x_T"]), theirs, rtol=0, atol=TOLERANCE[name])
  assert orders or (name, K) == ("deis_tab/vp_linear", "K8_to0")
