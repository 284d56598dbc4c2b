"""The study: cells are measured once, kept whole, and refused for other weights; tables have what was measured."""

import json

import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.jobs import study

CELLS = study.cells(study.methods(), [10, 25], ["even", "optimal"])


def measure(calls, fail_at=None):
  def bits(cell):
    calls.append(cell)
    if len(calls) == fail_at:
      raise KeyboardInterrupt
    return {"mean": cell.K / 10} if cell.method.has_bound else None

  return {"bits": bits}


def test_the_papers_methods(tmp_path):
  assert len(CELLS) == 2 * (11 + 3)
  by_name = {method.name: method for method in study.methods(ddpm_cap=1.0)}
  assert by_name["NPR-DDPM"].sampling["cap_pixels"] == 1.0 and by_name["DDPM-small"].sampling["cap_pixels"] is None
  assert [name for name, method in by_name.items() if not method.has_bound] == [
    "DDIM",
    "Analytic-DDIM",
    "Residual-DDIM",
    "NPR-DDIM",
    "SN-DDIM",
  ]
  assert all(method.sampling["keep_eps"] != method.has_bound for method in by_name.values())


def test_a_stopped_study_goes_on(tmp_path):
  calls = []
  with pytest.raises(KeyboardInterrupt):
    study.run(CELLS, measure(calls, fail_at=5), tmp_path, {"step": 1})
  study.run(CELLS, measure(calls), tmp_path, {"step": 1})
  assert len(calls) == len(CELLS) + 1  # only the cell at which it was stopped, again
  results = study.run(CELLS, measure(calls, fail_at=len(calls) + 1), tmp_path, {"step": 1})
  assert len(results) == len(CELLS) and {path.suffix for path in tmp_path.iterdir()} == {".json"}


def test_another_measure_is_added_to_what_is_there(tmp_path):
  study.run(CELLS[:2], measure([]), tmp_path, {})
  results = study.run(CELLS[:2], {"distance": lambda cell: {"samples": 1.5}}, tmp_path, {})
  assert all(result["bits"]["mean"] == 1 and result["distance"]["samples"] == 1.5 for result in results)


def test_a_study_of_other_weights_is_refused(tmp_path):
  study.run(CELLS[:1], measure([]), tmp_path, {"step": 1})
  with pytest.raises(UserError, match="step is 1 there and 2 here; choose another --out"):
    study.run(CELLS[:1], measure([]), tmp_path, {"step": 2})


def test_tables_leave_out_what_has_no_number(tmp_path):
  results = study.run(CELLS, measure([]), tmp_path, {})
  lines = study.table(results, "bits", "mean").splitlines()
  assert lines[0] == "| K | 10 | 25 |" and lines[2] == "| DDPM-small | 1.00 | 2.50 |"
  assert "| DDPM-large, optimal trajectory | 1.00 | 2.50 |" in lines
  assert len(lines) == 2 + 6 + 3  # no DDIM
  study.plot(results, {"bits": ("mean", "bits/dim")}, tmp_path / "plot.png")
  assert (tmp_path / "plot.png").stat().st_size > 1000
  assert json.loads((tmp_path / "DDIM_even_10.json").read_text())["bits"] is None
