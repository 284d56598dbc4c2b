"""Weights & Biases and profiles: written where they are asked for, refused where they cannot be."""

import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.training import observers


class FakeRun:
  """Stands for a run of W&B."""

  def __init__(self):
    self.rows = []
    self.finished = False

  def log(self, row, step):
    self.rows.append((step, row))

  def finish(self):
    self.finished = True


def test_wandb_gets_every_row_and_a_resumed_run_continues_the_same_one(tmp_path, monkeypatch):
  asked = []
  run = FakeRun()

  def init(**settings):
    asked.append(settings)
    return run

  monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Image=lambda image: ("image", image.shape)))
  monkeypatch.setenv("WANDB_PROJECT", "mine")
  for _ in range(2):
    writer = observers.WeightsAndBiases(tmp_path / "digits", {"seed": 0})
  assert asked[0] == asked[1] and asked[0]["resume"] == "allow" and asked[0]["project"] == "mine"
  assert asked[0]["name"] == "digits" and asked[0]["config"] == {"seed": 0}
  writer.write_scalars(3, {"loss": 0.5})
  writer.write_images(4, {"raw": np.zeros((8, 8, 1), np.uint8)})
  writer.close()
  assert run.rows == [(3, {"loss": 0.5}), (4, {"previews/raw": ("image", (8, 8, 1))})] and run.finished


def test_wandb_is_refused_where_it_is_not_installed(monkeypatch):
  monkeypatch.setattr(observers.importlib.util, "find_spec", lambda name: None)
  observers.check(False)
  with pytest.raises(UserError, match="pip install wandb"):
    observers.check(True)


def test_a_profile_holds_what_ran_between_two_rows(tmp_path):
  profile = observers.Profile(tmp_path)
  assert profile.state == "waiting"
  profile.write_scalars(1, {})
  jnp.ones(3).sum().block_until_ready()
  profile.write_scalars(2, {})
  profile.write_scalars(3, {})
  profile.close()
  assert profile.state == "done" and list(tmp_path.rglob("*.xplane.pb"))
