"""Bad input of the core: one sentence with the value, the rule and the remedy, before anything is compiled."""

import re

import numpy as np
import pytest
from reference import npr, poly, two_heads

from ddpm_jax.diffusion import grid, losses, noise, schedule, steps
from ddpm_jax.diffusion.covariance import Optimal, learned_diagonal, learned_range
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.likelihood import bits_per_dim
from ddpm_jax.diffusion.prediction import Eps, Network
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.second_heads import TwoHeads
from ddpm_jax.errors import UserError

CHAIN = schedule.linear(100)
KEYS = noise.image_keys(np.arange(1))
X = np.zeros((1, 2, 2, 1), np.float32)
NETWORK = Network(None, poly)


def table(*levels, eta=1.0):
  return steps.gaussian(CHAIN, np.array(levels), eta)


def run(covariance, network=NETWORK, **options):
  return sample(KEYS, network, GaussianSampler(table(100, 50, 0), ReverseKernel(covariance)), X, **options)


CASES = {
  "a grid that repeats a level": (lambda: table(9, 5, 5, 0), "from level 5 to level 5: levels must strictly"),
  "a grid that repeats its first level": (lambda: table(9, 9, 0), "from level 9 to level 9"),
  "a grid that turns": (lambda: table(9, 5, 7, 0), "from level 5 to level 7"),
  "a grid above the chain": (lambda: table(101, 0), "visits level 101, but levels are 0..100"),
  "a grid below the chain": (lambda: table(5, -1), "visits level -1"),
  "a grid of one level": (lambda: table(5), "at least two integer levels"),
  "a grid of fractions": (lambda: table(5.5, 0.0), "at least two integer levels"),
  "a grid that begins at the image": (lambda: table(0, 5, eta=0.0), "Begin at level 1 to go up"),
  "eta above one": (lambda: table(5, 0, eta=1.5), "eta = 1.5 is outside [0, 1]"),
  "eta below zero": (lambda: table(5, 0, eta=-0.1), "eta = -0.1 is outside [0, 1]"),
  "eta that is no number": (lambda: table(5, 0, eta=float("nan")), "eta = nan is outside [0, 1]"),
  "inversion with noise": (lambda: table(1, 5, eta=0.5), "use eta = 0, not 0.5"),
  "a section string of words": (lambda: grid.sections(100, "ten"), '"ten" is not a section string'),
  "an empty section string": (lambda: grid.sections(100, ""), '"" is not a section string'),
  "a section of words": (lambda: grid.sections(100, "10,x"), '"10,x" is not a section string'),
  "a stride of words": (lambda: grid.sections(100, "ddimx"), '"ddimx" is not a section string'),
  "a section that is too full": (lambda: grid.sections(90, "10,46"), 'Section 2 of "10,46" has 45 levels'),
  "sections that are all empty": (lambda: grid.sections(100, "0,0"), '"0,0" takes no level at all'),
  "a section of fewer than no levels": (lambda: grid.sections(100, "10,-1"), "cannot give -1"),
  "a stride that does not exist": (lambda: grid.sections(1000, "ddim300"), 'Use "300" instead of "ddim300"'),
  "a negative beta": (lambda: schedule.from_betas([0.1, -0.1]), "0 < beta <= 1"),
  "a beta above one": (lambda: schedule.from_betas([0.1, 1.5]), "1 values out of range, such as [1.5]"),
  "a beta that is no number": (lambda: schedule.from_betas([float("nan")]), "0 < beta <= 1"),
  "no betas": (lambda: schedule.from_betas([]), "non-empty"),
  "a linear schedule too short for its ends": (lambda: schedule.linear(10), "choose T > 20"),
  "one end of a linear schedule": (lambda: schedule.linear(100, start=0.1), "both ends or neither"),
  "more steps than levels": (lambda: grid.uniform(100, 101), "101 steps do not fit a chain of T = 100 levels"),
  "no steps": (lambda: grid.ddim_uniform(100, 0), "0 steps do not fit"),
  "more quadratic steps than levels": (lambda: grid.quadratic(10, 11), "11 steps do not fit"),
  "more power steps than levels": (lambda: grid.power(10, 11, 2.0), "Choose 1 <= K <= 10"),
  "the bound of a chain without noise": (
    lambda: bits_per_dim(KEYS, NETWORK, ReverseKernel(), table(9, 5, 0, eta=0.0), X),
    "use eta = 1",
  ),
  "an optimal covariance that nobody estimated": (
    lambda: run(Optimal()),
    "Optimal() needs Prediction.eps_var, but this denoiser gives x0, eps.",
  ),
  "a learned range that is not there": (lambda: run(learned_range), 'Use a network with the second head "range".'),
  "a learned diagonal that is not there": (lambda: run(learned_diagonal), 'the second head "log_var"'),
  "an unknown second head": (
    lambda: run(Optimal(), Network(None, two_heads(poly, npr), TwoHeads.named(Eps(), "sigma"))),
    "'sigma' is unknown; choose one of range",
  ),
  "a second head that the network lacks": (
    lambda: run(learned_range, Network(None, poly, TwoHeads.named(Eps(), "range"))),
    "The network gives 1 channels for images of 1, but the parameterization TwoHeads needs 2",
  ),
  "a second head that nobody reads": (
    lambda: run(learned_range, Network(None, two_heads(poly, npr))),
    "gives 2 channels for images of 1, but the parameterization Eps needs 1",
  ),
  "a loss that is reduced by another name": (
    lambda: losses.Simple(table(9, 5, 0), "average").given(X, NETWORK, X, np.array([9])),
    "reduce = 'average' is unknown",
  ),
  "no states to save": (lambda: run(Optimal(), save=lambda x, pred: x, save_every=0), "save_every = 0 must be at least 1"),
}


@pytest.mark.parametrize("name", CASES)
def test_refusal(name):
  act, sentence = CASES[name]
  with pytest.raises(UserError, match=re.escape(sentence)) as caught:
    act()
  assert "\n" not in str(caught.value)
