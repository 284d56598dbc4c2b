"""A guard of speed that times nothing: memory and operations of the main programs, how often they compile, and that no
program calls the host."""

import json

import flax.linen as nn
import jax
import numpy as np
import program_costs
import pytest

from ddpm_jax.build import Apply
from ddpm_jax.diffusion import grid, guidance, prediction, schedule, steps
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.noise import image_keys
from ddpm_jax.diffusion.samplers import GaussianSampler, sample

STORED = json.loads(program_costs.STORED.read_text())


@pytest.mark.parametrize("name", program_costs.PROGRAMS)
def test_memory_and_operations_are_those_written_down(name):
  found = program_costs.measure(name)
  stored = STORED["programs"][name]
  remedy = "Wanted? Then python tests/programs/program_costs.py"
  assert found["flops"] == pytest.approx(stored["flops"], rel=0.1), remedy
  if jax.__version__ == STORED["jax"] and jax.default_backend() == "cpu":  # another compiler keeps other things
    assert found["peak"] == pytest.approx(stored["peak"], rel=0.1), remedy


class Net(nn.Module):
  """One convolution."""

  @nn.compact
  def __call__(self, x, time, cond=None, *, train=False):
    return nn.Conv(x.shape[-1], (3, 3))(x) * (1 + cond["label"][:, None, None, None])


def test_one_compilation_for_all_scales_etas_weights_and_grids_of_one_length():
  levels = schedule.linear(40)
  keys = image_keys(np.arange(2))
  x = np.zeros((2, 4, 4, 1), np.float32)
  cond = {"label": np.array([0, 1])}
  apply = Apply(Net())
  grids = [grid.uniform(40, 5), grid.quadratic(40, 5)]

  def draw(seed, scale, eta, visited):
    params = apply.module.init(jax.random.key(seed), x, np.zeros(2), cond)["params"]
    net = prediction.Network(params, apply, prediction.MEANS["eps"](), prediction.TimeScale())
    denoiser = guidance.ClassifierFree(net, np.float32(scale), {"label": 2})
    sampler = GaussianSampler(steps.gaussian(levels, visited, eta), ReverseKernel())
    return sample(keys, denoiser, sampler, x, cond)[0]

  before = sample._cache_size()
  for case in [(0, 1.0, 0.0, grids[0]), (1, 3.0, 0.5, grids[1]), (2, 0.0, 1.0, grids[0])]:
    draw(*case)
  assert sample._cache_size() == before + 1


def test_the_training_step_and_the_sampler_never_call_the_host(monkeypatch):
  texts = []

  def look(function, arguments, images, mesh, exact=False):
    texts.append(function.lower(*arguments).as_text())

  monkeypatch.setattr(program_costs.plan, "compiled", look)
  for make in program_costs.PROGRAMS.values():
    make()
  assert len(texts) == 3 and not any("callback" in text for text in texts)
