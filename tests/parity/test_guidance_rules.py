"""APG, perturbed attention and CFG++ against diffusers 0.42.1 and CFGpp-diffusion/CFGpp 8035352, in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import coupled

from ddpm_jax.diffusion import dpm_solver, guidance, noise, schedule, steps
from ddpm_jax.diffusion.guidance_rules import Projected, Renoised, Rescaled, projected
from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.solvers import Solver

LEVEL = schedule.linear(1000).level(np.int64(500))
APG = {
  "w7.5_eta0.0_norm0.0_momNone": (7.5, 0.0, None, None),
  "w7.5_eta1.0_norm0.0_momNone": (7.5, 1.0, None, None),
  "w4.0_eta0.0_norm15.0_mom-0.5": (4.0, 0.0, 15.0, -0.5),
  "w10.0_eta0.5_norm2.5_mom-0.75": (10.0, 0.5, 2.5, -0.75),
  "w3.0_eta0.0_norm2.5_momNone": (3.0, 0.0, 2.5, None),
}


@pytest.mark.parametrize("name", APG)
def test_projected_guidance(golden, name):
  numbers = golden("methods_guidance")
  scale, parallel, norm, momentum = APG[name]
  norm = np.inf if norm is None else norm
  running = 0.0
  with jax.enable_x64(True):
    for k, theirs in enumerate(numbers[f"apg/paper/{name}/pred"]):
      strong = numbers["inputs/pred_cond"][k]
      weak = numbers["inputs/pred_uncond"][k]
      running = strong - weak + (momentum or 0.0) * running
      update = projected(jnp.asarray(running), jnp.asarray(strong), parallel, norm)
      default = numbers[f"apg/diffusers_default/{name}/pred"][k]  # starts from the weak prediction
      np.testing.assert_allclose(weak + scale * update, default, rtol=0, atol=1e-9 * np.abs(default).max())
      np.testing.assert_allclose(strong + (scale - 1) * update, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())
      if momentum is None:
        beliefs = [Prediction(jnp.asarray(x0), jnp.zeros_like(x0)) for x0 in (weak, strong)]
        x0 = Projected(parallel, norm)(*beliefs, jnp.asarray(scale), jnp.zeros_like(strong), LEVEL).x0
        np.testing.assert_allclose(x0, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())


def test_perturbed_attention_is_autoguidance_at_one_more(golden):
  numbers = golden("methods_guidance")
  strong = numbers["inputs/pred_cond"][0]
  weak = numbers["inputs/pred_perturbed"][0]
  theirs = numbers["pag/cfgNone_pag3.0_adaptive0.0/pred"][0]
  with jax.enable_x64(True):
    beliefs = [Prediction(jnp.asarray(x), jnp.asarray(x)) for x in (weak, strong)]
    both = [guidance.between(*beliefs, jnp.asarray(1 + 3.0), strong, LEVEL).eps]
    unconditional = numbers["inputs/pred_uncond"][0]
    beliefs = [Prediction(jnp.asarray(x), jnp.asarray(x)) for x in (weak, unconditional)]
    both.append(guidance.between(*beliefs, jnp.asarray(1 + 3.0), strong, LEVEL).eps)
  miss = min(np.abs(np.asarray(ours) - theirs).max() for ours in both)  # their one prediction is called conditional or not
  assert miss < 1e-9 * np.abs(theirs).max()


def constant(x, level, cond=None, value=None):
  return Prediction(value, value)


@pytest.mark.parametrize("name", ["cfg5.0_pag3.0", "cfg1.0_pag2.0", "cfgNone_pag3.0"])
@pytest.mark.parametrize("fade", [0.0, 0.002])
def test_perturbed_attention(golden, name, fade):
  """Beside classifier-free guidance or alone, at diffusers' time t = n - 1."""
  numbers = golden("methods_guidance")
  group = f"pag/{name}_adaptive{fade}"
  cfg, pag = re.fullmatch(r"cfg(.*)_pag(.*)", name).groups()
  for k, theirs in enumerate(numbers[f"{group}/pred"]):
    level = schedule.linear(1000).level(np.int64(numbers[f"{group}/t"][k] + 1))
    with jax.enable_x64(True):
      strong, weak, perturbed = (
        jax.tree_util.Partial(constant, value=jnp.asarray(numbers[f"inputs/pred_{which}"][k]))
        for which in ("cond", "uncond", "perturbed")
      )
      inner = strong if cfg == "None" else guidance.Autoguidance(strong, weak, float(cfg))
      ours = guidance.Perturbed(inner, strong, perturbed, float(pag), fade)(theirs, level)
    for part in (ours.x0, ours.eps):
      np.testing.assert_allclose(part, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())


