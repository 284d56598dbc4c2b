"""Images that are not square, and more channels than three: from files through training to samples and bounds."""

import json

import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax.jobs import train


def tiny(folder, *changes):
  return configs.override(
    configs.load("digits:smoke"),
    [
      f"data.name={folder}",
      "data.test_split=train[:6]",
      "schedule.T=6",
      "network.channels=8",
      "network.attention_resolutions=()",
      "train.total_steps=2",
      "train.preview_images=2",
      "sampling.batch_size=2",
      "evaluation.batch_size=2",
      *changes,
    ],
  )


def noise(count, *shape):
  return np.random.RandomState(0).randint(0, 256, (count, *shape)).astype(np.uint8)


def test_images_of_16_by_12_train_sample_and_are_scored(tmp_path):
  folder = tmp_path / "photos"
  folder.mkdir()
  for number, image in enumerate(noise(20, 12, 16, 3)):
    Image.fromarray(image).save(folder / f"{number:02}.png")
  config = tiny(folder)
  train.train(config, tmp_path / "run")
  run = ddpm_jax.load(tmp_path / "run")
  assert run.config.data.image_size == (12, 16) and run.image_shape == (12, 16, 3)
  assert run.sample([3, 5]).shape == (2, 12, 16, 3)
  assert np.isfinite(run.bits_per_dim(run.dataset("train"), 2).total).all()
  train.train(config, tmp_path / "run")  # the finished run is recognized as the same
  previews = sorted((tmp_path / "run").rglob("*.png"))
  with Image.open(previews[0]) as grid:
    scale = 64 // 12
    assert grid.size == ((2 * 17 - 1) * scale, 12 * scale)  # two images, one pixel apart
  assert json.loads((tmp_path / "run/data.json").read_text())["image_size"] == [12, 16]


def test_arrays_of_5_channels_train_and_sample(tmp_path):
  folder = tmp_path / "scans"
  folder.mkdir()
  for number, image in enumerate(noise(20, 12, 12, 5)):
    np.save(folder / f"{number:02}.npy", image)
  train.train(tiny(folder), tmp_path / "run")
  run = ddpm_jax.load(tmp_path / "run")
  assert run.image_shape == (12, 12, 5) and run.sample([0, 1]).shape == (2, 12, 12, 5)
  previews = sorted((tmp_path / "run").rglob("*.png"))
  with Image.open(previews[0]) as picture:
    assert picture.mode == "L" and picture.width > 5 * picture.height / 2  # channels side by side


def test_a_network_that_cannot_halve_the_sides_says_which(tmp_path):
  (tmp_path / "photos").mkdir()
  for number, image in enumerate(noise(4, 13, 16, 3)):
    Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
  with pytest.raises(ddpm_jax.errors.UserError, match=r"13x16 cannot be halved .* pad the images to 14x16"):
    train.prepare(tiny(tmp_path / "photos"))
  small = train.prepare(tiny(tmp_path / "photos", "data.image_size=(12,16)"))
  assert small.config.data.image_size == (12, 16)
