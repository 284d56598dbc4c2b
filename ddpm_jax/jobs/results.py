"""Results of a study on disk: a small JSON file per cell, and the tables made of them."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import study_tables as tables
from ddpm_jax.files.atomic import writing
from ddpm_jax.files.tables import as_json, read_json
from ddpm_jax.jobs.methods import Cell

Measure = Callable[[Cell], Mapping[str, Any] | None]  # JSON-able results; None where the measure does not apply


def measure_all(
  cells: Sequence[Cell],
  measures: Mapping[str, Measure],
  folder: str | os.PathLike,
  identity: Mapping[str, Any],
  *,
  report: Callable[[str], None] = lambda line: None,
  after: Callable[[list[dict]], None] = lambda results: None,
) -> list[dict]:
  """The results of every cell; each is measured once and kept in a JSON file of `folder`.

  Args:
    identity: kept in every file; a file with another one is refused.
    report: called with one line per new result.
    after: called with all results so far after every cell that was measured.

  Returns:
    For each cell a dict with "row", "method", "trajectory", "K", "settings", and the results by name of the measure.

  Raises:
    UserError: if the folder holds results of something else.
  """
  folder = pathlib.Path(folder)
  identity = as_json(identity)
  results = []
  for cell in cells:
    path = folder / cell.file
    result = _kept(path, identity)
    result |= {
      "row": cell.row,
      "method": cell.method.name,
      "network": cell.network,
      "trajectory": cell.trajectory,
      "K": cell.K,
      "settings": dict(cell.settings),
    }
    results.append(result)
    missing = {name: measure for name, measure in measures.items() if name not in result}
    for name, measure in missing.items():
      result[name] = measure(cell)
      with writing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1))
      if result[name] is not None:
        report(_line(cell, name, result[name]))
    if missing:
      after(results)
  after(results)
  return results


def _kept(path: pathlib.Path, identity: Mapping[str, Any]) -> dict:
  """What a cell's file holds.

  Raises:
    UserError: if it is of something else.
  """
  if not path.exists():
    return {"identity": identity}
  kept = read_json(path)
  old = kept.get("identity")
  if not isinstance(old, dict):
    raise UserError(f"{path} is not a result of a study: remove it, or choose another --out.")
  if old != identity:
    key = next(key for key in {**old, **identity} if old.get(key) != identity.get(key))
    raise UserError(
      f"{path.parent} holds a study of something else: {key} is {old.get(key)} there and {identity.get(key)} here; "
      "choose another --out."
    )
  return kept


def _line(cell: Cell, measure: str, found: Mapping[str, Any]) -> str:
  """One result for the terminal."""
  words = [f"K = {cell.K}", *(f"{name} {value}" for name, value in cell.settings)]
  panels = [panel for panel in tables.PANELS.values() if panel.measure == measure and panel.value in found]
  numbers = [f"{panel.label} {panel.show({measure: found})}" for panel in panels]
  return f"{cell.row}, {', '.join(words)}: {', '.join(numbers)} ({found.get('seconds', 0):.0f} s)"


def write_tables(results: Sequence[Mapping[str, Any]], panels: Sequence[tables.Panel], folder: str | os.PathLike) -> None:
  """Writes study.md, study.csv, and study.tex."""
  parts = {
    "study.md": "\n\n".join(f"{panel.label}\n\n{tables.markdown(results, panel)}" for panel in panels) + "\n",
    "study.tex": "\n\n".join(tables.latex(results, panel) for panel in panels) + "\n",
    "study.csv": tables.as_csv(results),
  }
  for name, text in parts.items():
    with writing(pathlib.Path(folder) / name) as temporary:
      temporary.write_text(text)
