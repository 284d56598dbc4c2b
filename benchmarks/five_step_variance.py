"""Five sampling steps, three covariances, and data whose exact denoiser is known: the figure of the README.

    python benchmarks/five_step_variance.py        # half a minute on a CPU; writes benchmarks/figures/five_step_variance.png

Left, Gaussian pixels of many standard deviations: what comes out after 5 of 1000 levels. DDPM's posterior variance ("fixed
small") makes too little of it, beta ("fixed large") too much, and the optimal covariance the right amount, from moments that
are estimated here as for any network. Right, pixels of two kinds: again only the optimal covariance has the data's variance
(printed: 0.99 of it; 0.16 and 2.6 for the fixed ones); for the shape five Gaussian steps are too few.
"""

import pathlib

import jax
import numpy as np
from matplotlib.figure import Figure

from ddpm_jax.diffusion import grid, moments, noise, schedule, steps
from ddpm_jax.diffusion.covariance import Optimal, marginal, posterior
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.transforms import AnalyticMoments

T = 1000
K = 5
IMAGES = 4000
SHAPE = (4, 4, 1)
LEVELS = schedule.linear(T)
VISITED = grid.uniform(T, K)
METHODS = {  # label: covariance, color
  "optimal (Analytic-DPM)": (Optimal(), "#1b7837"),
  "fixed small": (posterior, "#2166ac"),
  "fixed large": (marginal, "#b2182b"),
}


def draw(data: Mixture) -> dict[str, np.ndarray]:
  """Pixels that each covariance makes of noise in five steps."""
  x_0 = data.sample(jax.random.key(0), (IMAGES, *SHAPE))
  *_, found = moments.estimate(LEVELS, data, [(x_0, None)], levels=VISITED[:-1], chunk=K)
  denoiser = AnalyticMoments(data, found.gamma(T, residual=True).astype(np.float32))
  keys = noise.image_keys(np.arange(IMAGES))
  x_T = noise.PerImage(keys).initial(SHAPE)
  table = steps.gaussian(LEVELS, VISITED)
  return {
    label: np.asarray(sample(keys, denoiser, GaussianSampler(table, ReverseKernel(covariance)), x_T)[0]).ravel()
    for label, (covariance, _) in METHODS.items()
  }


def density(data: Mixture, x: np.ndarray) -> np.ndarray:
  """Of a pixel of the data."""
  parts = zip(data.weight, data.mean, data.var, strict=True)
  return sum(w * np.exp(-((x - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v) for w, m, v in parts)


def main() -> None:
  figure = Figure(figsize=(10, 4.1), layout="constrained")
  left, right = figure.subplots(1, 2)

  stds = np.geomspace(0.05, 1, 12)
  made = [draw(Mixture(np.float32([1]), np.float32([0]), np.float32([std**2]))) for std in stds]
  left.plot(stds, stds, color="black", lw=5, alpha=0.15, label="the data")
  for label, (_, color) in METHODS.items():
    found = np.array([pixels[label].std() for pixels in made])
    left.plot(stds, found, "o-", ms=4, lw=1.5, color=color, label=label)
    print(f"{label}: standard deviation of samples / of data {(found / stds).min():.3f} ... {(found / stds).max():.3f}")
  left.set(
    xscale="log",
    yscale="log",
    xlabel="standard deviation of the data",
    ylabel="standard deviation of the samples",
    title=f"Gaussian pixels, {K} of {T} steps",
  )
  ticks = [0.05, 0.1, 0.2, 0.5, 1]
  left.set_xticks(ticks, map(str, ticks))
  left.set_yticks(ticks, map(str, ticks))
  left.minorticks_off()

  data = Mixture(np.float32([0.35, 0.65]), np.float32([-0.5, 0.4]), np.float32([0.01, 0.02]))
  x = np.linspace(-1.3, 1.3, 400)
  right.fill_between(x, density(data, x), color="black", alpha=0.12, lw=0, label="the data")
  for (label, (_, color)), pixels in zip(METHODS.items(), draw(data).values(), strict=True):
    heights, edges = np.histogram(pixels, bins=np.linspace(-1.3, 1.3, 90), density=True)
    right.plot((edges[1:] + edges[:-1]) / 2, heights, lw=1.5, color=color, label=label)
    print(f"{label}, two kinds of pixels: variance of samples / of data {pixels.var() / data.data_var:.3f}")
  right.set(xlabel="pixel value", ylabel="density", title=f"Pixels of two kinds, {K} of {T} steps", xlim=(-1.3, 1.3))

  for axes in (left, right):
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
  path = pathlib.Path(__file__).parent / "figures" / "five_step_variance.png"
  path.parent.mkdir(exist_ok=True)
  figure.savefig(path, dpi=90)
  print(f"Wrote {path}")


if __name__ == "__main__":
  main()
