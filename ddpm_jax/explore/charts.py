"""Line charts as inline SVG: they follow the page's colors and width, and need no file."""

import dataclasses
import html
from collections.abc import Sequence

import numpy as np

COLORS = ("#4477aa", "#cc6633", "#228855", "#aa4499", "#997700")  # told apart by color-blind readers too
WIDTH = 440
HEIGHT = 210
LEFT = 46  # margins
RIGHT = 8
TOP = 10
BOTTOM = 34


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a chart.

  Attributes:
    name: for the legend. "": none.
    x, y: [N] coordinates.
    dots: draws a dot at every point, and no line.
  """

  name: str
  x: np.ndarray
  y: np.ndarray
  dots: bool = False


def chart(lines: Sequence[Line], x_label: str, y_label: str, *, log: bool = False) -> str:
  """A chart of `lines` over x from 0; those without points are only in the legend.

  Args:
    log: whether y is logarithmic. Values below the smallest decade that is shown, such as 0, lie on its edge.
  """
  right = max(float(line.x.max(initial=1)) for line in lines)
  ticks = _decades(lines) if log else [0.0, 0.25, 0.5, 0.75, 1.0]
  scale = lambda y: np.log10(np.maximum(y, ticks[0])) if log else np.asarray(y)
  low, high = (float(scale(ticks[end])) for end in (0, -1))
  place_x = lambda x: LEFT + (WIDTH - LEFT - RIGHT) * np.asarray(x) / right
  place_y = lambda y: TOP + (HEIGHT - TOP - BOTTOM) * (1 - (np.clip(scale(y), low, high) - low) / (high - low))
  parts = []
  for tick in ticks:
    y = float(place_y(tick))
    name = f"10{_superscript(round(np.log10(tick)))}" if log else f"{tick:g}"
    parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
  for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
    x = float(place_x(share * right))
    parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{share * right:g}</text>')
  parts.append(
    f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(x_label)}</text>'
  )
  for number, line in enumerate(lines):
    color = COLORS[number % len(COLORS)]
    points = list(zip(place_x(line.x), place_y(line.y), strict=True))
    if line.dots:
      parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in points]
    else:
      path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
      parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
  legend = "".join(
    f'<span><i style="background:{COLORS[number % len(COLORS)]}"></i>{html.escape(line.name)}</span>'
    for number, line in enumerate(lines)
    if line.name
  )
  svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y_label)}">{"".join(parts)}</svg>'
  return f'<div class="chart"><div class="legend"><b>{html.escape(y_label)}</b>{legend}</div>{svg}</div>'


def _decades(lines: Sequence[Line]) -> list[float]:
  """Powers of ten around all positive values: at least two, at most six of the uppermost."""
  values = np.concatenate([line.y for line in lines])
  values = values[values > 0]
  high = int(np.ceil(np.log10(values.max()))) if len(values) else 0
  low = int(np.floor(np.log10(values.min()))) if len(values) else -1
  return [10.0**power for power in range(max(min(low, high - 1), high - 5), high + 1)]


def _superscript(number: int) -> str:
  return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
