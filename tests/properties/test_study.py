"""The study: cells are measured once, kept whole, and refused for other weights; tables have what was measured."""

import csv
import json

import pytest
from PIL import Image

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import study_tables
from ddpm_jax.jobs import results
from ddpm_jax.jobs.methods import AXES, Method, cells, known, papers_methods

EVERY = {"plain": None, "npr": "residual", "sn": "second_moment", "learned": "range"}
CELLS = cells(papers_methods(), [10, 25], trajectories=["even", "optimal"])
BITS = study_tables.PANELS["bits_per_dim"]


def measure(calls, fail_at=None):
  def bits(cell):
    calls.append(cell)
    if len(calls) == fail_at:
      raise KeyboardInterrupt
    return {"mean": cell.K / 10, "standard_error": 0.25, "seconds": 1.0} if cell.has_bound else None

  return {"bits_per_dim": bits}


def test_the_papers_methods():
  assert len(CELLS) == 2 * (7 + 3)  # a network without a second head, and three best trajectories
  by_name = {method.name: method for method in papers_methods(ddpm_cap=1.0)}
  assert by_name["NPR-DDPM"].sampling["cap_pixels"] == 1.0
  assert by_name["DDPM-small"].sampling["cap_pixels"] is None
  all_of_them = {cell.method.name: cell for cell in cells(papers_methods(), [10], networks=EVERY)}
  assert len(all_of_them) == 12
  bounded = {name for name, cell in all_of_them.items() if cell.has_bound}
  assert {name for name in all_of_them if name.endswith("DDPM") or "DDPM-" in name} == bounded
  assert all(cell.method.sampling["keep_eps"] != cell.has_bound for cell in all_of_them.values())


def test_a_network_serves_the_methods_of_its_second_head():
  of = {label: set() for label in EVERY}
  for cell in cells(papers_methods(), [10], networks=EVERY):
    of[cell.network].add(cell.method.name)
  assert of["npr"] == {"NPR-DDPM", "NPR-DDIM"}
  assert of["sn"] == {"SN-DDPM", "SN-DDIM"}
  assert of["learned"] - of["plain"] == {"Learned-DDPM"}


def test_axes_span_what_is_defined():
  chosen = [method for method in papers_methods() if method.name in ("DDPM-small", "DDPM-large")]
  found = cells(chosen, [10], axes={"eta": [0.0, 1.0], "guidance": [2.0]})
  assert [(cell.method.name, dict(cell.settings)["eta"]) for cell in found] == [
    ("DDPM-small", 0.0),
    ("DDPM-small", 1.0),
    ("DDPM-large", 1.0),  # beta belongs to eta = 1
  ]
  assert found[0].sampling["guidance"] == {"scale": 2.0}
  assert not any(cell.has_bound for cell in found)  # a guided chain has no bound
  assert len({cell.file for cell in found}) == 3
  with pytest.raises(UserError, match="Axis 'etta' is unknown; did you mean 'eta'"):
    cells(chosen, [10], axes={"etta": [0.0]})
  assert [axis.parse("1") for axis in AXES.values()] == [1.0, "1", 1.0, 1.0]


def test_samplers_are_methods():
  chosen = known(["DDPM-small", "dpm++2m", "ddim"], papers_methods())
  assert [method.name for method in chosen] == ["DDPM-small", "dpm++2m", "ddim"]
  assert chosen[1].sampling["solver"] == "dpm++2m"
  assert chosen[1].sampling["grid"] == "log_snr"
  (cell,) = cells(chosen[2:], [7])
  assert cell.sampling["eta"] == 0
  assert cell.sampling["steps"] == 7
  with pytest.raises(UserError, match="Method 'dimm' is unknown; did you mean 'ddim'"):
    known(["dimm"], papers_methods())


def test_file_names_of_plain_studies_stay():
  (cell,) = cells([Method("DDIM", {"eta": 0.0})], [10])
  assert cell.file == "DDIM_even_10.json"
  (other,) = cells([Method("my method", {"eta": 0.0})], [10], networks={"a/b": None}, axes={"grid": ["10,20"]})
  assert other.file == "a-b_my-method_even_10_grid10-20.json"


