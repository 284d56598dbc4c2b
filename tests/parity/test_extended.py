"""Extended-Analytic-DPM (NPR-DPM, SN-DPM) against the authors' code (tests/golden/extended_analytic.npz).

Tolerances: rtol 1e-4, atol 2e-5 for trajectories (the reference itself in float32 and float64 differs by up to 1e-6, and
ten steps amplify); variances 1e-5, since our coefficients are rounded to float32 once. The timestep embeddings of this
file are tested with the networks.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from measured import after_the_step, costs_of_all_steps, second_moments
from reference import Stored, named, nhwc, npr, poly, two_heads
from stored import INDEX

from ddpm_jax.diffusion import grid, losses, schedule, steps, trajectory
from ddpm_jax.diffusion.covariance import CapLast, Optimal, fix_last_to_full_chain, learned_range, marginal, posterior
from ddpm_jax.diffusion.gaussian import Gaussian
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.likelihood import bits_per_dim, prior_term
from ddpm_jax.diffusion.prediction import X0, Eps, Network, Prediction, TimeScale
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.sde import VpSde
from ddpm_jax.diffusion.second_heads import TwoHeads
from ddpm_jax.diffusion.transforms import AnalyticMoments, ClipX0

assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
WRAPPERS = {  # the authors' names of what a network predicts: its heads, and which closed form plays it
  "eps": ("poly", Eps()),
  "x0": ("stable", X0()),
  "eps_eps2": ("poly+sn", TwoHeads.named(Eps(), "second_moment")),
  "eps_epsc": ("poly+npr", TwoHeads.named(Eps(), "residual")),
  "eps_iddpm": ("poly+var", TwoHeads.named(Eps(), "range")),
}


@struct.dataclass
class UnitMoment:
  """Fills eps_var with 1 - eps_hat^2, as the authors' code does for an optimal covariance without moments."""

  inner: Any

  def __call__(self, x_t, level, cond=None):
    pred = self.inner(x_t, level, cond)
    return pred.replace(eps_var=1 - pred.eps**2)


@pytest.fixture(scope="module")
def data(golden):
  return golden("extended_analytic")


def network(wrapper, time=TimeScale(shift=0)):
  model, parameterization = WRAPPERS[wrapper]
  return Network(np.float32(0), named(model), parameterization, time)


def beliefs(inner, wrapper, rev_var_type, gamma, clip, ddim):
  """The denoiser, and the covariance but for rules of the last steps."""
  denoiser = ClipX0(inner, keep_eps=ddim) if clip else inner
  match rev_var_type:
    case "small":
      return denoiser, posterior
    case "big":
      return denoiser, marginal
    case "optimal" if wrapper == "eps_iddpm":
      return denoiser, learned_range
    case "optimal" if wrapper in ("eps", "x0"):
      inner = UnitMoment(inner) if gamma is None else AnalyticMoments(inner, gamma)
      denoiser = ClipX0(inner, keep_eps=ddim) if clip else inner
  return denoiser, Optimal(clip=clip)


@pytest.mark.parametrize("name", ["linear_N50", "cosine_N30", "vpsde_N40"])
def test_schedules(data, name):
  group = f"schedule/{name}"
  args = data.args(f"schedule/{name}")
  chain = schedule.SCHEDULES[args.get("schedule_name", "vp_sde")](args["N"])
  # 1e-12: alpha_bar is a product here, the reference sums without cancellation; beta ~ 1e-4 loses four digits of 1e-16
  np.testing.assert_allclose(chain.betas, data[f"{group}/betas"][1:], rtol=1e-11)
  if name == "vpsde_N40":
    return
  np.testing.assert_allclose(chain.alpha_bar, data[f"{group}/cum_alphas"], rtol=1e-12)
  s, t = np.triu_indices(args["N"] + 1, 1)
  t = t[s > 0]
  s = s[s > 0]
  rows = steps.transitions(chain, t, s)
  np.testing.assert_allclose(rows.var, data[f"{group}/tilde_beta"][s, t], rtol=1e-6)  # float32
  np.testing.assert_allclose(np.exp(rows.log_var_max), data[f"{group}/skip_betas"][s, t], rtol=1e-6)
  np.testing.assert_allclose(chain.alpha_bar[t] / chain.alpha_bar[s], data[f"{group}/skip_alphas"][s, t], rtol=1e-11)


