"""Files of measurements, made once per checkpoint: moments, costs of steps, and `ms_eps` vectors of Analytic-DPM's authors.

Files of this package hold the schedule that they belong to and what is needed to continue measuring. The authors' file is
one NumPy vector of T + 1 numbers, written by `torch.save`: entry n is for level n, and entry 0 is not used.
"""

import os
import pathlib
import pickle
import zipfile

import numpy as np

from ddpm_jax.diffusion.covariance import optimal_bounds
from ddpm_jax.diffusion.moments import Moments
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.diffusion.steps import transitions
from ddpm_jax.diffusion.trajectory import check_gamma
from ddpm_jax.errors import UserError
from ddpm_jax.files import arrays, limits, npz, torch_files
from ddpm_jax.files.atomic import writing
from ddpm_jax.files.limits import shown

TORCH = (".pth", ".pt", ".ckpt")


def save_moments(path: str | os.PathLike, moments: Moments, schedule: Schedule, source: dict) -> None:
  """Writes moments as .npz. `source`, a JSON-able dict, describes the weights and the images."""
  arrays = {"levels": moments.levels, "mean": moments.mean, "deviations": moments.deviations}
  if moments.pixels is not None:
    arrays["pixels"] = moments.pixels
  npz.write(path, {**arrays, "alpha_bar": schedule.alpha_bar}, {"count": moments.count, "source": source})


def load_moments(path: str | os.PathLike, schedule: Schedule) -> tuple[Moments, dict]:
  """The moments and their source, as written by `save_moments`.

  Raises:
    UserError: if the file is missing, damaged or of another kind, or was measured with another schedule.
  """
  found, meta = _read(path, schedule, "deviations", "moments")
  with limits.damaged(path, "file of moments", "measure them again"):
    moments = Moments(found["levels"], meta["count"], found["mean"], found["deviations"], found.get("pixels"))
    _check_moments(moments, schedule.T)
    return moments, meta["source"]


def _check_moments(moments: Moments, T: int) -> None:
  """Raises ValueError for moments that cannot have been measured."""
  levels = moments.levels
  count = moments.count
  if levels.ndim != 1 or levels.dtype.kind not in "iu" or not levels.size or levels[0] < 0 or levels[-1] > T:
    raise ValueError(f"its levels are not integers between 0 and {T}")
  if (np.diff(levels.astype(np.int64)) <= 0).any():
    raise ValueError("its levels do not increase")
  if type(count) is not int or count < 1:
    raise ValueError(f"its number of images is {count!r}")
  for values in (moments.mean, moments.deviations):
    if values.shape != (2, levels.size) or values.dtype.kind != "f":
      raise ValueError(f"it has values of shape {values.shape} for {levels.size} levels")
    if not (np.isfinite(values) & (values >= 0)).all():
      raise ValueError("means of squares are finite and at least 0, and these are not")
  if moments.pixels is not None and not (moments.pixels.dtype.kind == "f" and np.isfinite(moments.pixels).all()):
    raise ValueError("its moments per pixel are not finite")


def save_costs(path: str | os.PathLike, table: np.ndarray, schedule: Schedule, source: dict) -> None:
  """Writes the costs of all steps (diffusion/step_costs.py) as .npz, in float64, since near ties decide paths."""
  npz.write(path, {"costs": table, "alpha_bar": schedule.alpha_bar}, {"source": source})


def load_costs(path: str | os.PathLike, schedule: Schedule) -> np.ndarray:
  """The table [T+1, T+1] that `save_costs` wrote. Raises UserError as `load_moments`."""
  costs = _read(path, schedule, "costs", "costs of steps")[0]["costs"]
  if costs.shape != (schedule.T + 1,) * 2 or costs.dtype.kind != "f" or np.isnan(costs).any():
    raise UserError(
      f"{shown(path)} does not hold a number for each of {schedule.T + 1} x {schedule.T + 1} steps; measure it."
    )
  return costs


def gamma(path: str | os.PathLike, schedule: Schedule, *, residual: bool = False) -> np.ndarray:
  """Gamma [T+1] from any file: ours (.npz), a vector (.npy), or the authors' (.pth).

  Args:
    residual: take 1 - E|eps - eps_hat|^2 / d instead; only ours has it.

  Raises:
    UserError: as `load_moments`; for a vector of another length, or one without residuals.
  """
  if pathlib.Path(path).suffix == ".npz":
    return load_moments(path, schedule)[0].gamma(schedule.T, residual=residual)
  if residual:
    raise UserError(f"{shown(path)} holds only E|eps_hat|^2; measure the residual with ddpm-jax moments.")
  return check_gamma(read_vector(path), schedule)


def has_pixels(path: str | os.PathLike) -> bool:
  """Whether the file holds moments of each pixel."""
  return pathlib.Path(path).suffix == ".npz" and "pixels" in npz.read(path)[0]


