"""Figures, drawn without a display and without pyplot, so that a notebook's backend is unchanged.

Every function writes one PNG atomically.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ddpm_jax.data import images as pixels
from ddpm_jax.diffusion import likelihood
from ddpm_jax.diffusion.likelihood import BitsPerDim
from ddpm_jax.files.atomic import writing
from ddpm_jax.metrics import neighbours


def bound_terms(bounds: Mapping[str, BitsPerDim], levels: np.ndarray, path: str | os.PathLike) -> None:
  """Each step's term of the bound over the level that it leaves, and their cumulative sum (IDDPM figure 2).

  Args:
    bounds: leaves [B, K], by the name of their covariance.
    levels: [K], the level each step leaves; `steps.t.n`.
  """
  figure = Figure(figsize=(9, 3.2), layout="constrained")
  left, right = figure.subplots(1, 2)
  for name, bound in bounds.items():
    terms = np.asarray(bound.terms.mean(0), float)
    paid = float(bound.prior.mean()) + np.cumsum(terms)
    left.semilogy(levels, np.maximum(terms, 1e-8), lw=1.2)
    right.plot(levels, paid, lw=1.2, label=f"{name}: {paid[-1]:.3f}")
  left.set(xlabel="level n", ylabel="bits/dim of the step", title="Terms of the bound")
  right.set(xlabel="level n", ylabel="bits/dim so far", title="Cumulative sum")
  right.legend(title="covariance", fontsize=8, title_fontsize=8)
  for axes in (left, right):
    axes.invert_xaxis()  # as sampling goes: noise on the left
    axes.grid(alpha=0.3)
  _save(figure, path)


def rate_distortion(bound: BitsPerDim, levels: np.ndarray, path: str | os.PathLike) -> None:
  """Distortion and rate over levels, and distortion over rate (DDPM figure 5)."""
  curve = likelihood.rate_distortion(bound)
  rate = "rate (bits/dim)"
  distortion = "distortion (RMSE, 0..255)"
  figure = Figure(figsize=(9.6, 3.0), layout="constrained")
  panels = figure.subplots(1, 3)
  panels[0].plot(levels, curve.rmse)
  panels[0].set(xlabel="level n", ylabel=distortion)
  panels[1].plot(levels, curve.rate)
  panels[1].set(xlabel="level n", ylabel=rate)
  panels[2].plot(curve.rate, curve.rmse)
  panels[2].set(xlabel=rate, ylabel=distortion)
  for axes in panels:
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
  for axes in panels[:2]:
    axes.invert_xaxis()
  figure.draw_without_rendering()  # so that the layout knows how wide the numbers at the axes are
  figure.suptitle("Progressive lossy compression", fontsize=11)
  _save(figure, path)


def side_by_side(images: dict[str, np.ndarray], path: str | os.PathLike, count: int = 64) -> None:
  """Grids of up to `count` images uint8 [N,H,W,C] next to each other, each under its title."""
  figure = Figure(figsize=(4.2 * len(images), 4.5), layout="constrained")
  places = figure.subplots(1, len(images), squeeze=False)[0]
  for place, (title, batch) in zip(places, images.items(), strict=True):
    place.imshow(pixels.grid(batch[:count]).squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    place.set_title(title)
    place.axis("off")
  _save(figure, path)


def training_curves(rows: Sequence[Mapping[str, float]], path: str | os.PathLike) -> None:
  """Loss, gradient norm and speed over steps; `rows` are the lines of metrics.jsonl."""
  labels = {"loss": "loss", "grad_norm": "gradient norm", "images_per_second": "images / s"}
  names = [name for name in labels if any(name in row for row in rows)]
  figure = Figure(figsize=(3.6 * len(names), 2.8), layout="constrained")
  panels = figure.subplots(1, len(names), squeeze=False)[0]
  for axes, name in zip(panels, names, strict=True):
    axes.plot(*zip(*((row["step"], row[name]) for row in rows if name in row), strict=True))
    axes.set(xlabel="step", title=labels[name], yscale="linear" if name == "images_per_second" else "log")
    axes.grid(alpha=0.3)
  _save(figure, path)


def nearest_neighbours(samples: np.ndarray, real: np.ndarray, path: str | os.PathLike, k: int = 8) -> None:
  """Each of `samples` beside the `k` images of `real` nearest to it in pixel space; both uint8 [., H, W, C]."""
  near = neighbours.nearest_pixels(samples, real, k)
  columns = ["sample", *(str(n + 1) for n in range(near.shape[1]))]
  image_table(np.concatenate([samples[:, None], near], 1), columns, path, "Samples and the real images nearest to them")


def image_table(images: np.ndarray, columns: Sequence[str], path: str | os.PathLike, title: str) -> None:
  """Rows of pictures uint8 [rows, columns, H, W, C] under the names of the columns."""
  rows, count, height, width, _ = images.shape
  scale = max(1, 256 // width)
  picture = pixels.grid(images.reshape(-1, *images.shape[2:]), count, scale=scale)
  figure = Figure(figsize=(0.7 * count, 0.7 * rows * height / width + 0.45), layout="constrained")
  axes = figure.subplots()
  axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
  axes.set_xticks(scale * ((width + 1) * np.arange(count) + width / 2), columns, fontsize=8)
  axes.set_yticks([])
  axes.tick_params(length=0, labeltop=True, labelbottom=False)
  axes.set_title(title, fontsize=10)
  for spine in axes.spines.values():
    spine.set_visible(False)
  _save(figure, path)


def _save(figure: Figure, path: str | os.PathLike) -> None:
  with writing(path) as temporary:
    figure.savefig(temporary, format="png", dpi=110)