def test_vp_sde(data):
  t = data["schedule/vpsde_N40/t"]
  sde = VpSde()
  level = sde.level(jnp.asarray(t))
  np.testing.assert_allclose(sde.beta(t), data["schedule/vpsde_N40/squared_diffusion"], rtol=1e-12)
  # float32 of an exponent up to 10 is worth 1e-6 of its exponential
  np.testing.assert_allclose(level.alpha**2, data["schedule/vpsde_N40/cum_alpha"], rtol=2e-6)
  np.testing.assert_allclose(level.sigma**2, data["schedule/vpsde_N40/cum_beta"], rtol=2e-6)
  later = t > 0.3
  integral = schedule.vp_integral(t[later]) - schedule.vp_integral(0.3)
  np.testing.assert_allclose(-np.expm1(-integral), data["schedule/vpsde_N40/skip_beta_0.3"], rtol=1e-10)


def test_trajectories_of_steps(data):
  kinds = {
    "linear": grid.uniform,
    "quad_ddim": grid.quadratic,
    "linear_ddim": grid.ddim_uniform,
    "power2": functools.partial(grid.power, exponent=2),
    "power3": functools.partial(grid.power, exponent=3),
  }
  keys = [key for key in data.arrays.files if key.startswith("trajectory/")]
  for key in keys:
    kind, T, K = re.fullmatch(r"trajectory/(\w+)_N(\d+)_K(\d+)", key).groups()
    np.testing.assert_array_equal(kinds[kind](int(T), int(K))[::-1], np.append(0, np.unique(data[key])), err_msg=key)
  assert len(keys) == 9


@pytest.mark.parametrize("case", ["0", "1", "2"])
def test_dp_seg(data, case):
  group = f"dp_seg/{case}"
  args = data.args(f"dp_seg/{case}")
  chain = schedule.SCHEDULES[args["schedule_name"]](args["N"])
  gamma = data[f"{group}/ms_eps"]
  Ks = [int(key.rpartition("K")[2]) for key in data.arrays.files if key.startswith(f"{group}/steps_K")]
  for K in Ks:
    parts = trajectory.split(gamma, K)
    found = [parts.head_steps, parts.head, parts.tail_steps, parts.bad]
    np.testing.assert_array_equal(found, data[f"{group}/split_K{K}"])
    np.testing.assert_array_equal(trajectory.dp_seg(chain, gamma, K)[::-1], np.append(0, data[f"{group}/steps_K{K}"]))
  cost = trajectory.segment_cost(chain, gamma, trajectory.split(gamma, Ks[0]).head)
  np.testing.assert_allclose(cost[1:, 0], data[f"{group}/cost_row1"], rtol=1e-12)  # float64, but not the same products


def test_dp_vb(data):
  table = data["dp_vb/F"]
  for K in (1, 4, 10, 30):
    path = trajectory.dp_vb(table, K)[::-1]
    np.testing.assert_array_equal(path, data[f"dp_vb/path_K{K}"])
    np.testing.assert_allclose(table[path[:-1], path[1:]].sum(), data[f"dp_vb/cost_K{K}"], rtol=1e-12)


@pytest.mark.parametrize("form", ["ddpm", "ddim_eta0.0", "ddim_eta0.5", "ddim_eta1.0"])
def test_variance_of_every_step(data, form):
  group = "optimal_variance/linear_N50"
  chain = schedule.linear(50)
  gamma = data[f"{group}/ms_eps"]
  s, t = np.triu_indices(51, 1)
  t = t[s > 0]
  s = s[s > 0]
  rows = steps.transitions(chain, t, s, float(form.partition("eta")[2] or 1))
  pred = Prediction(None, None, eps_var=1 - gamma[t])
  for kind, covariance in {"optimal": Optimal(), "small": posterior, "big": marginal}.items():
    if f"{group}/{form}_{kind}" in data.arrays:
      np.testing.assert_allclose(np.exp(covariance(pred, rows)), data[f"{group}/{form}_{kind}"][s, t], rtol=1e-5)
  if form == "ddpm":
    x0_var = (rows.t.sigma / rows.t.alpha) ** 2 * pred.eps_var
    np.testing.assert_allclose(x0_var, data[f"{group}/cov_x0_clip0"][t], rtol=1e-5)
    np.testing.assert_allclose(np.clip(x0_var, 0, 1), data[f"{group}/cov_x0_clip1"][t], rtol=1e-5)


