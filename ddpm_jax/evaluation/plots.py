"""Figures, drawn without a screen. Every function writes one PNG, whole or not at all."""

import os
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from ddpm_jax.data import images as pixels
from ddpm_jax.data.atomic import writing
from ddpm_jax.diffusion.likelihood import BitsPerDim, rate_distortion
from ddpm_jax.evaluation import neighbours


def bound_terms(bound: BitsPerDim, levels: np.ndarray, path: str | os.PathLike) -> None:
  """Where the bits go: each step's term over the level it leaves, and what is paid down to it (IDDPM figure 2).

  Args:
    bound: leaves [B, K].
    levels: [K], the level each step leaves; `steps.t.n`.
  """
  terms = np.asarray(bound.terms.mean(0), float)
  paid = float(bound.prior.mean()) + np.cumsum(terms)
  figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
  left.semilogy(levels, np.maximum(terms, 1e-8))
  left.set(xlabel="level n", ylabel="bits/dim of the step", title="Terms of the bound")
  right.plot(levels, paid)
  right.set(xlabel="level n", ylabel="bits/dim paid so far", title=f"Total {paid[-1]:.3f} bits/dim")
  for axes in (left, right):
    axes.invert_xaxis()  # as sampling goes: noise on the left
    axes.grid(alpha=0.3)
  _save(figure, path)


def rate_distortion_curve(bound: BitsPerDim, path: str | os.PathLike) -> None:
  """Distortion over rate (DDPM figure 5, right)."""
  curve = rate_distortion(bound)
  figure, axes = plt.subplots(figsize=(4.2, 3.2), layout="constrained")
  axes.plot(curve.rate, curve.rmse)
  axes.set(xlabel="rate (bits/dim)", ylabel="distortion (RMSE, 0..255)", title="Progressive lossy compression")
  axes.grid(alpha=0.3)
  _save(figure, path)


def side_by_side(images: dict[str, np.ndarray], path: str | os.PathLike, count: int = 64) -> None:
  """Grids of up to `count` images uint8 [N,H,W,C] next to each other, each under its title."""
  figure, axes = plt.subplots(1, len(images), figsize=(4.2 * len(images), 4.5), layout="constrained", squeeze=False)
  for place, (title, batch) in zip(axes[0], images.items(), strict=True):
    place.imshow(pixels.grid(batch[:count]).squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    place.set_title(title)
    place.axis("off")
  _save(figure, path)


def training_curves(rows: Sequence[Mapping[str, float]], path: str | os.PathLike) -> None:
  """Loss, gradient norm and speed over steps; `rows` are the lines of metrics.jsonl."""
  labels = {"loss": "loss", "grad_norm": "gradient norm", "images_per_second": "images / s"}
  names = [name for name in labels if any(name in row for row in rows)]
  figure, panels = plt.subplots(1, len(names), figsize=(3.6 * len(names), 2.8), layout="constrained", squeeze=False)
  for axes, name in zip(panels[0], names, strict=True):
    axes.plot(*zip(*((row["step"], row[name]) for row in rows if name in row), strict=True))
    axes.set(xlabel="step", title=labels[name], yscale="linear" if name == "images_per_second" else "log")
    axes.grid(alpha=0.3)
  _save(figure, path)


def nearest_neighbours(samples: np.ndarray, real: np.ndarray, path: str | os.PathLike, k: int = 8) -> None:
  """Each of `samples` at the left of the `k` images of `real` most like it, pixel by pixel; both uint8 [., H, W, C]."""
  near = neighbours.nearest_pixels(samples, real, k)
  picture = pixels.grid(np.concatenate([samples[:, None], near], 1).reshape(-1, *samples.shape[1:]), k + 1)
  figure, axes = plt.subplots(figsize=(4.2, 0.4 + 4.2 * len(picture) / picture.shape[1]), layout="constrained")
  axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
  axes.axvline(samples.shape[2], color="tab:red", linewidth=1)
  axes.set_title("samples | nearest real images")
  axes.axis("off")
  _save(figure, path)


def _save(figure, path: str | os.PathLike) -> None:
  with writing(path) as temporary:
    figure.savefig(temporary, format="png", dpi=110)
  plt.close(figure)
