"""Drawing into a folder: continued after an interruption, and never over samples of other settings."""

import argparse
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli import against
from ddpm_jax.cli.sample import describe
from ddpm_jax.config import default, override
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import image_sets
from ddpm_jax.jobs import drawing, measure
from ddpm_jax.jobs.trained import Trained


class Stopped(Exception):
  """What ends a run in the middle."""


@dataclasses.dataclass(frozen=True)
class Fake(Trained):
  """Draws images that hold their seed, and stops after `most` calls."""

  calls: list = dataclasses.field(default_factory=list)
  most: int = 1000

  def sample(self, seeds, labels=None, **_):
    if len(self.calls) == self.most:
      raise Stopped
    self.calls.append(list(map(int, seeds)))
    return np.broadcast_to(np.asarray(seeds, np.uint8)[:, None, None, None], (len(seeds), 2, 2, 1)).copy()


def fake(most=1000, *changes):
  config = override(default(), ["data.image_size=2", "data.channels=1", "sampling.batch_size=4", *changes])
  return Fake(config, None, 1, "raw parameters", most=most)


def test_an_interrupted_drawing_continues_and_equals_an_unbroken_one(tmp_path):
  seeds = range(3, 13)
  unbroken = drawing.draw(fake(), seeds, None, tmp_path / "unbroken")
  with pytest.raises(Stopped):
    drawing.draw(fake(2), seeds, None, tmp_path / "broken")
  (parts,) = (tmp_path / "broken").iterdir()
  (parts / "00000004.npy").write_bytes(b"half a file")
  rest = fake()
  seen = []
  images = drawing.draw(rest, seeds, None, tmp_path / "broken", each=lambda seeds, images: seen.extend(seeds))
  assert rest.calls == [[7, 8, 9, 10], [11, 12, 12, 12]]  # batches of one shape; the first is read
  assert list(images[:, 0, 0, 0]) == list(seeds) == seen and np.array_equal(images, unbroken)
  assert not list((tmp_path / "broken").iterdir())


def test_parts_of_another_request_are_not_used(tmp_path):
  with pytest.raises(Stopped):
    drawing.draw(fake(1), range(8), None, tmp_path)
  other = fake()
  drawing.draw(other, range(1, 9), None, tmp_path)
  assert len(other.calls) == 2


@pytest.mark.parametrize(
  "change",
  ["clip=none", "keep_eps=True", "cap_pixels=1", "rounding=round", "covariance=marginal", "residual=True", "moments=x.npz"],
)
def test_samples_of_other_settings_are_not_overwritten(tmp_path, change):
  first = drawing.settings(fake())
  drawing.record(tmp_path, first)
  drawing.check(tmp_path, drawing.settings(fake(1, "sampling.batch_size=9")))  # which changes no image
  with pytest.raises(UserError, match="has samples of other settings") as refusal:
    drawing.check(tmp_path, drawing.settings(fake(1000, f"sampling.{change}")))
  assert change.partition("=")[0] in str(refusal.value)
  if change != "moments=x.npz":
    words = [describe(fake(1, *more).config.sampling, 5) for more in ((), (f"sampling.{change}",))]
    assert words[0] != words[1]


def test_damaged_settings_are_one_sentence(tmp_path):
  (tmp_path / "settings.json").write_text("{")
  with pytest.raises(UserError, match=r"its settings\.json cannot be read"):
    drawing.check(tmp_path, json.loads("{}"))


def test_sets_of_mixed_sizes_are_fitted_as_asked_or_as_the_run_fits_them(tmp_path):
  rng = np.random.default_rng(0)
  for i, side in enumerate((9, 12, 16)):
    Image.fromarray(rng.integers(0, 256, (side, side + i, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
  asked = argparse.Namespace(image_size="8", crop=None)
  assert image_sets.open_set(str(tmp_path), **against.fit_of(asked)).image_shape == (8, 8, 3)
  run = override(default(), ["data.image_size=(4,6)", "data.crop=lsun"]).data
  silent = argparse.Namespace(image_size=None, crop=None)
  assert against.fit_of(silent, run) == {"image_size": (4, 6), "crop": "lsun"}
  with pytest.raises(UserError, match="image_size must be"):
    against.fit_of(argparse.Namespace(image_size="8,8,8", crop=None))


def test_another_split_than_the_runs_own_is_measured_into_other_files():
  own = dataclasses.replace(fake(), held_out="test")
  assert measure.split_ending(own) == "" == measure.split_ending(fake())
  assert measure.split_ending(own.changed(data={"test_split": "train[:10%]"})) == "_on_train_10"