PREDICTED = [
  "ddpm/eps/optimal",
  "ddpm/eps/optimal_mseps",
  "ddpm/eps/small",
  "ddpm/eps/big",
  "ddpm/eps_eps2/optimal",
  "ddpm/eps_epsc/optimal",
  "ddpm/eps_iddpm/optimal",
  "ddpm/x0/optimal_mseps",
  "ddim0.5/eps/optimal",
  "ddim0.5/eps/optimal_mseps",
  "ddim0.5/eps/small",
  "ddim0.5/eps_eps2/optimal",
  "ddim0.5/eps_epsc/optimal",
  "ddim0.5/x0/optimal_mseps",
]
SAMPLED = [group for group in INDEX["files"]["extended_analytic.npz"]["groups"] if group.startswith("sampling/")]


def test_every_group_is_tested(data):
  tested = {f"schedule/{name}" for name in ("linear_N50", "cosine_N30", "vpsde_N40")}
  tested |= {"trajectory", "dp_vb", "losses", "func"} | {f"dp_seg/{case}" for case in "012"}
  tested |= {"optimal_variance/linear_N50", "predict_xprev/linear_N50"}
  tested |= {"sampling_inputs", *SAMPLED} | {f"nelbo/{name}" for name in ("small", "big", "analytic", "SN", "NPR")}
  tested |= {f"nelbo_terms/{name}" for name in ("small", "big", "NPR")}
  tested |= {f"gamma_estimation/shift{shift}" for shift in "01"} | {"timestep_embedding"}
  assert set(data.groups) == tested and len(SAMPLED) == 42
  group = "predict_xprev/linear_N50/"
  cases = {"/".join(key.removeprefix(group).split("/")[:3]) for key in data.arrays.files if key.startswith(group)}
  assert cases == {*PREDICTED, "xt", "ms_eps"}


@pytest.mark.parametrize("case", PREDICTED)
def test_one_step(data, case):
  group = "predict_xprev/linear_N50"
  forward, wrapper, rev_var = case.split("/")
  chain = schedule.linear(50)
  x_t = nhwc(data[f"{group}/xt"])
  gamma = data[f"{group}/ms_eps"]
  eta = 1.0 if forward == "ddpm" else float(forward.removeprefix("ddim"))
  table = steps.gaussian(chain, np.array([31, 20, 2, 1, 0]), eta)
  for s, row in ((20, 0), (0, 3)):
    row = jax.tree.map(lambda column, row=row: column[row], table)
    for clip, average in ((0, 0), (1, 0), (1, 1)):
      prefix = f"{group}/{case}/s{s}_t{row.t.n}/clip{clip}_avg{average}"
      if f"{prefix}/sigma2" not in data.arrays:
        continue
      moments = gamma if rev_var == "optimal_mseps" else None
      denoiser, covariance = beliefs(network(wrapper), wrapper, rev_var.split("_")[0], moments, clip, forward != "ddpm")
      if average:
        covariance = Optimal(clip=clip, average=True)
      p = ReverseKernel(covariance)(x_t, row, denoiser(x_t, row.t))
      if f"{prefix}/mean" in data.arrays:
        assert_close(p.mean, nhwc(data[f"{prefix}/mean"]))
      if s == 0 and rev_var in ("small", "big"):  # ours repeat the step before; no noise is drawn here
        var = row.var if rev_var == "small" else np.exp(row.log_var_max)
      else:
        var = np.exp(p.log_var)
      expected = data[f"{prefix}/sigma2"]
      expected = nhwc(expected) if expected.ndim else expected
      expected = np.where(expected < 0, np.nan, expected)  # unclipped, a variance may be negative: its log is NaN
      np.testing.assert_allclose(var, expected, rtol=2e-5)