def test_a_stopped_study_goes_on(tmp_path):
  calls = []
  with pytest.raises(KeyboardInterrupt):
    results.measure_all(CELLS, measure(calls, fail_at=5), tmp_path, {"step": 1})
  results.measure_all(CELLS, measure(calls), tmp_path, {"step": 1})
  assert len(calls) == len(CELLS) + 1  # only the cell at which it was stopped, again
  found = results.measure_all(CELLS, measure(calls, fail_at=len(calls) + 1), tmp_path, {"step": 1})
  assert len(found) == len(CELLS)
  assert {path.suffix for path in tmp_path.iterdir()} == {".json"}


def test_an_interrupted_study_leaves_its_tables(tmp_path):
  after = lambda found: results.write_tables(found, [BITS], tmp_path)
  with pytest.raises(KeyboardInterrupt):
    results.measure_all(CELLS, measure([], fail_at=3), tmp_path, {}, after=after)
  assert "| DDPM-large | 1.00 ± 0.25 |" in (tmp_path / "study.md").read_text()


def test_another_measure_is_added_to_what_is_there(tmp_path):
  results.measure_all(CELLS[:2], measure([]), tmp_path, {})
  found = results.measure_all(CELLS[:2], {"distance": lambda cell: {"samples": 1.5}}, tmp_path, {})
  assert all(result["bits_per_dim"]["mean"] == 1 and result["distance"]["samples"] == 1.5 for result in found)


def test_a_study_of_other_weights_is_refused(tmp_path):
  results.measure_all(CELLS[:1], measure([]), tmp_path, {"step": 1})
  with pytest.raises(UserError, match="step is 1 there and 2 here; choose another --out"):
    results.measure_all(CELLS[:1], measure([]), tmp_path, {"step": 2})


def test_tables_leave_out_what_has_no_number(tmp_path):
  lines = []
  found = results.measure_all(CELLS, measure([]), tmp_path, {}, report=lines.append)
  assert lines[0] == "DDPM-small, K = 10: bits/dim 1.00 ± 0.25 (1 s)"
  table = study_tables.markdown(found, BITS).splitlines()
  assert table[0] == "| K | 10 | 25 |"
  assert table[2] == "| DDPM-small | 1.00 ± 0.25 | 2.50 ± 0.25 |"
  assert "| DDPM-large, optimal trajectory | 1.00 ± 0.25 | 2.50 ± 0.25 |" in table
  assert len(table) == 2 + 4 + 3  # no DDIM
  rows = list(csv.DictReader(study_tables.as_csv(found).splitlines()))
  assert rows[0]["method"] == "DDPM-small"
  assert float(rows[0]["bits_per_dim.mean"]) == 1
  assert r"DDPM-small & 1.00 $\pm$ 0.25 & 2.50 $\pm$ 0.25 \\" in study_tables.latex(found, BITS)
  assert json.loads((tmp_path / "DDIM_even_10.json").read_text())["bits_per_dim"] is None


def results_of_scales():
  """Distances over guidance scales, for eleven methods at one K."""
  for method in range(11):
    for scale in (0.0, 1.0, 4.0):
      quality = {"precision": 0.5 + scale / 10, "recall": 0.9 - scale / 10, "real_precision": 0.9, "real_recall": 0.9}
      yield {
        "row": f"method {method}",
        "K": 10,
        "settings": {"guidance": scale},
        "distance": {"samples": 2.0 + scale + method / 9, "spread": 0.1, "real": 1.5},
        "quality": quality,
      }


def test_axes_and_real_images_are_rows_of_a_table():
  found = list(results_of_scales())
  table = study_tables.markdown(found, study_tables.PANELS["distance"]).splitlines()
  assert table[2] == "| method 0, guidance 0.0 | 2.00 ± 0.10 |"
  assert table[-1] == "| real images | 1.50 |"


def test_a_figure_has_ticks_and_a_style_per_curve(tmp_path):
  found = list(results_of_scales())
  panels = [study_tables.PANELS[name] for name in ("distance", "precision", "recall")]
  styles = [tuple(sorted(style.items())) for style, _ in zip(study_tables.styles(), range(90), strict=False)]
  assert len(set(styles)) == 90
  figure = study_tables.figure_of(found, panels, x="guidance")
  figure.draw_without_rendering()
  assert len(figure.axes) == 4  # precision over recall as well
  for axes in figure.axes:
    assert any(label.get_text() for label in axes.get_yticklabels())
  study_tables.plot(found, panels, tmp_path / "study.png", x="guidance")
  with Image.open(tmp_path / "study.png") as picture:
    assert picture.size[0] > 1500
