"""Whole trajectories of the official samplers, with their noise.

The references are float32, so a trajectory agrees within 1e-4 of its largest value (their own float64 runs differ from
them by up to 5e-5).
"""

import numpy as np
import pytest
from reference import Stored, nhwc, openai, poly, stable

from ddpm_jax.diffusion import grid, noise, schedule, steps
from ddpm_jax.diffusion.covariance import marginal, posterior
from ddpm_jax.diffusion.interpolation import slerp
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.prediction import Network, TimeScale
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.transforms import ClipX0

ANCESTRAL = (
  "full_small",
  "full_large",
  "full_range",
  "full_small_noclip",
  "spaced_small",
  "spaced_large",
  "spaced_range",
  "ddimspaced_range",
  "sections_large",
  "spaced_xstart",
  "spaced_xprev",
  "spaced_learned",
)
DDIM = (
  "ddim25_eta0.0",
  "ddim_full_eta0.0",
  "ddim25_eta0.5",
  "ddim_full_eta0.5",
  "ddim25_eta1.0",
  "ddim_full_eta1.0",
  "ddim25_xstart_eta0.0",
  "ddim25_noclip_eta0.0",
  "ddim25_noclip_eta1.0",
)


def both(x, pred):
  return x, pred.x0


def trajectory(denoiser, table, kernel, x_T, draws):
  """([K,B,H,W,C] states after each step, beliefs about x_0)."""
  keys = noise.image_keys(np.arange(len(x_T)))  # not used: the noise is given
  return sample(keys, denoiser, GaussianSampler(table, kernel), x_T, save=both, noise=Stored(draws))[1]


def assert_close(ours, theirs, slack=0.0):
  miss = np.abs(ours - theirs) - slack
  assert miss.max() <= 1e-4 * np.abs(theirs).max(), miss.max()


def assert_beliefs_close(x0, theirs, table):
  """Every fifth x0 = (x_t - sigma eps) / alpha, where rounding of x_t and eps, both below 8, is divided by alpha."""
  assert_close(x0[::5], theirs, slack=8 * 6e-8 / table.t.alpha[::5, None, None, None, None])


@pytest.mark.parametrize(
  "group", [f"p_sample_loop/{name}" for name in ANCESTRAL] + [f"ddim_sample_loop/{name}" for name in DDIM]
)
def test_openai(golden, group):
  data = golden("samplers_openai")
  args = data.args(group)
  built = openai(args, args["eta"])
  # DDIM sets its own variance, and does not ask a learned one.
  kernel = built.kernel if args["eta"] is None else ReverseKernel(posterior)
  x_T = nhwc(data[args["x_T"]])
  draws = nhwc(data[args["noise"]])
  states, x0 = trajectory(built.denoiser(args["clip_denoised"]), built.steps, kernel, x_T, draws)
  assert_close(states, nhwc(data[f"{group}/samples"]))
  if args["model_mean_type"] == "PREVIOUS_X":  # clipped in the report alone
    x0 = np.clip(x0, -1, 1)
  assert_beliefs_close(x0, nhwc(data[f"{group}/pred_xstart_every5"]), built.steps)


@pytest.mark.parametrize("name", "abc")
def test_openai_inversion(golden, name):
  data = golden("samplers_openai")
  group = f"ddim_reverse/{name}"
  args = data.args(group)
  built = openai(args)
  down = np.append(built.steps.t.n, 0)
  # There x_0 passes for the state at the first level, which is where a grid begins that goes up.
  up = steps.gaussian(schedule.SCHEDULES[args["schedule_name"]](args["T"]), down[-2::-1], eta=0.0)
  x_0 = nhwc(data[f"{group}/x_start"])
  unused = np.zeros((len(up.left), *x_0.shape), np.float32)
  states, _ = trajectory(built.denoiser(args["clip_denoised"]), up, ReverseKernel(), x_0, unused)
  assert_close(states, nhwc(data[f"{group}/samples"]))


def test_openai_inversion_of_the_last_step(golden):
  data = golden("samplers_openai")
  group = "ddim_reverse/a"
  built = openai(data.args(group))
  chain = schedule.linear(1000).alpha_bar[np.append(built.steps.t.n, 0)[::-1]]
  longer = schedule.Schedule(np.append(chain, 0.0))  # beyond the last level the reference takes alpha_bar = 0
  network = built.network.replace(time=TimeScale(scale=40.0))  # "ddim25" of 1000: every 40th
  x = nhwc(data[f"{group}/x_start"])
  last = steps.gaussian(longer, np.array([25, 26]), eta=0.0)
  states, _ = trajectory(ClipX0(network), last, ReverseKernel(), x, np.zeros((1, *x.shape), np.float32))
  assert_close(states[0], nhwc(data[f"{group}/last_step_from_x_start"]))


@pytest.mark.parametrize(
  "name",
  [
    "generalized/linear_T1000_uniform20_eta0.0",
    "generalized/linear_T1000_uniform20_eta0.5",
    "generalized/linear_T1000_uniform20_eta1.0",
    "generalized/linear_T1000_quad20_eta0.0",
    "generalized/linear_T1000_quad20_eta0.5",
    "generalized/linear_T1000_quad20_eta1.0",
    "generalized/quad_T50_uniform50_eta1.0",
    "ddpm_noisy/linear_T1000_uniform20",
    "ddpm_noisy/linear_T1000_quad20",
  ],
)
def test_ddim_code(golden, name):
  data = golden("ddim_repo")
  args = data.args(name)
  levels = schedule.SCHEDULES[args["beta_schedule"]](args["num_timesteps"], args["beta_start"], args["beta_end"])
  build = {"uniform": grid.ddim_uniform, "quad": grid.quadratic}[args["skip_type"]]
  ancestral = args["eta"] is None
  table = steps.gaussian(levels, build(levels.T, args["timesteps"]), 1.0 if ancestral else args["eta"])
  network = Network(None, {"stable": stable, "poly": poly}[args["model"]])
  denoiser, kernel = (ClipX0(network), ReverseKernel(marginal)) if ancestral else (network, ReverseKernel(posterior))
  x_T = nhwc(data["sampler_inputs/x_T"])
  draws = nhwc(data[args["noise"]])
  states, x0 = trajectory(denoiser, table, kernel, x_T, draws)
  np.testing.assert_array_equal(data[f"{name}/seq"], table.t.n[::-1] - 1)
  assert_close(states, nhwc(data[f"{name}/xs"])[1:])
  assert_beliefs_close(x0, nhwc(data[f"{name}/x0_preds_every5"]), table)


@pytest.mark.parametrize("var, covariance", [("fixedlarge", marginal), ("fixedsmall", posterior)])
def test_ho(golden, var, covariance):
  data = golden("ho_tf")
  levels = schedule.from_betas(data["calc_bpd_loop/fixedsmall/betas"])
  table = steps.gaussian(levels, grid.full(levels.T))
  x_T = data["p_sample/inputs/x_T"]
  draws = data["p_sample/inputs/noise"]
  states, _ = trajectory(ClipX0(Network(None, poly)), table, ReverseKernel(covariance), x_T, draws)
  assert_close(states, data[f"p_sample/{var}/samples"])


def test_slerp_of_the_ddim_code(golden):
  data = golden("ddim_repo")
  weight = np.linspace(0, 1, 11, dtype=np.float32)
  x, y = (np.repeat(nhwc(data[f"slerp/{name}"]), 11, axis=0) for name in ("z1", "z2"))
  np.testing.assert_allclose(slerp(x, y, weight), nhwc(data["slerp/interp"]), rtol=0, atol=1e-5)