def gamma_of_pixels(path: str | os.PathLike, schedule: Schedule, *, residual: bool = False) -> np.ndarray:
  """Gamma of each pixel, float32 [T+1,H,W,C], from a file of ddpm-jax moments --per_pixel.

  Raises:
    UserError: as `load_moments`, and for a file without pixels.
  """
  if pathlib.Path(path).suffix != ".npz":
    raise UserError(f"{path} holds one number per level; measure each pixel with ddpm-jax moments --per_pixel.")
  return load_moments(path, schedule)[0].gamma_of_pixels(schedule.T, residual=residual)


def read_vector(path: str | os.PathLike) -> np.ndarray:
  """The vector of an .npy, or of a file that `torch.save` wrote.

  Raises:
    UserError: if the file is missing, or holds anything but one array of numbers.
  """
  vector = torch_files.read(path) if limits.path_of(path).suffix in TORCH else arrays.read_npy(path)
  if not isinstance(vector, np.ndarray) or vector.dtype.kind != "f":
    raise UserError(f"{shown(path)} does not hold an array of real numbers, which a vector of moments is.")
  if not np.isfinite(vector).all():
    raise UserError(f"{shown(path)} holds values that are not finite; estimate the moments again.")
  return vector


def write_vector(path: str | os.PathLike, gamma: np.ndarray) -> None:
  """Writes float32 [T+1] as .npy, or, by the suffix .pth, as the authors' code loads it (`torch.load`)."""
  gamma = np.asarray(gamma, np.float32)
  if pathlib.Path(path).suffix not in TORCH:
    with writing(path) as temporary, open(temporary, "wb") as file:
      np.save(file, gamma)
    return
  # The authors' NumPy knows its own module by the old name only.
  pickled = pickle.dumps(gamma, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
  with writing(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
    for name, content in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")):
      file.writestr(f"archive/{name}", content)


def _read(path: str | os.PathLike, schedule: Schedule, array: str, what: str) -> tuple[dict[str, np.ndarray], dict]:
  found, meta = npz.read(path)
  if array not in found or "alpha_bar" not in found:
    raise UserError(f"{shown(path)} does not hold {what}; measure them with ddpm-jax moments.")
  alpha_bar = found["alpha_bar"]
  if alpha_bar.shape != schedule.alpha_bar.shape or alpha_bar.dtype.kind != "f":
    raise UserError(
      f"The {what} in {shown(path)} are of a schedule with T = {alpha_bar.size - 1} levels, not {schedule.T}; measure them "
      "for this one with ddpm-jax moments."
    )
  if not np.allclose(alpha_bar, schedule.alpha_bar, rtol=1e-6, atol=1e-12):
    n = int(np.argmax(np.abs(alpha_bar - schedule.alpha_bar)))
    raise UserError(
      f"The {what} in {shown(path)} are of another schedule: alpha_bar of level {n} is {alpha_bar[n]:.4g} there and "
      f"{schedule.alpha_bar[n]:.4g} here; measure them for this one with ddpm-jax moments."
    )
  return found, meta


def plot_moments(moments: Moments, schedule: Schedule, path: str | os.PathLike) -> None:
  """Draws a PNG of Gamma with two standard errors, the variance of x_0 that follows from it, and the variance of a step.

  The variance of the steps of the full chain is drawn with its bounds (Analytic-DPM theorem 2), as a share of beta.
  """
  import matplotlib.figure

  figure = matplotlib.figure.Figure(figsize=(15, 4), layout="constrained")
  left, right, steps = figure.subplots(1, 3)
  n = moments.levels
  error = 2 * np.nan_to_num(moments.standard_error, posinf=0)
  table = transitions(schedule, n[n > 1], n[n > 1] - 1)
  beta = np.exp(table.log_var_max)
  for bound, label in zip(optimal_bounds(table), ("smallest possible", "largest possible"), strict=True):
    steps.semilogx(n[n > 1], bound / beta, lw=1.2, ls=":", color="grey", label=label)
  noise_to_signal = (1 - schedule.alpha_bar[n]) / schedule.alpha_bar[n]
  curves = ((moments.mean[0], error[0], "E|eps_hat|^2 / d"), (1 - moments.mean[1], error[1], "1 - E|eps - eps_hat|^2 / d"))
  for gamma, spread, label in curves:
    left.plot(n, gamma, lw=1.2, label=label)
    left.fill_between(n, gamma - spread, gamma + spread, alpha=0.25)
    x0_var = noise_to_signal * (1 - gamma)
    right.loglog(n, np.maximum(x0_var, 1e-8), lw=1.2, label=label)
    steps.semilogx(n[n > 1], (table.var + table.c_cov * np.clip(x0_var, 0, 1)[n > 1]) / beta, lw=1.2, label=label)
  left.set(xlabel="level n", ylabel="Gamma", title=f"Second moments over {moments.count} images, two standard errors")
  left.axhline(1, color="grey", lw=0.8, ls=":")
  right.axhline(1, color="grey", lw=0.8, ls=":")
  right.set(xlabel="level n", ylabel="Var[x_0 | x_n]", title="The variance of x_0 before clipping to [0, 1]")
  steps.set(xlabel="level n", ylabel="variance / beta", title="The variance of a step of the full chain, with its bounds")
  for axes in (left, right, steps):
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  with writing(path) as temporary:
    figure.savefig(temporary, dpi=100)
