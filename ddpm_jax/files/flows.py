"""Files of measured trajectories (diffusion/flow.py), for the solver dpm_v3 and the grid gits."""

import dataclasses
import os

import numpy as np

from ddpm_jax.diffusion.flow import Flow
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError
from ddpm_jax.files import npz


def write(path: str | os.PathLike, flow: Flow, schedule: Schedule, source: dict) -> None:
  """Writes a flow as .npz. `source` describes its weights as a JSON-able dict."""
  arrays = dataclasses.asdict(flow)
  count = arrays.pop("count")
  npz.write(path, {**arrays, "alpha_bar": schedule.alpha_bar}, {"count": count, "source": source})


def read(path: str | os.PathLike, schedule: Schedule) -> Flow:
  """The flow that `write` wrote.

  Raises:
    UserError: if the file is missing or damaged, is not of this kind, or was measured with another schedule.
  """
  arrays, meta = npz.read(path)
  names = {field.name for field in dataclasses.fields(Flow)} - {"count"}
  if not names <= set(arrays):
    raise UserError(f"{path} does not hold trajectories. Measure them with ddpm-jax moments --flow.")
  alpha_bar = arrays["alpha_bar"]
  if alpha_bar.shape != schedule.alpha_bar.shape or not np.allclose(alpha_bar, schedule.alpha_bar, rtol=1e-6, atol=1e-12):
    raise UserError(f"The trajectories in {path} were measured with another schedule. Repeat ddpm-jax moments --flow.")
  return Flow(count=int(meta["count"]), **{name: arrays[name] for name in names})
