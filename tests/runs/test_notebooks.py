"""The lessons in launch/colab run from top to bottom: their own cells, with smaller numbers in the one of parameters.

Compiling five lessons takes minutes on a busy CPU, so that a run of the suite takes the first one, and all of them where
DDPM_JAX_NOTEBOOKS=all is set. `launch/colab/run.sh` runs them in full, in a fresh environment, and stores their outputs.
"""

import ast
import json
import os
import pathlib
import re
import types

import jax
import matplotlib.pyplot as plt
import pytest

ROOT = pathlib.Path(__file__).parents[2]
COLAB = ROOT / "launch" / "colab"
TINY = dict(CONFIG=str(pathlib.Path(__file__).parents[1] / "programs" / "lesson_config.py"), CHANNELS=8)
JUDGE = dict(steps=10, num_features=4)
SHORT = {
  "1_tour": dict(DEVIATIONS=2, IMAGES=1000, STEPS=10),
  "2_train_and_sample": dict(TINY, TRAIN_STEPS=2, IMAGES=8, STEP_COUNTS=(2, 3), JUDGE=JUDGE),
  "3_guidance": dict(TINY, TRAIN_STEPS=2, CLASSIFIER_STEPS=50, STEPS=3, IMAGES=10, JUDGE=JUDGE),
  "4_covariance": dict(
    TINY,
    TRAIN_STEPS=2,
    HEAD_STEPS=2,
    MOMENT_IMAGES=16,
    MOMENT_LEVELS=5,
    IMAGES=8,
    TEST_IMAGES=8,
    STEP_COUNTS=(3,),
    JUDGE=JUDGE,
  ),
  "5_published_weights": dict(
    FETCH=False,
    STEPS=2,
    PIECES=2,
    SIZE=8,
    NETWORK=dict(channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=()),
  ),
}
RUN = SHORT if os.environ.get("DDPM_JAX_NOTEBOOKS") == "all" else ["1_tour"]


def cells(name: str, kind: str = "code") -> list[dict]:
  notebook = json.loads((COLAB / f"{name}.ipynb").read_text())
  return [cell | {"source": "".join(cell["source"])} for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.fixture
def quick_compilation():
  """Programs run for milliseconds here: optimizing them costs far more than it gains."""
  promotion = jax.config.jax_numpy_rank_promotion
  jax.config.update("jax_disable_most_optimizations", True)
  jax.config.update("jax_numpy_rank_promotion", "allow")  # as for whoever opens a notebook
  yield
  jax.config.update("jax_disable_most_optimizations", False)
  jax.config.update("jax_numpy_rank_promotion", promotion)


@pytest.mark.parametrize("name", RUN)
def test_a_notebook_runs_from_top_to_bottom(name, quick_compilation, monkeypatch, tmp_path):
  plt.switch_backend("Agg")
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
  shown = {"display": lambda *pictures: None}  # Jupyter's
  for cell in cells(name):
    exec(compile(cell["source"], f"{name}.ipynb {cell['id']}", "exec"), shown)
    if "parameters" in cell["metadata"].get("tags", []):
      assert SHORT[name].keys() == {target for target in shown if target.isupper()}
      shown |= SHORT[name]
  plt.close("all")


def test_the_package_leaves_the_backend_of_a_notebook_alone():
  """Agg, chosen by a library, would switch inline pictures off; whoever draws to a file needs no pyplot."""
  chosen = re.compile(r"^\s*(import|from) matplotlib.*pyplot|matplotlib\.use\(", re.M)
  files = [*(ROOT / "ddpm_jax").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
  assert [str(path) for path in files if chosen.search(path.read_text())] == []


@pytest.mark.parametrize("name", SHORT)
def test_a_notebook_is_stored_with_its_outputs(name):
  code = cells(name)
  for cell in code:
    ast.parse(cell["source"])
  assert all(cell["execution_count"] for cell in code), "run launch/colab/run.sh"
  kinds = [kind for cell in code for output in cell["outputs"] for kind in output.get("data", [output["output_type"]])]
  assert "image/png" in kinds
  assert "error" not in kinds


@pytest.mark.parametrize("name", SHORT)
def test_a_notebook_names_only_what_the_package_has(name):
  """Also in what the short runs leave out, such as fetching."""
  tree = ast.parse("\n".join(cell["source"] for cell in cells(name)))
  modules = {}
  for line in ast.walk(tree):
    if isinstance(line, ast.ImportFrom) and line.module.startswith("ddpm_jax"):
      exec(ast.unparse(line), modules)
  used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
  ours = [node for node in used if isinstance(modules.get(node.value.id), types.ModuleType)]
  assert [ast.unparse(node) for node in ours if not hasattr(modules[node.value.id], node.attr)] == []
  assert len(ours) > 5


def test_notebooks_are_small():
  """Less than 2 MB, pictures included: they are in every clone."""
  assert {path.stem for path in COLAB.glob("*.ipynb")} == set(SHORT)
  assert sum(path.stat().st_size for path in COLAB.glob("*.ipynb")) < 2e6
