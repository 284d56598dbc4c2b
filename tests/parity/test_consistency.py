"""openai/consistency_models e32b69e: scalings, noise levels, denoised images and all samplers of karras_sample."""

import families
import numpy as np
import pytest
from families import GROUPS, close, close_image, levels_at, stored
from reference import nhwc

from ddpm_jax.diffusion import grid, preconditioning, schedule, steps
from ddpm_jax.diffusion.consistency import consistency
from ddpm_jax.diffusion.dpm_solver import multistep
from ddpm_jax.diffusion.heun import heun, midpoint
from ddpm_jax.diffusion.samplers import GaussianSampler
from ddpm_jax.diffusion.solvers import Solver
from ddpm_jax.diffusion.transforms import ClipX0

CHURN = dict(churn=2.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003)


def affine(levels, distilled):
  """Their EDM networks are told 250 log(sigma) too."""
  kind = dict(name="consistency") if distilled else dict(name="edm", time_scale=1000.0)
  return preconditioning.preconditioned(schedule=levels, **kind)


@pytest.mark.parametrize("distilled, name", [(False, "edm"), (True, "boundary")])
def test_scalings(distilled, name):
  sigma = stored("scalings/sigma")
  levels, n = levels_at(sigma)
  found, time = affine(levels, distilled)
  alpha = np.sqrt(levels.alpha_bar[n])
  # families_index.json: float32 tables 1e-6; c_skip and c_in are ours times or over alpha, in float32 again
  np.testing.assert_allclose(found.skip[n] * alpha, stored(f"scalings/{name}.c_skip"), rtol=1e-6)
  np.testing.assert_allclose(found.out[n], stored(f"scalings/{name}.c_out"), rtol=1e-6)
  np.testing.assert_allclose(found.scale[n] * alpha, stored(f"scalings/{name}.c_in"), rtol=1e-6)
  np.testing.assert_allclose(time.values[n], stored("scalings/rescaled_t"), rtol=1e-6)


@pytest.mark.parametrize("n", [5, 18, 40])
def test_noise_levels(n):
  sigma = np.sqrt(1 / schedule.karras(n).alpha_bar - 1)[::-1]
  np.testing.assert_allclose(sigma, stored(f"sigmas_n{n}/sigmas"), rtol=1e-6)


@pytest.mark.parametrize("group", families.groups("denoise/"))
def test_denoised_images(group):
  args = GROUPS[group]["args"]
  levels, n = levels_at(np.append(0.002, stored(f"{group}/sigma")))  # the least noise, from which trajectories start
  net = network(args["net"], levels, args["distillation"])
  for k, level in enumerate(n[1:]):
    at = levels.level(level)
    pred = net(nhwc(stored(f"{group}/x")[k]) * at.alpha, at, families.condition(group))
    close(np.asarray(pred.x0), nhwc(stored(f"{group}/denoised")[k]))


def network(group, levels, distilled):
  parameterization, time = affine(levels, distilled)
  small = "data.image_size=8"
  net = families.network_of(group, families.conversion(group, small).config, small)
  return net.replace(parameterization=parameterization, time=time)


@pytest.mark.parametrize("group", families.groups("sample/"))
def test_samplers(group):
  args = GROUPS[group]["args"]
  noise = stored(f"{group}/noise")
  if args["distillation"]:
    levels = schedule.karras(args["steps"])
    visited = grid.trailing(args["steps"], 1)
    if args["sampler"] == "multistep":  # their sigmas have no level 0; the last of ts is where it ends
      visited = np.append(args["steps"] - np.array(args["ts"][:-1]), 0)
    sampler = GaussianSampler(consistency(levels, visited))
    draws = noise[1:] if len(noise) > 1 else noise
  else:
    levels, sampler, draws = ode(args, stored(f"{group}/calls_sigma"), noise)
  net = network(args["net"], levels, args["distillation"])
  if args["clip_denoised"]:
    net = ClipX0(net)
  x_T = nhwc(noise[0]) * np.sqrt(1 - 1 / (1 + 80.0**2))
  x = families.draw(net, sampler, x_T, families.by_row(draws), families.condition(group))
  want = nhwc(stored(f"{group}/out"))
  # families_index.json: one step 1e-4, trajectories 1e-3. Where 1e-6 of noise changes more, so does the order of sums.
  tolerance = 1e-4 if args["distillation"] else max(1e-3, 3 * GROUPS[group]["noise_1e6_perturbation_max_abs_change"])
  close_image(np.clip(x, -1, 1), want, tolerance)


def ode(args, sigma, noise):
  """(levels, sampler, noise of its rows) of the samplers of a probability flow."""
  levels, n = levels_at(sigma)
  visited = levels_at(np.append(sigma, 0))[1][:: 1 if args["sampler"] in ("euler", "ancestral") else 2]
  twice = np.zeros((len(sigma), *noise.shape[1:]), np.float32)
  if args["sampler"] == "heun":
    visited = np.append(np.append(n[:1], n[1::2]), 0)
    twice[1::2] = noise[2:6]  # after x_T, one draw at the start of each step; ours is at the end of the step before
    return levels, Solver(heun(levels, visited, **(CHURN if "s_churn" in args else {}))), twice
  if args["sampler"] == "dpm":
    return levels, Solver(midpoint(levels, visited)), twice
  if args["sampler"] == "euler":
    return levels, Solver(multistep(levels, visited, order=1)), twice
  return levels, GaussianSampler(steps.gaussian(levels, visited)), noise[1:]
