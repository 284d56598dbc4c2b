"""Both forms of ADM's classifier guidance against their authors' numbers: single calls and whole trajectories.

Tolerances: the references are float32 and differ from their own float64 runs by at most 8e-7; 1e-5 of the largest value
leaves room for another order of operations.
"""

import functools

import jax
import numpy as np
import pytest
from flax import struct
from reference import Stored, nhwc, openai

from ddpm_jax.diffusion import noise
from ddpm_jax.diffusion.covariance import posterior
from ddpm_jax.diffusion.guidance import Classifier, ClassifierScore, ShiftMean
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.samplers import GaussianSampler, sample


def analytic(m_y, x, time):
  """The set's classifier: "logits" -|x - m_y|^2 (1 + t / 1000) / 2 of classes with centres m_y [classes,H,W,C]."""
  square = ((x[:, None] - m_y[None]) ** 2).sum((2, 3, 4))
  return -0.5 * square * (1 + time[:, None] / 1000)


@struct.dataclass
class Unnormalized(Classifier):
  """log p(y | x) up to a constant in y and not in x, as the set defines it: no softmax."""

  def log_probs(self, x_t, level):
    return self.apply(self.params, x_t, self.time(level.n) + np.zeros(len(x_t), np.float32))


@pytest.fixture(scope="module")
def guide(golden):
  data = golden("samplers_openai")
  cond = {"label": data["guidance/inputs/y"].astype(np.int32)}
  return functools.partial(Unnormalized, nhwc(data["guidance/inputs/m_y"]), analytic), cond


def close(ours, theirs):
  return np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("var", ["FIXED_LARGE", "LEARNED_RANGE"])
@pytest.mark.parametrize("chain", ["plain", "spaced"])
def test_single_calls(golden, guide, chain, var):
  data = golden("samplers_openai")
  group = f"guidance/single/{chain}/{var}"
  args = data.args(group)
  (classifier, cond) = guide
  built = openai({**args, "model": "poly"})
  grad = classifier(built.network.time)
  x_t = nhwc(data[f"{group}/x"])
  row = jax.tree.map(lambda column: column[::-1][data[f"{group}/t"]], built.steps)
  denoiser = built.denoiser(clip=True)
  pred = denoiser(x_t, row.t)
  close(grad(x_t, row.t, cond), nhwc(data[f"{group}/grad"]))
  close(ShiftMean(built.kernel, grad, 1.0)(x_t, row, pred, cond).mean, nhwc(data[f"{group}/condition_mean"]))
  guided = ClassifierScore(denoiser, grad, 1.0)(x_t, row.t, cond)
  close(guided.x0, nhwc(data[f"{group}/condition_score.pred_xstart"]))
  close(built.kernel(x_t, row, guided).mean, nhwc(data[f"{group}/condition_score.mean"]))


@pytest.mark.parametrize(
  "name",
  [
    "p_sample_loop/p",
    "p_sample_loop/p_scale0.4",
    "p_sample_loop/p_full",
    "ddim_sample_loop/ddim_eta0.0",
    "ddim_sample_loop/ddim_eta1.0",
  ],
)
def test_trajectories(golden, guide, name):
  data = golden("samplers_openai")
  group = f"guidance/{name}"
  args = data.args(group)
  (classifier, cond) = guide
  built = openai({**args, "model": "poly"}, args["eta"])
  grad = classifier(built.network.time)
  denoiser = built.denoiser(clip=True)
  if args["eta"] is None:
    kernel = ShiftMean(built.kernel, grad, args["scale"])
  else:
    denoiser = ClassifierScore(denoiser, grad, args["scale"])
    kernel = ReverseKernel(posterior)
  x_T = nhwc(data[args["x_T"]])
  draws = nhwc(data[args["noise"]])
  keys = noise.image_keys(np.arange(len(x_T)))  # not used: the noise is given
  states = sample(keys, denoiser, GaussianSampler(built.steps, kernel), x_T, cond, save=state, noise=Stored(draws))[1]
  close(states, nhwc(data[f"{group}/samples"]))


def state(x, pred):
  return x
