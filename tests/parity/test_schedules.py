"""Schedules, their tables, grids and the times told to the network, as in the official implementations."""

import numpy as np
import pytest

from ddpm_jax.diffusion import grid, schedule, steps
from ddpm_jax.diffusion.prediction import Network, TimeScale
from ddpm_jax.errors import UserError

FLOAT64 = dict(rtol=1e-10, atol=0)  # betas down to 1e-5 are differences of numbers near 1: 1e-16 / 1e-5, and a margin
FLOAT32 = dict(rtol=1e-6, atol=0)  # finished columns are float32


def named(args: dict) -> schedule.Schedule:
  """The schedule of a group's args, in either code's words."""
  if "schedule_name" in args:
    return schedule.SCHEDULES[args["schedule_name"]](args["num_diffusion_timesteps"])
  name = args["beta_schedule"]
  T = args["num_diffusion_timesteps"]
  start = args["beta_start"]
  end = args["beta_end"]
  match name:
    case "jsd":
      return schedule.jsd(T)
    case "const":
      return schedule.const(T, end)
    case "warmup10" | "warmup50":
      return schedule.warmup(T, int(name.removeprefix("warmup")) / 100, start, end)
  return schedule.SCHEDULES[name](T, start, end)


def columns(table: steps.GaussianSteps) -> dict[str, np.ndarray]:
  """A full table in the words and the order of the references: index t = 0 is the step into the image."""
  ours = {
    "posterior_variance": table.var,
    "posterior_log_variance_clipped": table.log_var_min,
    "posterior_mean_coef1": np.sqrt(table.c_cov),  # multiplies x_0 when eps is eliminated
    "posterior_mean_coef2": table.c_eps / table.t.sigma,  # multiplies x_t
    "log_betas": table.log_var_max,
  }
  return {name: column[::-1] for name, column in ours.items()}


SCHEDULES = [
  ("schedules_openai", name) for name in ("linear_T1000", "linear_T4000", "cosine_T1000", "cosine_T4000", "linear_T100")
] + [
  (file, f"schedule/{name}")
  for file, names in {
    "ho_tf": ("linear_T1000", "quad_T1000", "const_T100", "jsd_T100", "warmup10_T1000", "warmup50_T1000"),
    "ddim_repo": ("linear_T1000", "quad_T1000", "const_T100", "jsd_T100", "sigmoid_T1000"),
  }.items()
  for name in names
]


@pytest.mark.parametrize("file, group", SCHEDULES)
def test_schedules_and_tables(golden, file, group):
  data = golden(file)
  levels = named(data.args(group))
  arrays = {name: data[f"{group}/{name}"] for name in data.groups[group]["arrays"]}
  np.testing.assert_allclose(levels.betas, arrays["betas"], **FLOAT64)
  ours = columns(steps.gaussian(levels, grid.full(levels.T)))
  np.testing.assert_allclose(ours["log_betas"], np.log(arrays["betas"]), rtol=1e-6, atol=1e-7)  # log 1 = 0 in jsd
  if "alphas_cumprod" in arrays:
    np.testing.assert_allclose(levels.alpha_bar[1:], arrays["alphas_cumprod"], **FLOAT64)
  if "alphas_cumprod_prev" in arrays:
    np.testing.assert_allclose(levels.alpha_bar[:-1], arrays["alphas_cumprod_prev"], **FLOAT64)
    np.testing.assert_allclose(levels.alpha_bar[2:], arrays["alphas_cumprod_next"][:-1], **FLOAT64)
  for name in ours.keys() & arrays.keys():
    np.testing.assert_allclose(ours[name], arrays[name], **FLOAT32, err_msg=name)


