"""The sampler of a config: solver, grid and covariance, and the denoiser that belongs to them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import named
from ddpm_jax.build.covariances import covariance_of
from ddpm_jax.build.denoisers import form_of, guided, strength_of
from ddpm_jax.build.process import flow, grid, schedule
from ddpm_jax.diffusion import adams, covariance, dpm_solver, guidance
from ddpm_jax.diffusion import grid as grids
from ddpm_jax.diffusion import steps as tables
from ddpm_jax.diffusion.consistency import consistency
from ddpm_jax.diffusion.dpm_solver_v3 import dpm_solver_v3
from ddpm_jax.diffusion.heun import heun, midpoint
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.lanczos import Full
from ddpm_jax.diffusion.samplers import GaussianSampler
from ddpm_jax.diffusion.sde import euler_maruyama
from ddpm_jax.diffusion.solvers import Solver
from ddpm_jax.diffusion.unipc import unipc
from ddpm_jax.errors import UserError
from ddpm_jax.named import Entry


def sampling(config: ConfigDict, network: Any, guide: Any = None, strength: float = 1.0) -> tuple[Any, Any]:
  """(denoiser, sampler) of `config.sampling`: everything that `diffusion.samplers.sample` needs beside keys and noise.

  Args:
    network: the network with its weights.
    guide: the noisy classifier or the weaker network, if the config asks for one.
    strength: see `sampler`.
  """
  return guided(config, network, guide), sampler(config, guide, strength)


def sampler(config: ConfigDict, guide: Any = None, strength: float = 1.0) -> Any:
  """The sampler of `config.sampling`.

  Args:
    guide: the classifier, if one guides the mean of steps.
    strength: below 1, sampling starts at that share of the way to pure noise.
  """
  levels = schedule(config)
  section = config.sampling
  if not 0 <= section.skip < 1:
    raise UserError(f"sampling.skip = {section.skip:g} is a share of the reverse process: at least 0 and below 1.")
  visited = grids.below(grids.below(grid(config), 1 - section.skip), strength)
  if section.solver != "gaussian":
    make = named.find(SOLVERS, section.solver, "sampling.solver")
    if section.solver in _NEED_FLOW:
      found = flow(config, levels, f'The solver "{section.solver}"')
      make = functools.partial(make, statistics=found.statistics(levels))
    if section.churn:
      make = functools.partial(make, **_churn(section))
    if section.solver in _NEED_EPS and section.keep_eps and section.clip != "none":
      raise UserError(f'sampling.solver = "{section.solver}" needs an eps that agrees with x0: set sampling.keep_eps=False.')
    made = make(levels, visited)
    return made if hasattr(made, "step") else Solver(made)
  steps = tables.gaussian(levels, visited, section.eta)
  which = covariance_of(config, section.covariance, section.eta)
  if section.cap_pixels is not None:
    level = _cap_level(section, visited)
    if isinstance(which, Full):
      which = dataclasses.replace(which, cap_level=level, cap_pixels=section.cap_pixels)
    else:
      which = covariance.CapLast(which, level, section.cap_pixels)
  kernel = ReverseKernel(which)
  if section.guidance.kind == "classifier" and form_of(section) == "mean":
    if isinstance(which, Full):
      raise UserError('Guidance of the mean shifts by a variance per pixel: set sampling.guidance.form="score" for "full".')
    kernel = guidance.ShiftMean(kernel, guide, **strength_of(config))
  return GaussianSampler(steps, kernel)


def _churn(section: ConfigDict) -> dict[str, float]:
  """The noise that `heun` adds. Raises UserError for another solver."""
  if section.solver != "heun":
    raise UserError(f'sampling.churn is for the solver "heun", not "{section.solver}": set one of them to another value.')
  most = np.inf if section.churn_max is None else section.churn_max
  return dict(churn=section.churn, churn_min=section.churn_min, churn_max=most, churn_noise=section.churn_noise)


def _cap_level(section: ConfigDict, visited: np.ndarray) -> int:
  """The level that the first of the capped steps reaches."""
  if section.cap_pixels <= 0 or section.cap_steps < 1:
    raise UserError(
      f"sampling.cap_pixels = {section.cap_pixels} has to be above 0, or None for no cap, and sampling.cap_steps = "
      f"{section.cap_steps} at least 1."
    )
  return int(visited[max(len(visited) - 1 - section.cap_steps, 0)])


def _euler(levels: Any, visited: np.ndarray, **options: Any) -> GaussianSampler:
  return GaussianSampler(euler_maruyama(levels, visited, **options))


def _consistency(levels: Any, visited: np.ndarray) -> GaussianSampler:
  return GaussianSampler(consistency(levels, visited))


_multistep = dpm_solver.multistep

# (schedule, grid [K+1]) -> a sampler, or a table of steps for `Solver`. A new row is a sampler of ddpm-jax samplers too.
SOLVERS: dict[str, Callable | Entry] = {
  "gaussian": Entry(None, "the Gaussian step of DDPM, DDIM, Analytic-DPM, NPR-DPM and SN-DPM, by eta and covariance"),
  "dpm++1": Entry(functools.partial(_multistep, order=1), "DPM-Solver++ of order 1, which is DDIM (Lu et al. 2022)"),
  "dpm++2m": Entry(functools.partial(_multistep, order=2), "DPM-Solver++ of order 2, multistep (Lu et al. 2022)"),
  "dpm++3m": Entry(functools.partial(_multistep, order=3), "DPM-Solver++ of order 3, multistep (Lu et al. 2022)"),
  "dpm++2s": Entry(dpm_solver.singlestep, "DPM-Solver++ of order 2, single-step (Lu et al. 2022)"),
  "dpm++2m_sde": Entry(functools.partial(_multistep, order=2, sde=True), "SDE-DPM-Solver++ of order 2, with noise"),
  "cfg++2m": Entry(dpm_solver.cfg_multistep, "DPM-Solver++ of order 2 for guidance.rule=cfg++ (Chung et al. 2024)"),
  "heun": Entry(heun, "Heun's method, two evaluations per step; with sampling.churn it adds noise (Karras et al. 2022)"),
  "midpoint": Entry(midpoint, "the midpoint method (DPM-2), two evaluations per step"),
  "unipc2": Entry(functools.partial(unipc, order=2), "UniPC of order 2, variant bh2 (Zhao et al. 2023)"),
  "unipc3": Entry(functools.partial(unipc, order=3), "UniPC of order 3, variant bh2 (Zhao et al. 2023)"),
  "unipc2_bh1": Entry(functools.partial(unipc, order=2, variant="bh1"), "UniPC of order 2, variant bh1"),
  "unipc3_bh1": Entry(functools.partial(unipc, order=3, variant="bh1"), "UniPC of order 3, variant bh1"),
  "ipndm2": Entry(functools.partial(adams.ipndm, order=2), "iPNDM of order 2 (Zhang & Chen 2022)"),
  "ipndm3": Entry(functools.partial(adams.ipndm, order=3), "iPNDM of order 3"),
  "ipndm4": Entry(functools.partial(adams.ipndm, order=4), "iPNDM of order 4"),
  "deis2": Entry(functools.partial(adams.t_ab, order=2), "DEIS (tAB) of order 2 (Zhang & Chen 2022)"),
  "deis3": Entry(functools.partial(adams.t_ab, order=3), "DEIS (tAB) of order 3"),
  "deis4": Entry(functools.partial(adams.t_ab, order=4), "DEIS (tAB) of order 4"),
  "deis2_rho": Entry(functools.partial(adams.rho_ab, order=2), "DEIS (rhoAB) of order 2"),
  "deis3_rho": Entry(functools.partial(adams.rho_ab, order=3), "DEIS (rhoAB) of order 3"),
  "deis4_rho": Entry(functools.partial(adams.rho_ab, order=4), "DEIS (rhoAB) of order 4"),
  "dpm_v3": Entry(
    functools.partial(dpm_solver_v3, order=3), "DPM-Solver-v3 of order 3, with sampling.flow (Zheng et al. 2023)"
  ),
  "dpm_v3_2": Entry(functools.partial(dpm_solver_v3, order=2), "DPM-Solver-v3 of order 2, with sampling.flow"),
  "consistency": Entry(_consistency, "a consistency model's few steps: x0, new noise, x0 again (Song et al. 2023)"),
  "euler_maruyama": Entry(_euler, "Euler-Maruyama for the reverse SDE, on the levels of vp_sde (Song et al. 2021)"),
  "euler_ode": Entry(functools.partial(_euler, ode=True), "Euler for the probability flow, on the levels of vp_sde"),
}

_NEED_FLOW = ("dpm_v3", "dpm_v3_2")
_NEED_EPS = ("euler_maruyama", "euler_ode")  # they use the prediction's eps beside its x0
