"""Heun's method with added noise (EDM's algorithm 2), the midpoint method, and EDM's levels."""

import jax
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax import config as configs
from ddpm_jax.cli.sample import describe
from ddpm_jax.diffusion import grid as grids
from ddpm_jax.diffusion import schedule
from ddpm_jax.diffusion.heun import heun, midpoint
from ddpm_jax.errors import UserError


def test_churn_is_off_by_default_and_outside_its_levels():
  levels = schedule.karras(200)
  grid = np.array([200, 150, 100, 50, 0])
  plain = heun(levels, grid)
  assert plain.std is None
  outside = heun(levels, grid, churn=10.0, churn_min=1e3)
  for field in ("next_a", "next_x0", "anchor_x", "anchor_a", "anchor_x0"):
    np.testing.assert_array_equal(getattr(outside, field), getattr(plain, field))
  assert not outside.std.any()


def test_churn_keeps_the_variance_of_each_level():
  """A landing image of variance 1 in x_t = alpha x_0 + sigma eps, with x_0 of variance 1, has it after the noise too."""
  levels = schedule.karras(1000)
  table = heun(levels, np.array([1000, 700, 400, 100, 0]), churn=1.0, dtype=np.float64)
  ends = np.flatnonzero(table.std)
  assert list(ends) == [1, 3, 5]
  np.testing.assert_allclose(table.next_a[ends] ** 2 + table.std[ends] ** 2, 1, rtol=1e-12)
  r = np.sqrt(1 / levels.alpha_bar - 1)
  # gamma = 1/4; neighbours among the 1000 levels are at most 1 % apart
  np.testing.assert_allclose(r[table.t.n[ends + 1]] / r[[700, 400, 100]], 1.25, rtol=0.01)


def test_churn_that_cannot_be():
  levels = schedule.karras(10)
  for options, grid, message in (
    ({"churn": -1.0}, [10, 5, 0], "churn = -1 must be at least 0"),
    ({"churn": 1.0}, [1, 5, 10], "0 where the grid ascends"),
    ({"churn": 1.0}, [10, 5, 0], r"T = 10 does not have, such as sigma = \d"),
  ):
    with pytest.raises(UserError, match=message):
      heun(levels, np.array(grid), **options)


def test_the_config_s_churn():
  config = configs.default()
  config.network.name = "unet_ddpm"
  dense = ["schedule.name=karras", "schedule.T=1021", "sampling.grid=karras", "sampling.steps=18"]
  configs.override(config, [*dense, "sampling.solver=heun", "sampling.churn=40", "sampling.churn_max=50"])
  sampler = build.sampler(config)
  visited = np.array([*range(1021, 0, -60), 0])  # 1021 = 17 * 60 + 1: EDM's 18 levels are among them
  np.testing.assert_array_equal(build.grid(config), visited)
  want = heun(build.schedule(config), visited, churn=40.0, churn_max=50.0)
  jax.tree.map(np.testing.assert_array_equal, sampler.steps, want)
  assert describe(config.sampling, 35) == "heun 35steps karras churn40 max50"
  configs.override(config, ["sampling.solver=midpoint"])
  assert config.sampling.churn == 0
  config.sampling.churn = 1.0
  with pytest.raises(UserError, match='sampling.churn is for the solver "heun", not "midpoint"'):
    build.sampler(config)
  for fields, message in (
    (["sampling.churn=1", "sampling.solver=dpm++2m"], 'sampling.churn=1.0 means nothing to the solver "dpm\\+\\+2m"'),
    (["sampling.churn_min=1", "sampling.solver=heun"], "sampling.churn_min=1.0 means nothing without noise"),
  ):
    with pytest.raises(UserError, match=message):
      configs.check_effect(configs.override(configs.default(), fields), fields)


def test_midpoint_is_second_order_and_euler_between_neighbors():
  """On x_0 ~ N(0, 1/4), the flow is x / sqrt(r^2 + 1/4) = const."""
  levels = schedule.karras(40_001, sigma_min=0.05, sigma_max=5.0, rho=1.0)
  r = np.sqrt(1 / levels.alpha_bar - 1)
  errors = []
  for K in (20, 40):
    visited = np.linspace(40_001, 1, K + 1).astype(int)
    table = midpoint(levels, visited, dtype=np.float64)
    assert len(table.left) == 2 * K
    x = anchor = np.sqrt(levels.alpha_bar[-1])
    for k in range(2 * K):
      n = table.t.n[k]
      x0 = x / np.sqrt(levels.alpha_bar[n]) * 0.25 / (0.25 + r[n] ** 2)
      anchor = table.anchor_x[k] * x + table.anchor_a[k] * anchor + table.anchor_x0[k, 0] * x0
      x = table.next_a[k] * anchor + table.next_x0[k, 0] * x0
    errors.append(abs(x / np.sqrt(levels.alpha_bar[1]) - np.sqrt((0.25 + r[1] ** 2) / (0.25 + r[-1] ** 2))))
  assert 3 < errors[0] / errors[1] < 6  # 4 in the limit; middle levels are rounded to 40,001
  steps = midpoint(schedule.karras(5), np.arange(5, -1, -1))
  np.testing.assert_array_equal(steps.t.n, np.arange(5, 0, -1))
  np.testing.assert_array_equal(steps.anchor_x, 1)


def test_edm_s_levels_of_a_discrete_network():
  levels = schedule.cosine(1000)
  r = np.sqrt(1 / levels.alpha_bar - 1)
  visited = grids.edm(levels, 18)
  wanted = np.sqrt(1 / schedule.karras(18, sigma_min=r[1]).alpha_bar[1:] - 1)[::-1]
  for n, sigma in zip(visited, wanted, strict=False):
    assert abs(r[n] - sigma) <= min(abs(r[n - 1] - sigma), abs(r[min(n + 1, 1000)] - sigma))
  assert visited[-1] == 0 and len(visited) == 19