@pytest.mark.parametrize("name", ["linear_T1000", "quad_T1000", "const_T100", "sigmoid_T1000"])
def test_float32_tables_of_the_ddim_code(golden, name):
  data = golden("ddim_repo")
  group = f"schedule/{name}"
  levels = named(data.args(group))
  ours = columns(steps.gaussian(levels, grid.full(levels.T)))
  # That code multiplies 1 - beta in float32: up to 1000 roundings of 6e-8, which add up like a random walk (2e-6 where
  # all betas are equal); 1 - alpha_bar then loses digits at small t, where its variances are good to 2e-4.
  t = data[f"{group}/compute_alpha_t"]
  np.testing.assert_allclose(levels.alpha_bar[t + 1], data[f"{group}/compute_alpha"], rtol=3e-6)
  np.testing.assert_allclose(ours["log_betas"], data[f"{group}/logvar_fixedlarge"], rtol=1e-6)
  first = np.log(1e-20)  # Ho's first diffusion class (CelebA-HQ, LSUN) clamps the variance
  fixed_small = np.append(first, ours["posterior_log_variance_clipped"][1:])
  np.testing.assert_allclose(fixed_small, data[f"{group}/logvar_fixedsmall"], rtol=0, atol=3e-4)


def test_openai_section_strings(golden):
  data = golden("respacing_openai")
  for name in data.groups["space_timesteps"]["arrays"]:
    T, spec = name.removeprefix("T").split("__")
    expected = data[f"space_timesteps/{name}"]
    np.testing.assert_array_equal(grid.sections(int(T), spec), np.append(expected[::-1] + 1, 0), err_msg=name)
  for refused in data.groups["space_timesteps"]["raises"]:
    with pytest.raises(UserError, match=refused["section_counts"].split(",")[0]):
      grid.sections(refused["num_timesteps"], refused["section_counts"])


@pytest.mark.parametrize(
  "group",
  [
    "linear_T1000__250",
    "linear_T1000__ddim50",
    "cosine_T4000__100",
    "cosine_T300__10,15,20",
    "linear_T100__7",
    "linear_T1000__ddim25",
  ],
)
def test_a_grid_is_openais_respaced_diffusion(golden, group):
  data = golden("respacing_openai")
  group = f"spaced_{group}"
  args = data.args(group)
  levels = named(args)
  visited = grid.sections(levels.T, args["timestep_respacing"])
  up = visited[::-1]
  np.testing.assert_array_equal(up[1:] - 1, data[f"{group}/timestep_map"])
  np.testing.assert_allclose(1 - levels.alpha_bar[up[1:]] / levels.alpha_bar[up[:-1]], data[f"{group}/betas"], **FLOAT64)
  np.testing.assert_allclose(levels.alpha_bar[up[1:]], data[f"{group}/alphas_cumprod"], **FLOAT64)
  ours = columns(steps.gaussian(levels, visited))
  for name in ours.keys() - {"log_betas"}:
    np.testing.assert_allclose(ours[name], data[f"{group}/{name}"], **FLOAT32, err_msg=name)


@pytest.mark.parametrize(
  "name, T, spec, rescaled",
  [
    ("linear_T1000_resp[]_rescale0", 1000, "", False),
    ("linear_T4000_resp[]_rescale1", 4000, "", True),
    ("linear_T1000_resp[ddim25]_rescale0", 1000, "ddim25", False),
    ("linear_T4000_resp[100]_rescale1", 4000, "100", True),
    ("cosine_T300_resp[10,15,20]_rescale1", 300, "10,15,20", True),
  ],
)
def test_the_time_that_reaches_the_network(golden, name, T, spec, rescaled):
  levels = schedule.linear(T)
  visited = grid.sections(T, spec) if spec else grid.full(T)
  time = TimeScale(1000 / T if rescaled else 1.0)
  spy = Network(None, lambda params, x, time, cond: time[:, None, None, None] + x, time=time)
  told = spy.output(np.zeros((len(visited) - 1, 1, 1, 1), np.float32), levels.level(visited[:-1][::-1]))
  # one rounding of the product with 1000 / T
  np.testing.assert_allclose(np.ravel(told), golden("respacing_openai")[f"model_timestep_argument/{name}"], rtol=1.2e-7)


def test_sequences_of_the_ddim_code(golden):
  data = golden("ddim_repo")
  for name in data.groups["sequences"]["arrays"]:
    kind, T, K = name.split("_")
    build = {"uniform": grid.ddim_uniform, "quad": grid.quadratic}[kind]
    expected = np.unique(data[f"sequences/{name}"])  # quad repeats low levels there, which moves nothing
    np.testing.assert_array_equal(build(int(T[1:]), int(K[1:])), np.append(expected[::-1] + 1, 0), err_msg=name)
