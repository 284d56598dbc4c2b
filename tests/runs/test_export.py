"""A sampler as one program: the images of `sample`, in a process that has JAX and not this package."""

import hashlib
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from weights import save_weights

import ddpm_jax
from ddpm_jax import build, config
from ddpm_jax.cli import main

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ["network.channels=8", "network.channel_mult=(1,)", "network.groups=4", "network.attention_resolutions=()"]
DRAW = ["--sampler", "ddim", "--steps", "3", "--eta", "0.5"]


@pytest.fixture(scope="module", autouse=True)
def one_device():
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_NUM_CPU_DEVICES", "1")  # JAX runs already and cannot be given more
    yield


def untrained(folder: pathlib.Path, *changes: str) -> pathlib.Path:
  """A run of the smallest network of the digits, with random weights."""
  made = config.override(config.load("digits:smoke"), [*SMALL, *changes])
  with made.unlocked(), made.data.ignore_type():
    made.data.update(image_size=8, channels=1, num_classes=10)
  params = build.initial_params(build.model(made, 1, 10), jax.random.key(0), 8, 1)
  params = jax.tree.map(lambda w: w + 0.01, params)
  save_weights(str(folder / "checkpoints"), params, made.to_dict(), rate="0.999", step=0)
  return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """(run, program) of a class-conditional network."""
  run = untrained(tmp_path_factory.mktemp("run"), "train.class_conditional=True", "network.name=unet_adm")
  path = run / "sampler.stablehlo"
  assert main.run(["export", "--workdir", str(run), "--program", str(path), *DRAW]) == 0
  return run, path


def test_a_program_draws_what_sample_draws(exported, tmp_path):
  """In a process without the package, whose lines are those of docs/export.md."""
  run, path = exported
  lines = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "export.md").read_text(), re.M | re.S)[0]
  program = tmp_path / "draw.py"
  program.write_text(f"import sys\nsys.modules['ddpm_jax'] = None\n{lines}\nnp.save('images.npy', images)\n")
  (tmp_path / "sampler.stablehlo").write_bytes(path.read_bytes())
  subprocess.run([sys.executable, program], check=True, cwd=tmp_path)
  images = np.load(tmp_path / "images.npy")
  drawn = ddpm_jax.load(run, sampler="ddim", steps=3, eta=0.5).sample(range(4), [3, 1, 4, 1])
  assert images.shape == (4, 8, 8, 1)
  np.testing.assert_array_equal(images, drawn)


def test_what_is_known_about_a_program_lies_beside_it(exported):
  _, path = exported
  about = json.loads((path.parent / "sampler.stablehlo.json").read_text())
  assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
  assert about["platforms"] == ["cpu", "cuda", "tpu"]
  assert about["inputs"] == ["seeds uint32 [batch]", "labels int32 [batch]"]
  assert about["output"] == "uint8 [batch, 8, 8, 1]"
  assert about["sampling"]["steps"] == 3


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    (["--platforms", "cpu,rocket"], "Platform 'rocket' is unknown"),
    (["--steps", "0"], "--steps 0 is not a number of steps"),
  ],
)
def test_what_cannot_be_exported_is_refused(exported, capsys, arguments, sentence):
  run, path = exported
  code = main.run(["export", "--workdir", str(run), "--program", str(path.with_name("other")), *DRAW, *arguments])
  assert code == 2
  assert sentence in capsys.readouterr().err
  assert not path.with_name("other").exists()
