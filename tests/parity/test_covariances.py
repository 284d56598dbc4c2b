"""Jacobian diagonals and OCM-DPM against float64 runs of the authors' code (tests/golden/methods_{jacobian,ocm}.npz).

Tolerance: rtol 1e-4, atol 2e-5, as the index of the files says for float32. The reference itself differs by up to 2e-5
between float32 and float64. Groups are named by their arguments. Images are stored NCHW.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import Stored, nhwc, two_heads
from stored import GOLDEN

from ddpm_jax.diffusion import grid, jacobian, losses, noise, schedule, steps
from ddpm_jax.diffusion.covariance import CapLast, Optimal
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.prediction import Eps, Network, TimeScale
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.second_heads import TwoHeads
from ddpm_jax.diffusion.transforms import ClipX0

assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
OCM = np.load(GOLDEN / "methods_ocm.npz")
JACOBIAN = np.load(GOLDEN / "methods_jacobian.npz")
CHAIN = schedule.linear(1000, start=1e-4, end=0.02)


def coupled(params, x, time, cond=None):
  """A prediction of eps in which neighboring pixels depend on each other, so that its Jacobian is not diagonal."""
  t = jnp.reshape(time, (-1, 1, 1, 1))
  neighbors = jnp.roll(x, 1, axis=2) - jnp.roll(x, 1, axis=1)
  return x * (0.15 + 0.78 * jnp.sin(t / 640)) + 0.1 * jnp.sin(2 * x + t / 120) + 0.12 * jnp.sin(x + neighbors)


def head(params, x, time, cond=None):
  """OCM's second head."""
  return -0.55 + 0.25 * jnp.sin(1.3 * x + jnp.reshape(time, (-1, 1, 1, 1)) / 80)


def images(data, key):
  return nhwc(data[key]).astype(np.float32)


def network(shift):
  return Network(None, two_heads(coupled, head), TwoHeads.named(Eps(), "hessian"), TimeScale(shift=int(shift)))


@pytest.mark.parametrize("t", [0, 333, 999])
def test_jacobian(t):
  x = images(JACOBIAN, "inputs/x")
  eps = lambda x: coupled(None, x, jnp.full(1, float(t)))
  signs = images(JACOBIAN, "inputs/rademacher")
  normal = images(JACOBIAN, "inputs/gaussian")
  assert_close(eps(x), images(JACOBIAN, f"t{t}/eps"))
  diag = jacobian.diagonal(eps, x)
  assert_close(diag, images(JACOBIAN, f"t{t}/diag"))
  assert_close(diag.sum((1, 2, 3)), JACOBIAN[f"t{t}/trace"])
  assert_close(jacobian.hutchinson(eps, x, signs), images(JACOBIAN, f"t{t}/hutchinson_jvp"))
  assert_close(jacobian.hutchinson(eps, x, signs, jacobian.reverse), images(JACOBIAN, f"t{t}/hutchinson_vjp"))
  assert_close(jacobian.reverse(eps, x, normal[0]), images(JACOBIAN, f"t{t}/vjp_gaussian0"))
  assert_close(jacobian.hutchinson(eps, x, normal, jacobian.reverse), images(JACOBIAN, f"t{t}/hutchinson_gaussian_vjp"))
  if t == 333:
    whole = jax.jacobian(eps)(x[:1]).reshape(108, 108)  # of pixels in the order H, W, C
    places = np.arange(108).reshape(3, 6, 6).transpose(1, 2, 0).ravel()
    assert_close(whole, JACOBIAN["t333/jacobian0"][np.ix_(places, places)])


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("ratio", ["1.0", "adaptive"])
def test_the_loss_of_ocm(shift, ratio):
  group = f"loss/shift1_{shift}/ratio_{ratio}"
  loss = losses.SecondHead(steps.gaussian(CHAIN, grid.full(1000)), weight=1.0 if ratio == "1.0" else None)
  x_0, eps, probe = (images(OCM, f"loss_inputs/{name}") for name in ("x0", "noise", "probe"))
  total, parts = loss.given(eps, network(shift), x_0, OCM["loss_inputs/n"], probe=probe)
  for found, name in ((total, "loss"), (parts["mse"], "dsm"), (parts["head"], "ddm")):
    np.testing.assert_allclose(found, OCM[f"{group}/{name}"], rtol=1e-4)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("average", [False, True])
