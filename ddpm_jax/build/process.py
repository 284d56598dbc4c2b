"""The noise levels of a config, and the grids that visit them."""

import re
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import named
from ddpm_jax.diffusion import grid as grids
from ddpm_jax.diffusion import schedule as schedules
from ddpm_jax.diffusion import steps as tables
from ddpm_jax.diffusion import trajectory
from ddpm_jax.diffusion.flow import Flow
from ddpm_jax.diffusion.sde import VpSde
from ddpm_jax.errors import UserError
from ddpm_jax.files import flows, measurements
from ddpm_jax.named import Entry


def schedule(config: ConfigDict) -> schedules.Schedule:
  """The noise levels of `config.schedule`."""
  T = config.schedule.get("T", 1000)
  if not isinstance(T, int) or T < 2:
    raise UserError(f"schedule.T = {T}: a chain needs at least two levels, 1000 in most papers.")
  return named.make(schedules.SCHEDULES, config.schedule, "schedule")


def chain(config: ConfigDict) -> tables.GaussianSteps:
  """The rows of the full ancestral chain T ... 0, which losses and bounds read."""
  levels = schedule(config)
  return tables.gaussian(levels, grids.full(levels.T))


def sde(config: ConfigDict) -> VpSde:
  """The SDE of config.schedule, for networks of continuous time."""
  fields = config.schedule.to_dict()
  if fields.pop("name") != "vp_sde":
    raise UserError(f"The ODE of a network needs the schedule vp_sde, but this one was trained on {config.schedule.name!r}.")
  return VpSde(**{"T": 1000} | fields)


def grid(config: ConfigDict, which: str = "sampling") -> np.ndarray:
  """The levels that a section (sampling, evaluation) visits: a named grid, or OpenAI's section strings; int64 [K+1]."""
  levels = schedule(config)
  section = config[which]
  name = section.grid
  if name == "full":
    return grids.full(levels.T)
  if name not in GRIDS and (name.startswith("ddim") or name[:1].isdigit()):
    return grids.sections(levels.T, name)
  if name.startswith("["):
    return grids.check(_listed(name), levels.T)
  make = named.find(GRIDS, name, f"{which}.grid", remedy=' Or write sections such as "250", or levels such as [250,100,1].')
  if section.steps is None:
    raise UserError(f'The grid "{name}" needs a number of steps: set {which}.steps.')
  if name in BEST_GRIDS:
    return make(config, levels, section.steps)
  return grids.check(make(levels, section.steps), levels.T)


def moments(config: ConfigDict) -> np.ndarray | None:
  """Gamma [T+1] of the file sampling.moments, or None without one."""
  section = config.sampling
  if section.moments is None:
    return None
  return measurements.gamma(section.moments, schedule(config), residual=section.residual)


def _dp_seg(config: ConfigDict, levels: schedules.Schedule, K: int) -> np.ndarray:
  gamma = moments(config)
  if gamma is None:
    raise UserError('The grid "dp_seg" follows from moments: measure them with ddpm-jax moments, set sampling.moments.')
  return trajectory.dp_seg(levels, gamma, K)


def _dp_vb(config: ConfigDict, levels: schedules.Schedule, K: int) -> np.ndarray:
  if config.sampling.costs is None:
    raise UserError('The grid "dp_vb" follows from costs: measure them with ddpm-jax moments --costs, set sampling.costs.')
  return trajectory.dp_vb(measurements.load_costs(config.sampling.costs, levels), K)


def flow(config: ConfigDict, levels: schedules.Schedule, what: str) -> Flow:
  """The trajectories of the file sampling.flow, which `what` needs."""
  if config.sampling.flow is None:
    raise UserError(f"{what} follows from trajectories: measure them with ddpm-jax moments --flow, set sampling.flow.")
  return flows.read(config.sampling.flow, levels)


def _gits(config: ConfigDict, levels: schedules.Schedule, K: int) -> np.ndarray:
  return flow(config, levels, 'The grid "gits"').grid(K)


def _listed(text: str) -> np.ndarray:
  """The grid of a list such as "[250,100,50,1]", which continues to level 0."""
  found = re.fullmatch(r"\[\s*(\d+(?:\s*,\s*\d+)*)\s*,?\s*\]", text)
  if found is None:
    raise UserError(f'"{text}" is not a list of levels. Write one such as [250,100,50,1].')
  visited = [int(level) for level in found[1].split(",")]
  return np.array(visited if visited[-1] == 0 else [*visited, 0])


BEST_GRIDS = ("dp_seg", "dp_vb", "gits")  # by dynamic programming, from what the config's files measured

# (schedule, number of steps K) -> int64 [K+1]; those of BEST_GRIDS take the config first.
GRIDS: dict[str, Callable | Entry] = {
  "full": Entry(lambda levels, K: grids.full(levels.T), "every level"),
  "uniform": Entry(lambda levels, K: grids.uniform(levels.T, K), "even steps (Analytic-DPM)"),
  "ddim_plus1": Entry(lambda levels, K: grids.ddim_plus1(levels.T, K), "the ddim levels + 1, ending at level 1 (CompVis)"),
  "ddim": Entry(lambda levels, K: grids.ddim_uniform(levels.T, K), "every (T // K)-th level (DDIM's code)"),
  "leading": Entry(lambda levels, K: grids.leading(levels.T, K), 'K even steps from level 1 (diffusers\' "leading")'),
  "leading1": Entry(lambda levels, K: grids.leading(levels.T, K, offset=1), "the same from level 2 (steps_offset=1)"),
  "trailing": Entry(lambda levels, K: grids.trailing(levels.T, K), 'even steps down from T (diffusers\' "trailing")'),
  "quadratic": Entry(lambda levels, K: grids.quadratic(levels.T, K), "squares of even steps (DDIM's code)"),
  "power2": Entry(lambda levels, K: grids.power(levels.T, K, 2), "finer towards noise (Extended-Analytic-DPM)"),
  "power3": Entry(lambda levels, K: grids.power(levels.T, K, 3), "still finer towards noise (Extended-Analytic-DPM)"),
  "log_snr": Entry(grids.log_snr, "even steps of the log signal-to-noise ratio (DPM-Solver)"),
  "karras": Entry(grids.karras, "even steps of (sigma / alpha)^(1/7) (EDM)"),
  "edm": Entry(grids.edm, "the same from sigma / alpha = 80 to 0.002 (EDM's steps for networks of discrete levels)"),
  "dp_seg": Entry(_dp_seg, "the best levels by moments (Analytic-DPM's dynamic programming)"),
  "gits": Entry(_gits, "the best levels by trajectories (GITS, Chen et al. 2024)"),
  "dp_vb": Entry(_dp_vb, "the best levels by costs (Watson et al. 2021)"),
}
