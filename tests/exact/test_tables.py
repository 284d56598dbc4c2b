"""Tables against the formulas of the papers, in float64, at both ends of every schedule."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import grid, schedule, steps
from ddpm_jax.diffusion.gaussian import Gaussian
from ddpm_jax.diffusion.schedule import like

EVERY_SCHEDULE = {
  "linear": schedule.linear(1000),
  "linear in few steps": schedule.linear(21),  # the last beta is 0.95
  "linear with ends": schedule.linear(100, 0.01, 0.2),
  "cosine": schedule.cosine(1000),
  "cosine 4000": schedule.cosine(4000),
  "quad": schedule.quad(1000),
  "const": schedule.const(4000),  # alpha_bar ends at 8e-36
  "jsd": schedule.jsd(500),  # alpha_bar ends at 0
  "warmup": schedule.warmup(1000, 0.5),
  "sigmoid": schedule.sigmoid(1000),
  "vp_sde": schedule.vp_sde(1000),
  "from_betas": schedule.from_betas([0.1, 0.5, 1.0]),
}
FLOAT32 = dict(rtol=1e-6, atol=1e-12)  # float64 arithmetic, rounded once; 0 where float64 leaves 1e-16


@pytest.fixture(params=EVERY_SCHEDULE.values(), ids=EVERY_SCHEDULE.keys())
def levels(request):
  return request.param


def test_levels_fall_from_the_image_to_noise(levels):
  assert levels.alpha_bar[0] == 1 and (np.diff(levels.alpha_bar) < 0).all()
  every = levels.level(np.arange(levels.T + 1))
  np.testing.assert_allclose(every.alpha.astype(float) ** 2 + every.sigma.astype(float) ** 2, 1, rtol=2e-7)
  assert all(leaf.dtype == np.float32 for leaf in (every.alpha, every.sigma)) and every.n.dtype == np.int32


def test_a_traced_level_is_the_host_level(levels):
  n = np.array([levels.T, 1, 0, levels.T // 2])
  host = levels.level(n)
  traced = levels.level(jnp.asarray(n))
  for name in ("n", "alpha", "sigma"):
    np.testing.assert_array_equal(getattr(host, name), getattr(traced, name))


def test_every_step_between_any_two_levels_is_finite(levels):
  n = np.unique(np.linspace(0, levels.T, 500).astype(int))
  t, s = np.meshgrid(n, n)
  for eta in (0.0, 0.5, 1.0):
    table = steps.transitions(levels, t[s < t], s[s < t], eta)
    for name in ("c_x0", "c_eps", "var", "c_cov", "log_var_max"):
      assert np.isfinite(getattr(table, name)).all(), name


def test_eta_1_is_the_posterior_of_ddpm(levels):
  """DDPM eq. 7, from the betas."""
  beta = levels.betas
  alpha_bar = levels.alpha_bar
  before = alpha_bar[:-1]
  after = alpha_bar[1:]
  table = steps.gaussian(levels, grid.full(levels.T))
  up = lambda column: np.asarray(column, np.float64)[::-1]
  np.testing.assert_allclose(np.sqrt(up(table.c_cov)), np.sqrt(before) * beta / (1 - after), **FLOAT32)
  np.testing.assert_allclose(up(table.c_eps) / up(table.t.sigma), np.sqrt(1 - beta) * (1 - before) / (1 - after), **FLOAT32)
  posterior = (1 - before) / (1 - after) * beta
  np.testing.assert_allclose(up(table.var), posterior, **FLOAT32)
  log_posterior = np.log(np.append(posterior[1], posterior[1:]))  # the last step borrows from the one before
  np.testing.assert_allclose(up(table.log_var_min), log_posterior, rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(up(table.log_var_max), np.log(beta), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tables_follow_ddim(levels, eta):
  """DDIM eq. 12 and 16, on a grid with strides."""
  visited = grid.uniform(levels.T, 3)
  table = steps.gaussian(levels, visited, eta)
  a_t = levels.alpha_bar[visited[:-1]]
  a_s = levels.alpha_bar[visited[1:]]
  std = eta * np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(1 - a_t / a_s)
  np.testing.assert_allclose(table.var, std**2, **FLOAT32)
  np.testing.assert_allclose(table.c_x0, np.sqrt(a_s), **FLOAT32)
  # the root of what cancels to 1e-16
  np.testing.assert_allclose(table.c_eps, np.sqrt(np.maximum(1 - a_s - std**2, 0)), rtol=1e-6, atol=3e-8)
  np.testing.assert_array_equal(table.left, [2, 1, 0])
  assert table.c_x0[-1] == 1 and table.c_eps[-1] == 0 and table.var[-1] == 0  # the last step returns x0 itself


@pytest.mark.parametrize("K", [1, 2, 7, 21])
def test_a_strided_chain_is_the_chain_of_its_rebuilt_betas(levels, K):
  visited = grid.uniform(levels.T, min(K, levels.T))
  strided = steps.gaussian(levels, visited)
  alpha_bar = levels.alpha_bar[visited[::-1]]
  rebuilt = schedule.from_betas(1 - alpha_bar[1:] / alpha_bar[:-1])
  expected = steps.gaussian(rebuilt, grid.full(rebuilt.T))
  for name in ("c_x0", "c_eps", "var", "c_cov", "log_var_min", "log_var_max", "left"):
    # where beta is 1 - 1e-16, alpha_bar cannot be rebuilt from it, and is 0 or 1e-16
    np.testing.assert_allclose(getattr(strided, name), getattr(expected, name), rtol=1e-6, atol=2e-8, err_msg=name)


def test_precision_at_both_ends_of_4000_cosine_levels():
  """float32 tables and float32 arithmetic from them, against float64."""
  levels = schedule.cosine(4000)
  table = steps.gaussian(levels, grid.full(4000))
  alpha_bar = levels.alpha_bar
  beta = levels.betas
  ends = np.array([4000, 3999, 2, 1])
  row = table.leaving(jnp.asarray(ends))
  b = beta[ends - 1]
  before = alpha_bar[ends - 1]
  after = alpha_bar[ends]
  log_posterior = np.log(b * (1 - before) / (1 - after) + (ends == 1) * beta[1] * (1 - alpha_bar[1]) / (1 - alpha_bar[2]))
  np.testing.assert_allclose(row.log_var_min, log_posterior, rtol=3e-7)
  np.testing.assert_allclose(row.log_var_max, np.log(b), rtol=3e-7, atol=1e-9)
  np.testing.assert_allclose(row.t.alpha, np.sqrt(after), rtol=1e-7)
  np.testing.assert_allclose(row.t.sigma, np.sqrt(1 - after), rtol=1e-7)
  # The posterior mean in float32, at n = 2 where it joins x_0 and x_t in nearly equal parts and sigma is 0.004.
  rng = np.random.default_rng(0)
  x_0 = rng.uniform(-1, 1, (4, 8, 8, 3))
  eps = rng.standard_normal((4, 8, 8, 3))
  wide = lambda a: a[:, None, None, None]
  x_t = np.float32(wide(np.sqrt(after)) * x_0 + wide(np.sqrt(1 - after)) * eps)
  exact = wide(np.sqrt(before) * b / (1 - after)) * np.float32(x_0) + wide(np.sqrt(1 - b) * (1 - before) / (1 - after)) * x_t
  w = like(row, x_t)
  ours = w.c_x0 * np.float32(x_0) + w.c_eps * (x_t - w.t.alpha * np.float32(x_0)) / w.t.sigma
  np.testing.assert_allclose(ours, exact, rtol=0, atol=5e-7)  # a few roundings of numbers up to 4


def test_kl_keeps_its_digits_where_variances_nearly_agree():
  d = np.array([1e-3, 1e-2, -1e-2, 0.5])
  ours = Gaussian(jnp.zeros(4), jnp.zeros(4)).kl(Gaussian(jnp.zeros(4), jnp.float32(d)))
  exact = 0.5 * (np.float64(np.float32(d)) + np.expm1(-np.float64(np.float32(d))))
  # two roundings of d and expm1(-d), where the textbook's exp(-d) - 1 would cost one of 1, which is all at d = 1e-3
  assert (np.abs(ours - exact) <= 2 * 6e-8 * np.abs(d)).all()


@pytest.mark.parametrize(
  "T, K, start, end",
  [
    (1000, 10, [1, 112, 223, 334, 445], [778, 889, 1000]),
    (1000, 25, [1, 43, 84, 126, 168, 209], [917, 958, 1000]),
    (1000, 50, [1, 21, 42, 62, 83, 103], [959, 980, 1000]),
    (4000, 25, [1, 168, 334, 501, 668, 834], [3667, 3833, 4000]),
  ],
)
def test_even_trajectories_round_as_analytic_dpm_does(T, K, start, end):
  up = grid.uniform(T, K)[::-1]
  assert len(up) == K + 1 and list(up[: len(start) + 1]) == [0, *start] and list(up[-3:]) == end


def test_ties_of_even_trajectories_differ_from_openais():
  """Rounding half to even, shifted by one level: K = 25 of 1000 differs in three levels."""
  assert set(grid.sections(1000, "25")) ^ set(grid.uniform(1000, 25)) == {168, 167, 500, 501, 833, 834}


def test_power_trajectory_of_extended_analytic_dpm():
  assert list(grid.power(1000, 10, 2)[::-1]) == [0, 1, 58, 119, 184, 255, 334, 423, 529, 667, 1000]


@pytest.mark.parametrize(
  "build",
  [
    lambda T, K: grid.uniform(T, K),
    lambda T, K: grid.ddim_uniform(T, K),
    lambda T, K: grid.quadratic(T, K),
    lambda T, K: grid.power(T, K, 3.0),
    lambda T, K: grid.sections(T, str(K)),
  ],
)
def test_every_grid_is_valid(build):
  for T, K in ((1000, 1), (1000, 2), (1000, 50), (1000, 999), (50, 50), (7, 3)):
    visited = grid.check(build(T, K), T)
    assert visited[-1] == 0 and (np.diff(visited) < 0).all()


def test_rows_leaving_a_level():
  table = steps.gaussian(schedule.linear(1000), grid.uniform(1000, 7))
  n = table.t.n[[3, 0, 6, 3]]
  row = table.leaving(jnp.asarray(n))
  np.testing.assert_array_equal(row.t.n, n)
  np.testing.assert_array_equal(row.c_eps, table.c_eps[[3, 0, 6, 3]])


def test_the_community_ddim_grid_is_compvis_recipe():
  """make_ddim_timesteps: range(0, T, T // K) + 1, 0-based; the previous alphas are alphas_cumprod[[0, *steps[:-1]]]."""
  for T, K in ((1000, 50), (1000, 7), (250, 10)):
    visited = np.arange(0, T, T // K) + 1
    alphas = schedule.linear(T).alpha_bar[1:]
    table = steps.gaussian(schedule.linear(T), grid.ddim_plus1(T, K), eta=0.5)
    a = alphas[visited]
    before = alphas[np.append(0, visited[:-1])]
    sigma = 0.5 * np.sqrt((1 - before) / (1 - a) * (1 - a / before))
    np.testing.assert_array_equal(table.t.n, visited[::-1] + 1)
    np.testing.assert_allclose(table.c_x0, np.sqrt(before)[::-1], rtol=1e-6)  # float32
    np.testing.assert_allclose(table.c_eps, np.sqrt(1 - before - sigma**2)[::-1], rtol=1e-6)
    np.testing.assert_allclose(np.sqrt(table.var), sigma[::-1], rtol=1e-6)
