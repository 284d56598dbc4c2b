"""Figures of noise schedules, which need no network: Improved DDPM's figures 1, 3, and 5."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from ddpm_jax.data import images as pixels
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.files.atomic import writing


def posterior_over_beta(schedule: Schedule) -> np.ndarray:
  """The ratio of the two fixed variances, posterior over beta, for the steps that leave the levels 1 ... T; [T].

  posterior_n / beta_n = (1 - alpha_bar_{n-1}) / (1 - alpha_bar_n)                           (DDPM eq. 7)
  """
  noise = 1 - schedule.alpha_bar
  return noise[:-1] / noise[1:]


def noised(schedule: Schedule, images: np.ndarray, columns: int, seed: int = 0) -> np.ndarray:
  """uint8 [N,H,W,C] at `columns` even levels from 0 to T: uint8 [N,columns,H,W,C], with one noise per image."""
  x_0 = pixels.to_float(images)[:, None]
  eps = np.random.default_rng(seed).standard_normal(x_0.shape).astype(np.float32)
  alpha_bar = schedule.alpha_bar[np.linspace(0, schedule.T, columns).round().astype(int)]
  alpha_bar = alpha_bar.reshape(1, columns, 1, 1, 1).astype(np.float32)
  return pixels.to_uint8(np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * eps)


def variances(schedules: Mapping[str, Schedule], path: str | os.PathLike) -> None:
  """Improved DDPM figure 1: posterior over beta along the chain, by number of steps."""
  figure = Figure(figsize=(5.2, 3.6), layout="constrained")
  axes = figure.subplots()
  for name, schedule in schedules.items():
    ratio = posterior_over_beta(schedule)
    axes.plot(np.linspace(0, 1, len(ratio)), ratio, lw=1.4, label=name)
  axes.set(xlabel="n / T", ylabel="posterior variance / beta", title="The two fixed variances")
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  _save(figure, path)


def alpha_bars(schedules: Mapping[str, Schedule], path: str | os.PathLike) -> None:
  """Improved DDPM figure 5: alpha_bar along the chain, by schedule."""
  figure = Figure(figsize=(5.2, 3.6), layout="constrained")
  axes = figure.subplots()
  for name, schedule in schedules.items():
    axes.plot(np.linspace(0, 1, schedule.T + 1), schedule.alpha_bar, lw=1.4, label=name)
  axes.set(xlabel="n / T", ylabel="alpha_bar", title="How much of the image is left")
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  _save(figure, path)


def noised_images(schedules: Mapping[str, Schedule], images: np.ndarray, path: str | os.PathLike, columns: int = 13) -> None:
  """Improved DDPM figure 3: images uint8 [N,H,W,C] on the way to noise, one block of rows per schedule."""
  height, width = images.shape[1:3]
  size = 0.6
  figure = Figure(figsize=(size * columns + 1, len(schedules) * (size * len(images) * height / width + 0.4)))
  figure.set_layout_engine("constrained")
  places = figure.subplots(len(schedules), 1, squeeze=False)[:, 0]
  for axes, (name, schedule) in zip(places, schedules.items(), strict=True):
    rows = noised(schedule, images, columns)
    picture = pixels.grid(rows.reshape(-1, *images.shape[1:]), columns)
    axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    levels = np.linspace(0, schedule.T, columns).round().astype(int)
    axes.set_xticks((width + 1) * np.arange(columns) + width / 2, map(str, levels), fontsize=7)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.set_title(name, fontsize=10)
  _save(figure, path)


def _save(figure: Figure, path: str | os.PathLike) -> None:
  with writing(path) as temporary:
    figure.savefig(temporary, format="png", dpi=110)
