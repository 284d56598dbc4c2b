"""Analytic-DPM against the authors' code (tests/golden/analytic_dpm.npz).

Tolerances: rtol 1e-4, atol 2e-5 for trajectories (the reference itself in float32 and float64 differs by up to 1.2e-6, and
ten steps amplify); coefficients 1e-5, since ours are rounded to float32 once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measured import after_the_step, costs_of_all_steps, second_moments
from reference import Stored, named, nhwc, sn, two_heads

from ddpm_jax.diffusion import grid, losses, schedule, steps, trajectory
from ddpm_jax.diffusion.covariance import CapLast, Optimal, fix_last_to_full_chain, marginal, posterior
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.likelihood import bits_per_dim
from ddpm_jax.diffusion.prediction import X0, Eps, Network, Prediction, TimeScale
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.second_heads import TwoHeads
from ddpm_jax.diffusion.transforms import AnalyticMoments, ClipX0

assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
SAMPLING = [
  "ddpm_ms_eps/linear_clipidx0",
  "ddpm_ms_eps/linear_clipidx0_shift1",
  "ddpm_ms_eps/linear_clipidx1",
  "ddpm_ms_eps/linear_clipidx2",
  "ddpm_ms_eps/dp_seg",
  "ddpm_ms_eps/quad_ddim_rescaled",
  "ddim_ms_eps/eta0.0",
  "ddim_ms_eps/eta0.0_shift1",
  "ddim_ms_eps/eta0.5",
  "ddim_ms_eps/eta1.0",
  "ddim_naive/eta0.0",
  "ddim_naive/eta0.5",
  "ddim_naive/eta1.0",
  "ddpm_naive/small1",
  "ddpm_naive/small1_shift1",
  "ddpm_naive/small0",
  "ddpm_naive/big_clipidx1",
  "ddpm_naive/small1_noclip_stable",
  "ddpm_naive/d_model",
]
NELBO = ["naive_small", "naive_big", "naive_small_noclip", "ms_eps", "ms_eps_dp_seg"]


@pytest.fixture(scope="module")
def data(golden):
  return golden("analytic_dpm")


@pytest.fixture(scope="module")
def chain(data):
  return schedule.from_betas(data["inputs/betas"][1:])


def test_every_group_is_tested(data):
  tested = {f"sampling/{name}" for name in SAMPLING} | {f"nelbo/{name}" for name in NELBO}
  tested |= {"inputs", "trajectory", "losses", "celeba_lsun_codes", "nelbo_terms/small0", "nelbo_terms/small1"}
  tested |= {"gamma_estimation/DDPMNaiveEvaluator", "gamma_estimation/ImprovedDDPMEvaluator_shift1"}
  assert set(data.groups) == tested


def grid_of(args, chain, gamma):
  match args.get("steps_type", "linear"):
    case "linear":
      return grid.uniform(chain.T, args["sample_steps"])
    case "quad_ddim":
      return grid.quadratic(chain.T, args["sample_steps"])
    case "dp_seg":
      return trajectory.dp_seg(chain, gamma, args["sample_steps"])


def time_of(args, T):
  return TimeScale(1000 / T if args.get("rescale_timesteps") else 1.0, int(args.get("shift1", False)))


@functools.partial(jax.jit, static_argnames="kernel")
def variances(eps_var, rows, kernel):
  """The variance of every row, for beliefs without an image."""
  log_var = jax.vmap(lambda e, row: kernel.covariance(Prediction(0.0, 0.0, eps_var=e), row))(eps_var, rows)
  return jnp.exp(log_var)


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling(data, chain, name):
  group = f"sampling/{name}"
  args = data.args(f"sampling/{name}")
  gamma = data["inputs/ms_eps"]
  ddim = name.startswith("ddim")
  covariance = Optimal() if args["ms_eps"] else posterior if args.get("small_sigma", True) else marginal
  visited = grid_of(args, chain, gamma)
  if args.get("clip_sigma_idx"):
    covariance = CapLast(covariance, int(visited[-1 - args["clip_sigma_idx"]]), args.get("clip_pixel", 2))
  table = steps.gaussian(chain, visited, args.get("eta", 1.0))
  parameterization = X0() if "d_model" in args["model"] else Eps()
  denoiser = Network(None, named(args["model"].split()[0]), parameterization, time_of(args, chain.T))
  if args.get("clip_denoise", True):
    denoiser = ClipX0(denoiser, keep_eps=ddim)
  denoiser = AnalyticMoments(denoiser, gamma)

  s = data[f"{group}/s"]
  r = data[f"{group}/r"]
  xs = nhwc(data[f"{group}/xs"])
  kept = s != r  # a repeated level
  np.testing.assert_array_equal(xs[1:][~kept], xs[:-1][~kept])  # is exactly nothing in the reference, and left out in ours
  np.testing.assert_array_equal(table.t.n, r[kept])
  np.testing.assert_array_equal(table.s.n, s[kept])

  noise = np.concatenate([nhwc(data["inputs/noise"]), np.zeros_like(xs[:1])])[kept]  # the last step draws none
  sampler = GaussianSampler(table, ReverseKernel(covariance))
  keys = jax.random.split(jax.random.key(0), 2)
  _, states = sample(keys, denoiser, sampler, xs[0], save=after_the_step, noise=Stored(noise))
  assert_close(states, xs[1:][kept])

  inner = kept & (s > 0)
  rows = jax.tree.map(lambda column: column[inner[kept]], table)
  got = variances(1 - gamma[rows.t.n], rows, sampler.kernel)
  np.testing.assert_allclose(got, data[f"{group}/stat.sigma2"][inner], rtol=1e-5, atol=1e-12)
  if f"{group}/stat.coeff_cov_x_0" in data.arrays:
    np.testing.assert_allclose(rows.c_cov, data[f"{group}/stat.coeff_cov_x_0"][inner], rtol=1e-5)
    np.testing.assert_allclose(rows.var, data[f"{group}/stat.sigma2_small"][inner], rtol=1e-5)


def test_trajectories_of_steps(data, chain):
  for key in data.arrays.files:
    if not key.startswith("trajectory/"):
      continue
    kind, _, numbers = key.removeprefix("trajectory/").rpartition("_N")
    if key.startswith("trajectory/dp_seg"):
      got = trajectory.dp_seg(chain, data["inputs/ms_eps"], int(key.rpartition("_K")[2]))
    else:
      T, K = map(int, numbers.split("_K"))
      make = {"linear": grid.uniform, "quad_ddim": grid.quadratic, "power2": functools.partial(grid.power, exponent=2)}[kind]
      got = make(T, K)
    np.testing.assert_array_equal(got[::-1], np.append(0, np.unique(data[key])), err_msg=key)
  for K in (10, 50):
    expected = data[f"celeba_lsun_codes/linear_ddim_N1000_K{K}"]
    np.testing.assert_array_equal(grid.ddim_uniform(1000, K)[::-1], np.append(0, expected))


def test_bad_tail_is_found_at_the_very_last_level(data):
  """Of the authors' two codes one does not look at level T; we follow the other."""
  parts = trajectory.split(data["celeba_lsun_codes/ms_eps_lastbad"], 10)
  expected = data["celeba_lsun_codes/split_lastbad_cifar"]
  np.testing.assert_array_equal([parts.head_steps, parts.head, parts.tail_steps, parts.bad], expected)
  assert data["celeba_lsun_codes/split_lastbad_celeba"][3] == 0


