"""APG, perturbed attention and CFG++ against diffusers 0.42.1 and CFGpp-diffusion/CFGpp 8035352, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import coupled

from ddpm_jax.diffusion import guidance, noise, schedule, steps
from ddpm_jax.diffusion.guidance_rules import Projected, Renoised, projected
from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.diffusion.samplers import GaussianSampler, sample

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


def of_levels(x, level, cond, alpha_bar, time, extra):
  alpha_bar = alpha_bar[level.n]
  eps = coupled(x, time[level.n]) + extra(x, time[level.n])
  return Prediction((x - jnp.sqrt(1 - alpha_bar) * eps) / jnp.sqrt(alpha_bar), eps)


def conditional(x, time):
  """The index's model `cond` less `coupled`."""
  return 0.15 * jnp.cos(1.1 * x + time / 210.0)


def nothing(x, time):
  return 0.0 * x


@pytest.mark.parametrize("name", ["K5_lambda0.6", "K10_lambda1.0", "K5_lambda0.2"])
def test_cfg_plus_plus(golden, name):
  """DDIM through the authors' levels; the last belief is the image."""
  numbers = golden("methods_guidance")
  time = numbers[f"cfgpp_ddim/{name}/t_model"]
  alpha_bar = numbers[f"cfgpp_ddim/{name}/abar"]
  levels = schedule.Schedule(np.append(1.0, alpha_bar[::-1, 0]))
  told = np.append(0, time[::-1])
  scale = float(name.split("lambda")[1])
  K = len(time)
  with jax.enable_x64(True):
    extras = [jax.tree_util.Partial(extra) for extra in (conditional, nothing)]
    networks = [jax.tree_util.Partial(of_levels, alpha_bar=levels.alpha_bar, time=told, extra=extra) for extra in extras]
    guided = guidance.Autoguidance(*networks, scale, rule=Renoised())
    table = steps.gaussian(levels, np.arange(K, -1, -1), eta=0.0)
    wide = np.sqrt(levels.alpha_bar[:-1])[::-1], np.sqrt(1 - levels.alpha_bar[:-1])[::-1]  # the table is float32
    table = table.replace(c_x0=wide[0], c_eps=wide[1])
    x = sample(noise.image_keys(np.arange(2)), guided, GaussianSampler(table), jnp.asarray(numbers["cfgpp_inputs/z"]))[0]
  theirs = numbers[f"cfgpp_ddim/{name}/z0t"]
  np.testing.assert_allclose(np.asarray(x), theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())
