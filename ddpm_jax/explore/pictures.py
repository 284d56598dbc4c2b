"""What the page shows, as HTML. Pictures are inside of it, so that nothing is written to disk or served from there."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ddpm_jax.data import images as pixels
from ddpm_jax.explore import charts
from ddpm_jax.explore.charts import Line
from ddpm_jax.explore.drawing import Drawn

COLUMNS = 50  # steps of the way that are shown, evenly spaced if there are more
SIDE_BY_SIDE = 4  # images that share a row on every screen
THUMBNAIL = 64  # pixels of a picture of the way

STYLE = """
:root { --quiet: color-mix(in srgb, var(--body-text-color) 72%, transparent); }
.gradio-container { max-width: min(80rem, 100vw) !important; margin: 0 auto !important; }
.x { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; } .x p { margin: .2rem 0; }
.x h1 { font-size: 1.4rem; line-height: 1.3; margin: 0; } .x h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
.x h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; } .x .quiet, .x figcaption { color: var(--quiet); }
.x sub { color: inherit; font-weight: inherit; }
.x img { display: block; width: 100%; image-rendering: pixelated; background: #8883; border-radius: 3px; }
.x figure { margin: 0; } .x figcaption { font-size: .8rem; text-align: center; line-height: 1.6; }
.x .images { display: grid; grid-template-columns: repeat(auto-fill, minmax(4.4rem, 1fr)); gap: .4rem; max-width: 36rem; }
.x .images.few { grid-template-columns: repeat(4, 1fr); }
.x .numbers { font-size: .9rem; margin-top: .4rem; }
.x .way { display: grid; grid-auto-flow: column; grid-auto-columns: 3.5rem; justify-content: start; gap: .3rem; }
.x .way { overflow-x: auto; contain: inline-size; padding: .4rem 0 .5rem; }
.x .way img + img { margin-top: .3rem; } .x .way figure:first-child { width: 2rem; font-size: .9rem; }
.x .way figure:first-child div { height: 3.65rem; display: flex; align-items: center; }
.x .chart { max-width: 31rem; margin-top: .3rem; }
.x .chart svg { width: 100%; height: auto; font-size: 12px; fill: currentColor; }
.x .rule { stroke: currentColor; opacity: .15; }
.x .legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .85rem; } .x .legend b { font-weight: 500; }
.x .legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .35rem; }
.status { min-height: 1.8rem; margin: -.5rem 0; font-size: .85rem; }
.status progress { width: 100%; height: .4rem; display: block; }
"""


def picture(image: np.ndarray, name: str) -> str:
  """An image, uint8 [H,W,C]."""
  image = pixels.viewable(image)
  file = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
  return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def row(images: Sequence[np.ndarray], names: Sequence[str]) -> str:
  """Images side by side, each above its name."""
  figures = (
    f"<figure>{picture(image, name)}<figcaption>{html.escape(name)}</figcaption></figure>"
    for image, name in zip(images, names, strict=True)
  )
  few = " few" if len(images) <= SIDE_BY_SIDE else ""
  return f'<div class="images{few}">{"".join(figures)}</div>'


def block(content: str) -> str:
  """A part of the page with its style."""
  return f'<div class="x">{content}</div>'


def progress(text: str, share: float | None, seconds: float) -> str:
  """A bar, which moves to and fro where the share of the work that is done is not known."""
  value = "" if share is None else f' value="{share:.3f}"'
  return f"<div>{html.escape(text)} ({seconds:.0f} s)</div><progress{value}></progress>"


def drawn(found: Drawn, seeds: Sequence[int]) -> str:
  """Samples with their numbers."""
  compiled = ", of which most compiled the program" if found.compiled else ""
  numbers = (
    f"<b>{found.evaluations}</b> evaluations of the network per image. <b>{found.seconds:.2f} s</b> for "
    f"{len(found.images)} images{compiled}."
  )
  return block(row(found.images, [f"seed {seed}" for seed in seeds]) + f'<p class="numbers">{numbers}</p>')


def way(found: Drawn, seed: int) -> str:
  """The way of the first image from noise, the levels that it visits, and the variances of its steps."""
  K = len(found.levels)
  every = -(-K // COLUMNS)
  which = range(0, K, every)
  stride = -(-max(found.x0.shape[1:3]) // THUMBNAIL)
  columns = [
    f"<figure>{picture(found.x_t[k][::stride, ::stride], f'x at level {found.levels[k]}')}"
    f"{picture(found.x0[k][::stride, ::stride], f'belief at level {found.levels[k]}')}"
    f"<figcaption>{found.levels[k]}</figcaption></figure>"
    for k in which
  ]
  last = f"<figure>{picture(found.images[0][::stride, ::stride], 'the image')}<figcaption>0</figcaption></figure>"
  names = "<figure><div>x<sub>t</sub></div><div>x̂<sub>0</sub></div><figcaption>t</figcaption></figure>"
  some = f" Every {every}th of {K} steps." if every > 1 else ""
  T = len(found.alpha_bar) - 1
  levels = [
    Line("the schedule", np.arange(T + 1), found.alpha_bar),
    Line(f"{K} levels that are visited", found.levels, found.alpha_bar[found.levels], dots=True),
  ]
  return block(
    f"<h3>From noise to seed {seed}</h3><p class='quiet'>Above, x<sub>t</sub>. Below, what the network then believes about "
    f"the image: x̂₀ = (x<sub>t</sub> − σ<sub>t</sub> ε̂) / α<sub>t</sub> (DDPM, eq. 15).{some}</p>"
    f'<div class="way" tabindex="0">{names}{"".join(columns)}{last}</div>'
    f"<h3>Levels and variances</h3>{charts.chart(levels, 'level t', 'ᾱ, the share of the image', log=False)}"
    f"{_variances(found)}"
  )


def _variances(found: Drawn) -> str:
  """A chart of the variances of steps."""
  if not found.variances:
    return "<p class='quiet'>The steps of this solver have no covariance to choose.</p>"
  if not any(variance.any() for variance in found.variances.values()):
    return "<p class='quiet'>No step adds noise: the variance of each is 0 (η = 0, or a single step).</p>"
  lines = [Line(name, found.levels[: len(variance)], variance) for name, variance in found.variances.items()]
  return charts.chart(lines, "level t", "Variance of the step from t", log=True)