@pytest.mark.parametrize("name", NELBO)
def test_bits_per_dim(data, chain, name):
  args = data.args(f"nelbo/{name}")
  gamma = data["inputs/ms_eps"]
  covariance = Optimal() if "ms_eps" in name else posterior if args["small_sigma"] else marginal
  kernel = ReverseKernel(fix_last_to_full_chain(covariance, chain))
  denoiser = Network(None, named(args["model"]), time=time_of(args, chain.T))
  if args.get("clip_denoise", True):
    denoiser = ClipX0(denoiser)
  x_0, noise = (nhwc(data[f"nelbo/naive_small/{array}"]) for array in ("x0", "noise"))
  table = steps.gaussian(chain, grid_of(args, chain, gamma))
  keys = jax.random.split(jax.random.key(0), len(x_0))
  bound = bits_per_dim(keys, AnalyticMoments(denoiser, gamma), kernel, table, x_0, noise=Stored(noise))
  nats = x_0[0].size * np.log(2)
  terms = nats * np.concatenate([bound.terms[:, ::-1].T, bound.prior[None]])
  np.testing.assert_allclose(terms, data[f"nelbo/{name}/terms"], rtol=1e-4, atol=1e-3)  # nats of the whole image
  np.testing.assert_allclose(nats * bound.total, data[f"nelbo/{name}/nelbo"], rtol=1e-5)


