"""Bad input of Analytic-DPM: one sentence with the value, the rule and the remedy, before anything is compiled."""

import re
import types

import jax
import numpy as np
import pytest

from ddpm_jax import config
from ddpm_jax.data.sources import Arrays, Info
from ddpm_jax.diffusion import grid, moments, noise, ode_likelihood, schedule, steps, trajectory
from ddpm_jax.diffusion.covariance import Optimal
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.likelihood import bits_per_dim
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.prediction import Network
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.sde import VpSde, euler_maruyama
from ddpm_jax.errors import UserError
from ddpm_jax.jobs import analytic

CHAIN = schedule.linear(100)
GAMMA = np.linspace(0.5, 1, 101)
DATA = Mixture(np.float32([1]), np.float32([0]), np.float32([0.1]))
X = np.zeros((1, 2, 2, 1), np.float32)
KEYS = noise.image_keys(np.arange(1))


def identity(params, x, time, cond=None):
  return x


def nan(params, x, time, cond=None):
  return x * np.nan


CASES = {
  "moments of another length": (
    lambda: trajectory.dp_seg(schedule.linear(1000), GAMMA, 10),
    "shape (101,), but a schedule of T = 1000 levels needs 1001",
  ),
  "moments below zero": (lambda: trajectory.dp_seg(CHAIN, -GAMMA, 10), "moment of level 1 is -0.505"),
  "moments above one from the start": (lambda: trajectory.dp_seg(CHAIN, GAMMA + 1, 10), "exceed 1 from level 1 of 100"),
  "more steps than levels": (lambda: trajectory.dp_seg(CHAIN, GAMMA, 101), "101 steps do not fit a chain of T = 100"),
  "no steps": (lambda: trajectory.dp_vb(np.zeros((11, 11)), 0), "0 steps do not fit a chain of T = 10"),
  "a table that is not square": (lambda: trajectory.dp_vb(np.zeros((11, 10)), 3), "square table"),
  "eta above one": (lambda: steps.gaussian(CHAIN, grid.full(100), 1.5), "eta = 1.5 is outside [0, 1]"),
  "a covariance without a head": (
    lambda: sample(
      KEYS,
      Network(None, identity),
      GaussianSampler(steps.gaussian(CHAIN, grid.uniform(100, 2)), ReverseKernel(Optimal())),
      X,
    ),
    "Optimal() needs Prediction.eps_var",
  ),
  "the bound of eta = 0": (
    lambda: bits_per_dim(KEYS, DATA, ReverseKernel(Optimal()), steps.gaussian(CHAIN, grid.uniform(100, 2), 0.0), X),
    "eta = 0",
  ),
  "moments at no level": (
    lambda: next(moments.estimate(CHAIN, DATA, [(X, None)], levels=[0, 5])),
    "levels 1 ... 100 of this schedule",
  ),
  "going on at other levels": (
    lambda: next(moments.estimate(CHAIN, DATA, [(X, None)], levels=[5], start=moments.Moments.none([1, 2]))),
    "cannot be continued",
  ),
  "Euler-Maruyama upwards": (lambda: euler_maruyama(CHAIN, np.array([1, 50])), "follows the reverse SDE"),
  "an ODE that cannot be followed": (
    lambda: ode_likelihood.ode_bits_per_dim(KEYS, Network(None, nan), VpSde(), X, max_steps=5),
    "The ODE of image 0 was not solved in 5 steps; raise max_steps or the tolerance",
  ),
}


@pytest.mark.parametrize("name", CASES)
def test_refusal(name):
  act, sentence = CASES[name]
  with pytest.raises(UserError, match=re.escape(sentence)) as caught:
    jax.block_until_ready(act())
  assert "\n" not in str(caught.value)


def test_fewer_images_than_devices_are_all_measured(monkeypatch):
  few = Arrays(Info("few", "train", 2, 1, None), np.zeros((5, 2, 2, 1), np.uint8), np.zeros(5))
  trained = types.SimpleNamespace(config=config.default(), dataset=lambda split: few)
  monkeypatch.setattr(jax, "device_count", lambda: 8)
  batches = analytic._Batches(trained, 1000, seed=0)
  assert batches.count == len(batches.order) == 5  # moments are kept once `count` images are measured
