"""Heun's method with and without churn against its authors' code: NVlabs/edm 008a4e5 (generate.py: edm_sampler) and
openai/consistency_models e32b69e (cm/karras_diffusion.py: sample_heun).

families_edm_sampler.npz holds for each group the x_T of unit variance (latents), the noise of each step, what the network
was asked (calls_x at calls_sigma) and what it answered (calls_denoised), and the result (out): every fourth row and column
of the first channel. The recorded answers stand in for the network, because the sampler acts on each pixel alone. All runs
take five steps.
"""

import types

import numpy as np
import pytest

from ddpm_jax.diffusion import schedule
from ddpm_jax.diffusion.heun import heun
from ddpm_jax.diffusion.solvers import Solver
from ddpm_jax.errors import UserError

CHURN = dict(churn=8.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003)
RUNS = {
  "adm_classcond_EDMPrecond_churn": CHURN,
  "ddpmpp_EDMPrecond_churn": CHURN,
  "ncsnpp_EDMPrecond_churn": CHURN,
  "heun5_churn": CHURN | {"churn": 2.0},
  "adm_iddpm_iDDPMPrecond": {},  # of 1000 discrete levels, to which EDM's code rounds
}


def levels_of(name, sigma):
  """(schedule, grid): levels at the sigmas that were asked about, or the network's own."""
  visited = np.append(sigma[:1], sigma[1::2])  # the first call of the run, and each step's second
  visited = np.append(visited[:5], 0.0)
  if name == "adm_iddpm_iDDPMPrecond":
    levels = schedule.cosine(1000)
  else:
    levels = schedule.Schedule(np.append(1, 1 / (1 + np.unique(sigma) ** 2)))
  r = np.sqrt(1 / levels.alpha_bar - 1)
  return levels, np.abs(r[:, None] - visited).argmin(0)


@pytest.mark.parametrize("name", RUNS)
def test_states_of_every_call(golden, name):
  numbers = golden("families_edm_sampler")
  sigma = numbers[f"{name}/calls_sigma"]
  levels, grid = levels_of(name, sigma)
  table = heun(levels, grid, dtype=np.float64, **RUNS[name])
  noise = np.zeros((len(sigma), *numbers[f"{name}/latents"].shape))
  if RUNS[name]:
    noise[1:-1:2] = numbers[f"{name}/noise"][1:5]  # drawn here at the end of a step, there at the start of the next
  x = numbers[f"{name}/calls_x"][0] * np.sqrt(levels.alpha_bar[grid[0]])
  state = (x, x, (np.zeros_like(x),))
  # 2e-6 of the largest value: states and answers are stored as float32, and EDM's code computes in float64. The code of
  # consistency_models computes in float32: states of about 100, rounded by 2^-24 of that, cancel down to 1.
  atol = 100 * 2**-24 if name == "heun5_churn" else 0
  for k in range(len(sigma)):
    row = types.SimpleNamespace(t=None)
    for field in ("anchor_x", "anchor_a", "anchor_x0", "next_a", "next_x0", "std"):
      column = getattr(table, field)
      setattr(row, field, None if column is None else column[k])
    row.kept_x = row.anchor_bias = row.next_bias = None
    asked = state[0] / np.sqrt(levels.alpha_bar[table.t.n[k]])
    want = numbers[f"{name}/calls_x"][k]
    np.testing.assert_allclose(asked, want, rtol=0, atol=atol + 2e-6 * np.abs(want).max(), err_msg=str(k))
    x0 = numbers[f"{name}/calls_denoised"][k]
    answer = types.SimpleNamespace(x0=np.clip(x0, -1, 1) if name == "heun5_churn" else x0)  # consistency_models clips
    state, _ = Solver(table).step(lambda row, x, k=k: noise[k], state, row, lambda *args, a=answer: a, None)
  want = numbers[f"{name}/out"]
  np.testing.assert_allclose(state[0], want, rtol=0, atol=atol + 2e-6 * np.abs(want).max())


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
  for options, grid in (({"churn": -1.0}, [10, 5, 0]), ({"churn": 1.0}, [1, 5, 10])):
    with pytest.raises(UserError, match="churn"):
      heun(levels, np.array(grid), **options)