@pytest.mark.parametrize("small", [True, False])
def test_costs_of_all_steps_and_the_best_path(data, small):
  group = f"nelbo_terms/small{int(small)}"
  args = data.args(group)
  x_0, noise = (nhwc(data[f"nelbo_terms/small1/{array}"]) for array in ("x0", "noise"))
  chain = schedule.from_betas(data["nelbo_terms/small1/betas"][1:])
  denoiser = ClipX0(Network(None, named(args["model"]), time=time_of(args, chain.T)))
  table = costs_of_all_steps(chain, denoiser, posterior if small else marginal, x_0, noise)
  reachable = data[f"{group}/mask"]
  np.testing.assert_array_equal(np.isfinite(table), reachable)
  assert_close(table[reachable], data[f"{group}/F"][reachable])
  for K in (3, 5):
    path = trajectory.dp_vb(table, K)[::-1]
    np.testing.assert_array_equal(path, data[f"{group}/dp_vb_K{K}_path"])
    np.testing.assert_array_equal(path, data[f"{group}/dp_K{K}_path"])
    terms = np.append(table[path[:-1], path[1:]], data[f"{group}/last_term"])
    assert_close(terms, data[f"{group}/dp_K{K}_terms"])
    assert_close(terms.sum(), data[f"{group}/dp_K{K}_nelbo"])


def test_losses(data):
  x_0 = nhwc(data["losses/x0"])
  eps = nhwc(data["losses/eps"])
  n = jnp.asarray(data["losses/n"])
  chain = schedule.from_betas(data["losses/betas"][1:])
  table = steps.gaussian(chain, grid.full(chain.T))
  time = time_of(data.args("losses"), chain.T)
  both = two_heads(named("poly"), sn)

  def of(loss, apply, parameterization):
    return jax.jit(loss.given)(eps, Network(None, apply, parameterization, time), x_0, n)[1]

  simple = losses.Simple(table, reduce="sum")
  second = losses.SecondHead(table)
  assert_close(of(simple, named("poly"), Eps())["mse"], data["losses/dsm"])
  assert_close(of(simple, named("poly"), X0())["mse"], data["losses/dsm_zero"])
  parts = of(second, both, TwoHeads.named(Eps(), "second_moment"))
  assert_close(parts["mse"], data["losses/dsdm.dsm"])
  assert_close(parts["head"], data["losses/dsdm.ddm"])
  assert_close(parts["head"], data["losses/ddm"])  # the same network alone
  assert_close(of(second, both, TwoHeads.named(X0(), "second_moment"))["head"], data["losses/ddm_zero"])


@pytest.mark.parametrize("name", ["DDPMNaiveEvaluator", "ImprovedDDPMEvaluator_shift1"])
def test_gamma_estimation(data, name):
  first = "gamma_estimation/DDPMNaiveEvaluator"
  chain = schedule.from_betas(data[f"{first}/betas"][1:])
  x_0 = nhwc(data[f"{first}/x0"])
  noise = nhwc(data[f"{first}/noise"])
  shift = int(name.endswith("shift1"))  # its network has a learned range beside, which plays no role
  network = Network(np.float32(0), named("poly+var"), TwoHeads.named(Eps(), "range"), TimeScale(1000 / chain.T, shift))
  each = second_moments(network, chain, x_0, noise, 3)
  np.testing.assert_allclose(each.mean(1), data[f"gamma_estimation/{name}/ms_eps"][1:], rtol=1e-5)
