"""Results of a study as Markdown, CSV, LaTeX, and a figure.

A result is a dict with "row" (text), "K", the axes by name, and a dict of numbers for each measure. Where a measure has a
"standard_error" or "spread", tables show it after a ±.
"""

import csv
import dataclasses
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ddpm_jax.files.atomic import writing

REAL = "real images"


@dataclasses.dataclass(frozen=True)
class Panel:
  """One measure in tables and figures.

  Attributes:
    measure: its key in a result.
    value: the number in it.
    error: the key of its uncertainty, or None.
    label: with units.
    digits: after the decimal point.
    real: the key of the value that real images have, or None.
  """

  measure: str
  value: str
  label: str
  error: str | None = None
  digits: int = 2
  real: str | None = None

  def of(self, result: Mapping[str, Any]) -> float | None:
    """The number of a result, or None where the measure does not apply or is not measured yet."""
    found = result.get(self.measure)
    return None if not found else found.get(self.value)

  def show(self, result: Mapping[str, Any]) -> str:
    """The number with its uncertainty, or an empty text."""
    value = self.of(result)
    if value is None:
      return ""
    error = result[self.measure].get(self.error) if self.error else None
    return f"{value:.{self.digits}f}" + ("" if error is None else f" ± {error:.{self.digits}f}")


PANELS = {
  "bits_per_dim": Panel("bits_per_dim", "mean", "bits/dim", "standard_error"),
  "distance": Panel("distance", "samples", "Fréchet distance", "spread", real="real"),
  "inception_score": Panel("quality", "inception_score", "Inception score", real="real_inception_score"),
  "precision": Panel("quality", "precision", "precision", real="real_precision"),
  "recall": Panel("quality", "recall", "recall", real="real_recall"),
}


def names_of_axes(results: Sequence[Mapping[str, Any]]) -> list[str]:
  """The axes of which the results have more than one value."""
  found = [dict(result.get("settings", {})) for result in results]
  names = dict.fromkeys(name for settings in found for name in settings)
  return [name for name in names if len({settings.get(name) for settings in found}) > 1]