@pytest.mark.parametrize("share", [0.7, 0.25])
def test_rescaled_guidance(golden, share):
  numbers = golden("methods_guidance")
  strong = numbers["inputs/pred_cond"]
  weak = numbers["inputs/pred_uncond"]
  with jax.enable_x64(True):
    for k, theirs in enumerate(numbers[f"cfg_rescale/w7.5_phi{share}/pred"]):
      beliefs = [Prediction(jnp.zeros_like(eps), jnp.asarray(eps)) for eps in (weak[k], strong[k])]
      ours = Rescaled(share)(*beliefs, jnp.asarray(7.5), jnp.asarray(strong[k]), LEVEL)
      np.testing.assert_allclose(ours.eps, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())
      again = np.float64(LEVEL.alpha) * ours.x0 + np.float64(LEVEL.sigma) * ours.eps
      np.testing.assert_allclose(again, strong[k], rtol=0, atol=1e-5)  # x_t; the level's numbers are float32


def of_levels(x, level, cond, alpha_bar, time, extra):
  alpha_bar = alpha_bar[level.n]
  eps = coupled(x, time[level.n]) + extra(x, time[level.n])
  return Prediction((x - jnp.sqrt(1 - alpha_bar) * eps) / jnp.sqrt(alpha_bar), eps)


def conditional(x, time):
  """The index's model `cond` less `coupled`."""
  return 0.15 * jnp.cos(1.1 * x + time / 210.0)


def nothing(x, time):
  return 0.0 * x


def renoised(levels, told, scale):
  """The guided models of the authors' runs."""
  extras = [jax.tree_util.Partial(extra) for extra in (conditional, nothing)]
  networks = [jax.tree_util.Partial(of_levels, alpha_bar=levels.alpha_bar, time=told, extra=extra) for extra in extras]
  return guidance.Autoguidance(*networks, scale, rule=Renoised())


@pytest.mark.parametrize("name", ["K5_lambda0.6", "K10_lambda1.0", "K5_lambda0.2"])
@pytest.mark.parametrize("solver", ["ddim", "euler", "dpmpp_2m"])
def test_cfg_plus_plus(golden, solver, name):
  """Through the authors' levels; the last belief is the image. Their Euler method in sigma / alpha is DDIM."""
  numbers = golden("methods_guidance")
  group = f"cfgpp_{solver}/{name}"
  time = numbers[f"{group}/t_model"]
  sigmas = None if solver == "ddim" else numbers[f"{group}/sigmas"][:-1]
  alpha_bar = numbers[f"{group}/abar"][:, 0] if sigmas is None else 1 / (1 + sigmas**2)
  levels = schedule.Schedule(np.append(1.0, alpha_bar[::-1]))
  K = len(time)
  with jax.enable_x64(True):
    guided = renoised(levels, np.append(0, time[::-1]), float(name.split("lambda")[1]))
    down = np.arange(K, -1, -1)
    if solver == "dpmpp_2m":
      sampler = Solver(dpm_solver.cfg_multistep(levels, down, dtype=np.float64))
    else:
      table = steps.gaussian(levels, down, eta=0.0)
      wide = np.sqrt(levels.alpha_bar[:-1])[::-1], np.sqrt(1 - levels.alpha_bar[:-1])[::-1]  # the table is float32
      sampler = GaussianSampler(table.replace(c_x0=wide[0], c_eps=wide[1]))
    x_T = numbers["cfgpp_inputs/z"]  # times sqrt(1 + sigma^2) = 1 / alpha for Euler and 2M, which is 1 in our states
    x = sample(noise.image_keys(np.arange(2)), guided, sampler, jnp.asarray(x_T))[0]
  theirs = numbers[f"{group}/z0t"]
  np.testing.assert_allclose(np.asarray(x), theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())