@pytest.fixture(scope="module")
def sampling_noise(data):
  noise = nhwc(data["sampling_inputs/noise"])
  return Stored(np.concatenate([noise, np.zeros_like(noise[:1])]))  # the last step draws none


@pytest.mark.parametrize("group", SAMPLED)
def test_sampling(data, sampling_noise, group):
  args = data.args(group)
  gamma = data["sampling_inputs/ms_eps"]
  chain = schedule.SCHEDULES[args["schedule_name"]](args["N"])
  make = {"linear": grid.uniform, "power2": functools.partial(grid.power, exponent=2)}[args["trajectory"]]
  visited = make(chain.T, args["sample_steps"])
  index = args["clip_sigma_idx"]
  table = steps.gaussian(chain, visited, 1.0 if args["eta"] is None else args["eta"])
  np.testing.assert_array_equal(table.t.n[::-1], data[f"sampling_inputs/steps_{args['trajectory']}_K10"])

  wrapper = args["wrapper_typ"]
  ddim = args["forward_type"] == "ddim"
  inner = network(wrapper, TimeScale(1000 / chain.T if args["rescale_timesteps"] else 1.0, int(args["shift1"])))
  moments = gamma if args["ms_eps"] else None
  denoiser, covariance = beliefs(inner, wrapper, args["rev_var_type"], moments, args["clip_x0"], ddim)
  capped = CapLast(covariance, int(visited[-1 - index]), args["clip_pixel"]) if index else covariance

  xs = nhwc(data[f"{group}/xs"])
  keys = jax.random.split(jax.random.key(0), len(xs[0]))
  sampler = GaussianSampler(table, ReverseKernel(capped))
  _, states = sample(keys, denoiser, sampler, xs[0], save=after_the_step, noise=sampling_noise)
  assert_close(states, xs[1:])

  if f"{group}/mean_sigma2" in data.arrays:  # of the states of the reference, without the cap
    for k in range(len(table.left) - 1):
      row = jax.tree.map(lambda column, k=k: column[k], table)
      log_var = covariance(denoiser(xs[k], row.t), row)
      np.testing.assert_allclose(np.exp(log_var).mean(), data[f"{group}/mean_sigma2"][k], rtol=2e-5)


def test_losses(data):
  chain = schedule.cosine(100)
  table = steps.gaussian(chain, grid.full(100))
  x_0 = nhwc(data["losses/x0"])
  eps = nhwc(data["losses/eps"])
  n = jnp.asarray(data["losses/n"])
  assert_close(table.leaving(n).t.diffuse(x_0, eps), nhwc(data["losses/xn"]))

  def parts(loss, net):
    return jax.jit(loss.given)(eps, net, x_0, n)[1]

  second = losses.SecondHead(table)
  assert_close(parts(losses.Simple(table, reduce="sum"), network("eps"))["mse"], data["losses/dt_dsm/eps"])
  sn = parts(second, network("eps_eps2"))
  residual = parts(second, network("eps_epsc"))
  assert_close(sn["mse"], data["losses/dt_dsdm/SN_eps_eps2/dsm"])
  assert_close(sn["head"], data["losses/dt_dsdm/SN_eps_eps2/ddm"])
  assert_close(residual["mse"], data["losses/dt_dsdm_err/NPR_eps_epsc/dsm"])
  assert_close(residual["head"], data["losses/dt_dsdm_err/NPR_eps_epsc/ddm"])
  # The loss of SN on a residual head: it then regresses second moments, h = g + eps_hat^2.
  shifted = Network(None, two_heads(poly, npr_plus_square), TwoHeads.named(Eps(), "second_moment"), TimeScale(shift=0))
  assert_close(parts(second, shifted)["mse"], data["losses/dt_dsdm/eps_epsc/dsm"])
  assert_close(parts(second, shifted)["head"], data["losses/dt_dsdm/eps_epsc/ddm"])


def npr_plus_square(params, x, time, cond=None):
  return npr(params, x, time) + poly(params, x, time) ** 2


