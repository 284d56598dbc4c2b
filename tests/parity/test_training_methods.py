"""Loss weights and post-hoc averages against their authors' code.

Sources: TiankaiHang/Min-SNR-Diffusion-Training 5189997, jychoi118/P2-weighting 3da0947, crowsonkb/k-diffusion 4601bf0, and
NVlabs/edm2 4bf8162 (training/phema.py).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import grid, loss_weights, losses, schedule, steps
from ddpm_jax.diffusion.prediction import X0, Eps, Network, V
from ddpm_jax.training import ema, power_ema

SCHEDULES = {"linear": schedule.linear(1000), "cosine": schedule.cosine(1000)}
MEANS = {"epsilon": ("eps", Eps()), "start_x": ("x0", X0()), "velocity": ("v", V())}
MIN_SNR = {
  "epsilon/min_snr_5": lambda s, mean: loss_weights.min_snr(s, mean, 5.0),
  "epsilon/min_snr_1": lambda s, mean: loss_weights.min_snr(s, mean, 1.0),
  "start_x/min_snr_5": lambda s, mean: loss_weights.min_snr(s, mean, 5.0),
  "start_x/min_snr_1": lambda s, mean: loss_weights.min_snr(s, mean, 1.0),
  "start_x/snr": loss_weights.snr,
  "start_x/trunc_snr": loss_weights.truncated_snr,
  "velocity/vmin_snr_5": lambda s, mean: loss_weights.min_snr(s, mean, 5.0),
  "velocity/vmin_snr_1": lambda s, mean: loss_weights.min_snr(s, mean, 1.0),
}


@pytest.mark.parametrize("process", SCHEDULES)
@pytest.mark.parametrize("name", MIN_SNR)
def test_min_snr(golden, process, name):
  numbers = golden("methods_training")
  group = f"weights/min_snr/{process}/{name}"
  mean, parameterization = MEANS[name.split("/")[0]]
  levels = SCHEDULES[process]
  weight = MIN_SNR[name](levels, mean)
  at = numbers[f"weights/levels/{process}/t"] + 1
  np.testing.assert_allclose(weight[at], numbers[f"{group}/weight"], rtol=1e-5)  # theirs is float32
  # the loss of given outputs, NCHW as a mean over pixels does not care
  x_0, noise, out, t = (numbers[f"weights/inputs/{what}"] for what in ("x0", "noise", "model_output", "t"))
  network = Network(None, lambda params, x, time, cond: jnp.asarray(out), parameterization)
  loss = losses.Simple(steps.gaussian(levels, grid.full(1000)), weight=weight.astype(np.float32))
  ours, parts = loss.given(jnp.asarray(noise), network, jnp.asarray(x_0), jnp.asarray(t + 1))
  np.testing.assert_allclose(ours, numbers[f"{group}/loss"], rtol=2e-5)  # float32 on both sides
  np.testing.assert_allclose(parts["mse"], numbers[f"{group}/loss_raw"], rtol=2e-5)


@pytest.mark.parametrize("process", SCHEDULES)
@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_p2(golden, process, gamma):
  numbers = golden("methods_training")
  weight = loss_weights.p2(SCHEDULES[process], "eps", gamma, 1.0)
  at = numbers[f"weights/levels/{process}/t"] + 1
  np.testing.assert_allclose(weight[at], numbers[f"weights/p2/{process}/gamma{gamma}_k1.0/weight"], rtol=1e-5)


@pytest.mark.parametrize("data_std", [1.0, 0.5])
def test_soft_min_snr(golden, data_std):
  """Theirs weights the error of EDM's F, whose square is c_out^-2 times that of x_0."""
  numbers = golden("methods_training")
  group = f"weights/k_diffusion/soft-min-snr/sigma_data{data_std}"
  sigma = numbers[f"{group}/sigma_edm"]
  levels = schedule.Schedule(np.append(1, 1 / (1 + sigma**2)))
  ours = loss_weights.soft_min_snr(levels, "x0", data_std)[1:] * sigma**2 * data_std**2 / (sigma**2 + data_std**2)
  np.testing.assert_allclose(ours, numbers[f"{group}/weight"], rtol=1e-9)  # float64


def test_profiles(golden):
  numbers = golden("methods_training")
  np.testing.assert_allclose(
    power_ema.exponent(numbers["phema/exponents/sigma_rel"]), numbers["phema/exponents/gamma"], 1e-9
  )
  for width, theirs in zip(numbers["phema/beta/sigma_rel"], numbers["phema/beta/beta"], strict=True):
    if width <= power_ema.WIDEST:
      np.testing.assert_allclose(power_ema.decay(numbers["phema/beta/t_next"] / 64, width), theirs, rtol=1e-7, atol=1e-300)
  time = numbers["phema/correlation/ofs"]
  width = numbers["phema/correlation/sigma_rel"]
  np.testing.assert_allclose(power_ema.correlations(time, width, time, width), numbers["phema/correlation/gram"], rtol=1e-9)


def test_averages_of_a_sequence(golden):
  numbers = golden("methods_training")
  params = numbers["phema/track/w"]
  theirs = numbers["phema/track/ema"]
  averages = ema.init({"w": jnp.asarray(params[0], jnp.float32)}, (), (0.05, 0.1))
  for k, w in enumerate(params[1:]):
    averages = ema.update(averages, {"w": jnp.asarray(w, jnp.float32)}, jnp.int32(k))
    for i, width in enumerate(("0.05", "0.1")):
      np.testing.assert_allclose(averages[f"power_{width}"]["w"], theirs[k, i], rtol=1e-5, atol=1e-6)  # float32


@pytest.mark.parametrize("at", ["at48", "at32"])
def test_reconstruction(golden, at):
  numbers = golden("methods_training")
  group = f"phema/reconstruct/{at}"
  images = numbers[f"{group}/in_nimg"]
  widths = numbers[f"{group}/in_std"]
  last = {"at48": 3072, "at32": 2048}[at]
  for i, width in enumerate((0.03, 0.06, 0.075, 0.1, 0.15, 0.2)):
    share = power_ema.coefficients(images / 64, widths, last / 64, width)
    # the least squares are badly conditioned: differences of 1e-9 in float64 are seen on shares of up to 10
    np.testing.assert_allclose(share, numbers[f"{group}/coefs"][:, i], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(share @ numbers[f"{group}/snapshots"], numbers[f"{group}/result"][i], rtol=1e-6, atol=1e-7)
  assert jax.tree.leaves(share)
