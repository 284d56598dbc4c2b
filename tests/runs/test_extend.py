"""The examples of docs/extend.md through the command line: trained, resumed and sampled, also by another process."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import ddpm_jax
from ddpm_jax import build, config
from ddpm_jax.cli import main
from ddpm_jax.errors import UserError
from ddpm_jax.jobs import train

EXAMPLES = pathlib.Path(__file__).parents[2] / "docs" / "examples"
PERCEPTRON = f"{EXAMPLES / 'network.py'}:Perceptron"
COMMANDS = """
import json, sys
from ddpm_jax.cli import main
for command, code in json.loads(sys.argv[1]):
  assert main.run(command) == code, command
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of the example's network, 4 steps."""
  folder = tmp_path_factory.mktemp("own") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_NUM_CPU_DEVICES", "1")
    patch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    own = [f"--config.network.name={PERCEPTRON}", "--config.network.width=8"]
    assert main.run(["train", "--config", "digits:smoke", "--workdir", str(folder), *own]) == 0
    yield folder


def test_another_process_resumes_and_samples_but_imports_nothing_unasked(run, tmp_path):
  again = tmp_path / "again"
  shutil.copytree(run, again)
  shutil.rmtree(again / "checkpoints" / "4")
  own = [f"--config.network.name={PERCEPTRON}", "--config.network.width=8"]
  sample = ["sample", "--workdir", str(again), "--seeds", "0-1", "--out", str(tmp_path / "out")]
  commands = [
    [sample, 2],  # nobody said that this code may run
    [["train", "--config", "digits:smoke", "--workdir", str(again), *own], 0],
    [[*sample, "--sampler", f"{EXAMPLES / 'solver.py'}:adams", "--steps", "5"], 0],
  ]
  done = subprocess.run([sys.executable, "-c", COMMANDS, json.dumps(commands)], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  assert "Add --trust" in done.stderr and (tmp_path / "out" / "grid.png").exists()
  ours, theirs = (ddpm_jax.load(path, ema="raw", trust=True).network.params for path in (run, again))
  assert all(np.array_equal(ours[name]["kernel"], theirs[name]["kernel"]) for name in ours)


def test_a_solver_and_a_covariance_of_ones_own(run):
  trained = ddpm_jax.load(run, trust=True)
  covariance = f"sampling.covariance={EXAMPLES / 'covariance.py'}:Between"
  noisy = trained.using(covariance, sampler="ddpm", steps=5)
  assert build.sampler(noisy.config).kernel.covariance.share == 0.5
  solver = trained.using(sampler=f"{EXAMPLES / 'solver.py'}:adams", steps=5)
  assert len(build.sampler(solver.config).steps.left) == 5
  for each in (noisy, solver):
    assert each.sample(range(2)).shape == (2, 8, 8, 1)


def test_an_npr_head_stands_on_a_network_of_ones_own(run):
  assignments = [f"train.backbone={run}"]
  plan = train.prepare(build.configure(config.load("npr:smoke"), assignments))
  params = plan.init().params
  assert set(params) == {"backbone", "head"} and plan.config.network.backbone.name == PERCEPTRON


def test_a_data_set_of_ones_own():
  assignments = [f"data.name={EXAMPLES / 'data_set.py'}:discs", "network.attention_resolutions=(8,)"]
  plan = train.prepare(build.configure(config.load("digits:smoke"), assignments))
  assert plan.source.info.name == "discs" and plan.config.data.num_classes == 2


def test_names_of_code_that_do_not_exist_are_one_sentence(tmp_path):
  (tmp_path / "broken.py").write_text("import nothing_of_this_name")
  for name, sentence in {
    f"{EXAMPLES}/network.py:Perceptrom": "has no object 'Perceptrom'",
    "nowhere.py:Net": "There is no file nowhere.py",
    "no_such_package.nets:Net": "cannot be imported",
    f"{tmp_path}/broken.py:Net": "cannot be imported",
  }.items():
    with pytest.raises(UserError) as refusal:
      train.prepare(build.configure(config.load("digits:smoke"), [f"network.name={name}"]))
    assert sentence in str(refusal.value)