def test_densities(data):
  q = Gaussian(data["func/mu0"], np.log(data["func/var0"]))
  p = Gaussian(data["func/mu1"], np.log(data["func/var1"]))
  np.testing.assert_allclose(q.kl(p), data["func/kl"], rtol=1e-5, atol=1e-6)
  pixels = Gaussian(data["func/mu"], np.log(data["func/var"])).log_prob_of_pixels(data["func/x"])
  # A probability is the difference of two float32 numbers near 1.
  np.testing.assert_allclose(np.exp(pixels), np.exp(data["func/log_discretized_normal"]), rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("name", ["small", "big", "analytic", "SN", "NPR"])
def test_bits_per_dim(data, name):
  group = f"nelbo/{name}"
  args = data.args(f"nelbo/{name}")
  chain = schedule.SCHEDULES[args["schedule_name"]](args["N"])
  gamma = data["nelbo/small/ms_eps"]
  denoiser, covariance = beliefs(network(args["wrapper_typ"]), args["wrapper_typ"], args["rev_var_type"], gamma, True, False)
  table = steps.gaussian(chain, grid.uniform(chain.T, args["sample_steps"]))
  np.testing.assert_array_equal(table.t.n[::-1], data["nelbo/small/steps"])
  x_0, noise = (nhwc(data[f"nelbo/small/{array}"]) for array in ("x0", "noise"))
  kernel = ReverseKernel(fix_last_to_full_chain(covariance, chain))
  keys = jax.random.split(jax.random.key(0), len(x_0))
  bound = bits_per_dim(keys, denoiser, kernel, table, x_0, noise=Stored(noise))
  nats = x_0[0].size * np.log(2)
  terms = nats * np.concatenate([bound.terms[:, ::-1].T, bound.prior[None]])
  np.testing.assert_allclose(terms, data[f"{group}/terms"], rtol=1e-4, atol=1e-3)  # nats of the whole image
  np.testing.assert_allclose(nats * bound.total, data[f"{group}/nelbo"], rtol=1e-5)


@pytest.mark.parametrize("name", ["small", "big", "NPR"])
def test_costs_of_all_steps(data, name):
  group = f"nelbo_terms/{name}"
  args = data.args(f"nelbo_terms/{name}")
  chain = schedule.SCHEDULES[args["schedule_name"]](args["N"])
  denoiser, covariance = beliefs(network(args["wrapper_typ"]), args["wrapper_typ"], args["rev_var_type"], None, True, False)
  x_0 = nhwc(data["nelbo_terms/small/x0"])
  noise = nhwc(data["nelbo_terms/small/noise"])
  table = costs_of_all_steps(chain, denoiser, covariance, x_0, noise)
  reachable = data[f"{group}/mask"]
  np.testing.assert_array_equal(np.isfinite(table), reachable)
  assert_close(table[reachable], data[f"{group}/F"][reachable])
  prior = prior_term(x_0, chain.level(chain.T)) * x_0[0].size * np.log(2)
  # 0.00044666 is true in float64; the reference, without expm1, has 0.00044844.
  np.testing.assert_allclose(prior.mean(), data[f"{group}/last_term"], rtol=5e-3)


@pytest.mark.parametrize("shift", [0, 1])
def test_gamma_estimation(data, shift):
  group = f"gamma_estimation/shift{shift}"
  first = "gamma_estimation/shift0"
  args = data.args(group)
  chain = schedule.SCHEDULES[args["schedule_name"]](args["N"])
  x_0 = nhwc(data[f"{first}/x0"])
  noise = nhwc(data[f"{first}/noise"])
  each = second_moments(network("eps", TimeScale(1000 / chain.T, shift)), chain, x_0, noise, args["batch_size"])
  np.testing.assert_allclose(each, data[f"{group}/per_example"], rtol=1e-5)
  np.testing.assert_allclose(each.mean(1), data[f"{group}/ms_eps"][1:], rtol=1e-5)
  np.testing.assert_allclose(each.var(1, ddof=1), data[f"{group}/vars"][1:], rtol=1e-3)  # differences of near numbers
