"""How a config draws images: solver, grid, covariance."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.build.covariances import covariance_of
from ddpm_jax.build.denoisers import form_of, strength_of
from ddpm_jax.build.process import grid, schedule
from ddpm_jax.config import nearest
from ddpm_jax.diffusion import covariance, dpm_solver, guidance
from ddpm_jax.diffusion import grid as grids
from ddpm_jax.diffusion import steps as tables
from ddpm_jax.diffusion.heun import heun
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.samplers import GaussianSampler
from ddpm_jax.diffusion.sde import euler_maruyama
from ddpm_jax.diffusion.solvers import Solver
from ddpm_jax.diffusion.unipc import unipc
from ddpm_jax.errors import UserError


def sampler(config: ConfigDict, guide: Any = None, strength: float = 1.0) -> Any:
  """The sampler of `config.sampling`.

  Args:
    guide: the classifier, if one guides the mean of steps.
    strength: below 1, only the steps from that part of the way up to noise are left.
  """
  levels, section = schedule(config), config.sampling
  visited = grids.below(grid(config), strength)
  if section.solver in SOLVERS:
    return Solver(SOLVERS[section.solver](levels, visited))
  if section.solver in EULER:
    if section.keep_eps and section.clip != "none":
      raise UserError(f'sampling.solver = "{section.solver}" needs an eps that agrees with x0: set sampling.keep_eps=False.')
    return GaussianSampler(EULER[section.solver](levels, visited))
  if section.solver != "gaussian":
    known = ["gaussian", *SOLVERS, *EULER]
    raise UserError(f"sampling.solver {section.solver!r} is unknown; {nearest(section.solver, known)}")
  steps = tables.gaussian(levels, visited, section.eta)
  which = covariance_of(config, section.covariance, section.eta)
  if section.cap_pixels is not None:
    which = covariance.CapLast(which, _cap_level(section, visited), section.cap_pixels)
  kernel = ReverseKernel(which)
  if section.guidance.kind == "classifier" and form_of(section) == "mean":
    kernel = guidance.ShiftMean(kernel, guide, **strength_of(section.guidance))
  return GaussianSampler(steps, kernel)


def _cap_level(section: ConfigDict, visited: np.ndarray) -> int:
  """The level that the first of the capped steps reaches."""
  if section.cap_pixels <= 0 or section.cap_steps < 1:
    raise UserError(
      f"sampling.cap_pixels = {section.cap_pixels} has to be above 0, or None for no cap, and sampling.cap_steps = "
      f"{section.cap_steps} at least 1."
    )
  return int(visited[max(len(visited) - 1 - section.cap_steps, 0)])


SOLVERS: dict[str, Callable] = {
  "dpm++1": functools.partial(dpm_solver.multistep, order=1),
  "dpm++2m": functools.partial(dpm_solver.multistep, order=2),
  "dpm++3m": functools.partial(dpm_solver.multistep, order=3),
  "dpm++2s": dpm_solver.singlestep,
  "dpm++2m_sde": functools.partial(dpm_solver.multistep, order=2, sde=True),
  "heun": heun,
  "unipc2": functools.partial(unipc, order=2),
  "unipc3": functools.partial(unipc, order=3),
  "unipc2_bh1": functools.partial(unipc, order=2, variant="bh1"),
  "unipc3_bh1": functools.partial(unipc, order=3, variant="bh1"),
}


EULER: dict[str, Callable] = {  # of the SDE that the levels are points of
  "euler_maruyama": euler_maruyama,
  "euler_ode": functools.partial(euler_maruyama, ode=True),
}
