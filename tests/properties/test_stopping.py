"""SIGTERM and Ctrl-C at any time: nothing half-made stays behind, and the exit code says what happened."""

import os
import signal

import PIL.Image
import pytest

from ddpm_jax.cli import main
from ddpm_jax.jobs import train

TINY = [f"--config.network.{field}" for field in ("channels=8", "channel_mult=(1,)", "groups=4", "attention_resolutions=()")]


def killed(number):
  def kill(*args, **kwargs):
    os.kill(os.getpid(), number)
    raise AssertionError("the signal was not delivered")

  return kill


@pytest.fixture(autouse=True)
def handlers():
  """Ctrl-C as in a terminal; all handlers are as before when a command has ended."""
  interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
  terminate = signal.getsignal(signal.SIGTERM)
  yield
  assert signal.getsignal(signal.SIGTERM) is terminate
  signal.signal(signal.SIGINT, interrupt)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 42), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("where", ["prepare", "describe"])
def test_training_that_is_stopped_before_its_first_step_leaves_nothing(tmp_path, monkeypatch, capsys, where, number, code):
  monkeypatch.setattr(train, where, killed(number))
  workdir = tmp_path / "runs" / "new"
  assert main.run(["train", "--config", "digits:smoke", *TINY, "--workdir", str(workdir)]) == code
  assert list(tmp_path.iterdir()) == [] and "Traceback" not in capsys.readouterr().err


def test_an_existing_folder_keeps_what_it_has(tmp_path, monkeypatch):
  (tmp_path / "notes.txt").write_text("mine")
  monkeypatch.setattr(train, "prepare", killed(signal.SIGTERM))
  main.run(["train", "--config", "digits:smoke", *TINY, "--workdir", str(tmp_path)])
  assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_a_stopped_data_prepare_leaves_nothing(tmp_path, monkeypatch, capsys, number, code):
  monkeypatch.setattr("ddpm_jax.data.prepare._plan", killed(number))
  PIL.Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
  out = tmp_path / "out"
  assert main.run(["data", "prepare", "mine", str(tmp_path), "--data_dir", str(out)]) == code
  assert not out.exists()
  assert capsys.readouterr().err.splitlines()[-1].startswith(f"ddpm-jax: stopped by {number.name}")