def test_the_covariance_of_ocm(clip, average):
  group = f"cov/clip_{clip}/avg_{average}"
  x_t = images(OCM, "cov_inputs/x_t")
  kernel = ReverseKernel(Optimal(clip, average))
  for i, n in enumerate(OCM["cov_inputs/n"]):
    level = CHAIN.level(n)
    pred = network(False)(x_t, level)
    x0_var = (level.sigma / level.alpha) ** 2 * pred.eps_var
    x0_var = x0_var.mean((1, 2, 3), keepdims=True) if average else x0_var
    x0_var = jnp.broadcast_to(jnp.clip(x0_var, 0, 1) if clip else x0_var, x_t.shape)
    np.testing.assert_allclose(x0_var, nhwc(OCM[f"{group}/cov_x0"][i]), rtol=1e-4, atol=2e-5)
    for name, eta in (("ddpm", 1.0), ("ddim", 0.5)):
      row = jax.tree.map(np.squeeze, steps.transitions(CHAIN, np.array([n]), np.array([n // 2]), eta))
      clipped = ClipX0(network(False), keep_eps=name == "ddim") if clip else network(False)
      step = kernel(x_t, row, clipped(x_t, level))
      np.testing.assert_allclose(
        jnp.broadcast_to(jnp.exp(step.log_var), x_t.shape), nhwc(OCM[f"{group}/{name}_sigma2"][i]), rtol=2e-4, atol=2e-5
      )
      if not average:
        assert_close(step.mean, nhwc(OCM[f"{group}/{name}_mean"][i]))


def test_probes_at_sampling_time():
  x_t = images(OCM, "mc_inputs/x_t")
  signs = images(OCM, "mc_inputs/probes")
  for i, n in enumerate((1, 500, 1000)):
    level = CHAIN.level(np.int64(n))
    eps = lambda x, n=n: coupled(None, x, jnp.full(1, float(n)))
    diag = jacobian.hutchinson(eps, x_t, signs, jacobian.reverse)
    eps_var = (float(level.alpha) / float(level.sigma)) ** 2 * nhwc(OCM["mc/cov_x0"][i])
    assert_close(1 - level.sigma * diag, eps_var, rtol=1e-4)


TRAJECTORIES = sorted({key.rpartition("/")[0] for key in OCM.files if key.startswith("sampling/")})


@pytest.mark.parametrize("group", TRAJECTORIES)
def test_samples_of_ocm(group):
  words = re.fullmatch(
    r"sampling/(ddpm|ddim)([\d.]*)/clip_(\w+)/idx(\d)_pix(\d)/avg_(\w+)/(linear|power2)_K(\d+)_shift1_(\w+)", group
  ).groups()
  kind, eta, clip, index, pixels, average, trajectory, K, shift = words
  clip = clip == "True"
  average = average == "True"
  index = int(index)
  K = int(K)
  visited = grid.uniform(1000, K) if trajectory == "linear" else grid.power(1000, K, 2)
  np.testing.assert_array_equal(visited[:-1], OCM[f"{group}/n"])
  covariance = Optimal(clip, average)
  if index:
    covariance = CapLast(covariance, int(visited[-1 - index]), float(pixels))
  sampler = GaussianSampler(steps.gaussian(CHAIN, visited, float(eta or 1)), ReverseKernel(covariance))
  denoiser = network(shift == "True")
  if clip:
    denoiser = ClipX0(denoiser, keep_eps=kind == "ddim")
  x_T = images(OCM, "sampling_inputs/x_T")
  keys = noise.image_keys(np.arange(len(x_T)))  # not used: the noise is given
  draws = images(OCM, "sampling_inputs/noise")[:K]
  _, saved = sample(keys, denoiser, sampler, x_T, save=lambda x, pred: x, noise=Stored(draws))
  # Without clipping the states grow to 25, and roundings with them; the index gives 2e-5 for the reference itself.
  np.testing.assert_allclose(saved, nhwc(OCM[f"{group}/xs"])[1:], rtol=1e-4, atol=2e-5 if clip else 2e-4)
