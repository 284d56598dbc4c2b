"""The process of a config: its noise levels, and which of them are visited."""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import named
from ddpm_jax.config import nearest
from ddpm_jax.diffusion import grid as grids
from ddpm_jax.diffusion import schedule as schedules
from ddpm_jax.diffusion import steps as tables
from ddpm_jax.diffusion import trajectory
from ddpm_jax.diffusion.sde import VpSde
from ddpm_jax.errors import UserError
from ddpm_jax.files import measurements


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
  """The SDE of config.schedule, whose networks know continuous time."""
  fields = config.schedule.to_dict()
  if fields.pop("name") != "vp_sde":
    raise UserError(f"The ODE of a network needs the schedule vp_sde, but this one was trained on {config.schedule.name!r}.")
  return VpSde(**{"T": 1000} | fields)


def grid(config: ConfigDict, which: str = "sampling") -> np.ndarray:
  """The levels that a section (sampling, evaluation) visits: a named grid, or OpenAI's section strings; int64 [K+1]."""
  levels, section = schedule(config), config[which]
  name, K = section.grid, section.steps
  if name == "full":
    return grids.full(levels.T)
  if name not in (*GRIDS, *BEST_GRIDS):
    if not name.startswith("ddim") and not any(map(str.isdigit, name)):
      known = ["full", *GRIDS, *BEST_GRIDS]
      raise UserError(f'Grid {name!r} is unknown; {nearest(name, known)} Or write sections such as "250" or "10,15,20".')
    return grids.sections(levels.T, name)
  if K is None:
    raise UserError(f'The grid "{name}" needs a number of steps: set {which}.steps.')
  return BEST_GRIDS[name](config, levels, K) if name in BEST_GRIDS else GRIDS[name](levels, K)


GRIDS: dict[str, Callable[[schedules.Schedule, int], np.ndarray]] = {
  "uniform": lambda levels, K: grids.uniform(levels.T, K),
  "ddim": lambda levels, K: grids.ddim_uniform(levels.T, K),
  "quadratic": lambda levels, K: grids.quadratic(levels.T, K),
  "power2": lambda levels, K: grids.power(levels.T, K, 2),
  "power3": lambda levels, K: grids.power(levels.T, K, 3),
  "log_snr": grids.log_snr,
  "karras": grids.karras,
}


def moments(config: ConfigDict) -> np.ndarray | None:
  """Gamma [T+1] of the file sampling.moments."""
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


BEST_GRIDS = {"dp_seg": _dp_seg, "dp_vb": _dp_vb}  # by dynamic programming