def rows(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
  """{row: {K: result}}, K ascending; a row is a method with one value of every axis."""
  names = names_of_axes(results)
  found: dict[str, dict[int, Mapping[str, Any]]] = {}
  for result in sorted(results, key=lambda result: result["K"]):
    settings = dict(result.get("settings", {}))
    row = ", ".join([result["row"], *(f"{name} {settings[name]}" for name in names if name in settings)])
    found.setdefault(row, {})[result["K"]] = result
  return found


def _cells(results: Sequence[Mapping[str, Any]], panel: Panel) -> tuple[list[int], list[tuple[str, list[str]]]]:
  """(Ks, [(row, a text per K)]) with real images as the last row."""
  measured = [result for result in results if panel.of(result) is not None]
  Ks = sorted({result["K"] for result in measured})
  lines = [(row, [panel.show(of[K]) if K in of else "" for K in Ks]) for row, of in rows(measured).items()]
  if panel.real and measured and (real := measured[0][panel.measure].get(panel.real)) is not None:
    lines.append((REAL, [f"{real:.{panel.digits}f}"] * len(Ks)))
  return Ks, lines


def markdown(results: Sequence[Mapping[str, Any]], panel: Panel) -> str:
  """A Markdown table: a row per method and setting, a column per number of steps."""
  Ks, lines = _cells(results, panel)
  head = ["| K | " + " | ".join(map(str, Ks)) + " |", "|---" * (len(Ks) + 1) + "|"]
  return "\n".join(head + [f"| {row} | " + " | ".join(cells) + " |" for row, cells in lines])


def latex(results: Sequence[Mapping[str, Any]], panel: Panel) -> str:
  r"""A LaTeX tabular of the same table, for \usepackage{booktabs}."""
  Ks, lines = _cells(results, panel)
  escape = lambda text: text.replace("_", r"\_").replace("%", r"\%").replace("±", r"$\pm$")
  body = [" & ".join([escape(row), *(escape(cell) or "--" for cell in cells)]) + r" \\" for row, cells in lines]
  head = " & ".join([escape(panel.label), *(f"$K={K}$" for K in Ks)]) + r" \\"
  columns = "l" + "r" * len(Ks)
  return "\n".join(
    [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
  )


def as_csv(results: Sequence[Mapping[str, Any]]) -> str:
  """All numbers, one line per cell."""
  axes = names_of_axes(results)
  numbers = [
    {
      f"{measure}.{key}": value
      for measure, found in result.items()
      if isinstance(found, Mapping) and measure not in ("identity", "settings")
      for key, value in found.items()
      if isinstance(value, int | float)
    }
    for result in results
  ]
  columns = list(dict.fromkeys(key for row in numbers for key in row))
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["method", "K", *axes, *columns])
  for result, row in zip(results, numbers, strict=True):
    settings = dict(result.get("settings", {}))
    writer.writerow([result["row"], result["K"], *(settings.get(a) for a in axes), *(row.get(c, "") for c in columns)])
  return text.getvalue()


def plot(
  results: Sequence[Mapping[str, Any]], panels: Sequence[Panel], path: str | os.PathLike, title: str = "", x: str = "K"
) -> None:
  """Writes `figure_of` as a PNG."""
  figure = figure_of(results, panels, title, x)
  with writing(path) as temporary:
    figure.savefig(temporary, format="png", dpi=110)


def figure_of(results: Sequence[Mapping[str, Any]], panels: Sequence[Panel], title: str = "", x: str = "K") -> Any:
  """A figure with a panel per measure, and curves over the number of steps or over an axis.

  Args:
    x: "K", or the name of an axis with numbers.
  """
  from matplotlib.figure import Figure

  both = {panel.value: panel for panel in panels if panel.value in ("precision", "recall")}
  count = len(panels) + (len(both) == 2)
  figure = Figure(figsize=(5.2 * count, 4.2), layout="constrained")
  places = list(figure.subplots(1, count, squeeze=False)[0])
  curves = _curves(results, x)
  style_of = dict(zip(curves, styles(), strict=False))
  for axes, panel in zip(places, panels, strict=False):
    for name, points in curves.items():
      line = [(at, panel.of(result), result) for at, result in points if panel.of(result) is not None]
      if line:
        errors = [result[panel.measure].get(panel.error) or 0.0 if panel.error else 0.0 for _, _, result in line]
        axes.errorbar([at for at, _, _ in line], [y for _, y, _ in line], errors, ms=4, lw=1.2, label=name, **style_of[name])
    known = [result[panel.measure].get(panel.real) for result in results if panel.real and panel.of(result) is not None]
    if known and known[0] is not None:
      axes.axhline(known[0], color="gray", ls=":", lw=1, label=REAL)
    axes.set(xlabel="steps K" if x == "K" else x, ylabel=panel.label)
    if x == "K":
      axes.set_xscale("log")
      ticks = sorted({result["K"] for result in results})
      axes.set_xticks(ticks, map(str, ticks))
      axes.minorticks_off()
    _readable_scale(axes, panel)
  if len(both) == 2:
    axes = places[-1]
    for name, points in curves.items():
      known = [result for _, result in points if both["recall"].of(result) is not None]
      if known:
        axes.plot(
          [both["recall"].of(r) for r in known],
          [both["precision"].of(r) for r in known],
          ms=4,
          lw=1.2,
          label=name,
          **style_of[name],
        )
    axes.set(xlabel="recall", ylabel="precision")
  for axes in places:
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
      axes.legend(fontsize=7)
  figure.suptitle(title)
  return figure


def _curves(results: Sequence[Mapping[str, Any]], x: str) -> dict[str, list[tuple[float, Mapping[str, Any]]]]:
  """{name of a curve: [(place on the x axis, result)]}, places ascending."""
  axes = [name for name in names_of_axes(results) if name != x]
  several = len({result["K"] for result in results}) > 1
  found: dict[str, list] = {}
  for result in results:
    settings = dict(result.get("settings", {}))
    words = [result["row"], *(f"{name} {settings[name]}" for name in axes if name in settings)]
    if x != "K" and several:
      words.append(f"K = {result['K']}")
    place = result["K"] if x == "K" else settings.get(x)
    if place is not None:
      found.setdefault(", ".join(words), []).append((place, result))
  return {name: sorted(points, key=lambda point: point[0]) for name, points in found.items()}


def styles():
  """Distinct colors first, then the same colors with other lines and markers."""
  lines = itertools.product(("-", "--", ":"), ("o", "s", "^"))
  for (line, marker), offset in zip(lines, itertools.count(), strict=False):
    for color in range(10):
      yield {"color": f"C{(color + offset) % 10}", "linestyle": line, "marker": marker}


def _readable_scale(axes, panel: Panel) -> None:
  """A logarithmic axis only where values span more than a decade, so that ticks always have labels."""
  low, high = axes.dataLim.intervaly
  if panel.value == "samples" and low > 0 and high / low > 10:
    axes.set_yscale("log")
