"""NVlabs/edm 008a4e5: preconditioned networks and both samplers of generate.py (edm_sampler) against its authors' code."""

import families
import jax
import numpy as np
import pytest
from families import GROUPS, close, close_image, levels_at, stored
from reference import nhwc

from ddpm_jax import build
from ddpm_jax.diffusion import grid, preconditioning, schedule
from ddpm_jax.diffusion.heun import heun
from ddpm_jax.diffusion.solvers import Solver
from ddpm_jax.diffusion.steps import check

KINDS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "eps"}


def network(group, levels):
  """The network of a group, asked about `levels`."""
  args = GROUPS[group]["args"]
  of = GROUPS[group]["state_dict_group"]
  net = families.network_of(of, families.conversion(of).config)
  if args["cls"] == "iDDPMPrecond":
    return net
  affine, time = preconditioning.preconditioned(KINDS[args["cls"]], levels)
  return net.replace(parameterization=affine, time=time)


@pytest.mark.parametrize("group", families.groups("precond/"))
def test_denoised_images(group):
  """A schedule whose levels are the stored sigmas; x = x_t / alpha."""
  sigma = stored(f"{group}/sigma")
  levels, n = levels_at(sigma)
  level = levels.level(n)
  if GROUPS[group]["args"]["cls"] == "iDDPMPrecond":  # it is told the nearest of its 1000 levels
    r = np.sqrt(1 / schedule.cosine(1000).alpha_bar - 1)
    level = level.replace(n=np.abs(r[:, None] - sigma).argmin(0))
    np.testing.assert_allclose(r[level.n], stored(f"{group}/round_sigma"), rtol=2e-4)  # they compute r in float32
  net = network(group, levels)
  x_t = nhwc(stored(f"{group}/x")) * level.alpha[:, None, None, None]
  cond = families.condition(group)
  want = nhwc(stored(f"{group}/denoised"))
  for k in range(0, len(n), 2):  # in pairs, as the samplers below, which is one program
    pair = lambda tree: jax.tree.map(lambda column: column[k : k + 2], tree)  # noqa: B023
    close(np.asarray(net(pair(x_t), pair(level), pair(cond)).x0), want[k : k + 2], 2e-4)


@pytest.mark.parametrize("group", families.groups("edm_sampler/"))
def test_samplers(group):
  sigma = stored(f"{group}/calls_sigma")
  churned = "S_churn" in GROUPS[group]["args"]
  if GROUPS[group]["args"]["cls"] == "iDDPMPrecond":
    levels = schedule.cosine(1000)
    visited = grid.edm(levels, 5)
  else:
    levels, n = levels_at(sigma)
    visited = check(levels, np.append(np.append(n[:1], n[1::2]), 0))
  if not churned and "iDDPM" not in group:
    np.testing.assert_allclose(levels.alpha_bar, schedule.karras(5, sigma[-1], sigma[0]).alpha_bar, rtol=1e-10)
  options = dict(churn=8.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003) if churned else {}
  noise = stored(f"{group}/noise")[1:]  # theirs is drawn at the start of a step, ours at the end of the one before
  draws = np.zeros((9, *noise.shape[1:]))
  draws[1::2] = noise
  x_T = nhwc(stored(f"{group}/latents")) * np.sqrt(1 - levels.alpha_bar[visited[0]])
  sampler = Solver(heun(levels, visited, **options))
  x = families.draw(network(group, levels), sampler, x_T, families.by_row(draws), families.condition(group))
  close_image(x, nhwc(stored(f"{group}/out")))


def test_configs_of_conversions_are_their_samplers():
  """What is compared above is what the config of a converted network draws."""
  for group, mean in (("adm_classcond", "edm"), ("ddpmpp", "edm"), ("ncsnpp", "ve"), ("adm_iddpm", "eps")):
    config = families.conversion(group).config
    assert config.prediction.mean == mean
    assert (config.sampling.solver, config.sampling.clip) == ("heun", "none")
    if mean == "eps":
      np.testing.assert_array_equal(build.grid(config), grid.edm(schedule.cosine(1000), 5))
    else:
      np.testing.assert_array_equal(build.grid(config), grid.full(5))
      sigma = stored(f"edm_sampler/{group}_{'VEPrecond' if mean == 've' else 'EDMPrecond'}/calls_sigma")
      np.testing.assert_allclose(build.schedule(config).alpha_bar, levels_at(sigma)[0].alpha_bar, rtol=1e-10)
