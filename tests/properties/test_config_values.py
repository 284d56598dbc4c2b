"""What a config may hold: types of fields, names, variants; refused in a sentence before anything is made."""

import json
import re
import types

import numpy as np
import pytest

from ddpm_jax import build, config, models
from ddpm_jax.config import default, from_dict, override
from ddpm_jax.data.sources import Arrays, Info
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import quality
from ddpm_jax.files import npz
from ddpm_jax.jobs import methods, train
from ddpm_jax.jobs.trained import Trained, checked_seeds


def sampler(*changes):
  return build.sampler(override(default(), [f"sampling.{change}" for change in changes]))


REFUSED = {
  "text for a number that may be None": (lambda: sampler("steps=abc"), "sampling.steps=abc should be an integer or None"),
  "half a step": (lambda: sampler("steps=2.5"), "should be an integer or None, not a number"),
  "a truth value for a number": (lambda: sampler("steps=True"), "should be an integer or None, not True or False"),
  "None where there is no None": (lambda: sampler("grid=None"), "sampling.grid=None should be a text like 'full', not None"),
  "one number for an interval": (lambda: sampler("guidance.interval=5"), "should be a tuple or None, not an integer"),
  "three numbers for an interval": (
    lambda: sampler("guidance.interval=(1,2,3)", "guidance.kind='classifier'"),
    "two levels",
  ),
  "a section": (lambda: override(default(), ["sampling=3"]), "sampling is a section: assign one of its fields"),
  "steps of the full grid": (lambda: sampler("steps=50", "grid=full"), 'means nothing to the grid "full", which fixes'),
  "steps of a section string": (lambda: sampler("steps=50", "grid=10,15"), 'means nothing to the grid "10,15"'),
  "no steps for bits/dim": (lambda: build.bound(override(default(), ["evaluation.grid=uniform"])), "set evaluation.steps"),
  "a cap of nothing": (lambda: sampler("cap_pixels=0"), "sampling.cap_pixels = 0.0 should be above 0"),
  "a cap of no steps": (lambda: sampler("cap_pixels=1", "cap_steps=0"), "sampling.cap_steps = 0 should be at least 1"),
  "what the builder gives": (lambda: build.loss(override(default(), ["loss.steps=5"])), "has no field 'steps'"),
  "T of a time sampler": (lambda: build.time_sampler(override(default(), ["time_sampler.T=5"])), "has no field 'T'"),
  "text in an open section": (
    lambda: build.schedule(override(default(), ["schedule.start=abc"])),
    "schedule.start = 'abc' of 'linear' has to be",
  ),
  "text in a network": (lambda: models.make("unet_ddpm", num_res_blocks="two"), "network.num_res_blocks = 'two'"),
  "a network's unknown field": (lambda: models.make("unet_ddpm", chanels=8), "did you mean 'channels'?"),
  "blocks of no pixels": (
    lambda: build.model(override(default(), ["network.block_size=0"]), 1, None),
    "network.block_size = 0",
  ),
  "heads that do not divide": (
    lambda: models.make("unet_adm", head_channels=64).heads(96),
    "96 channels do not divide into attention heads",
  ),
  "hidden labels of nobody": (
    lambda: train.prepare(override(config.load("digits:smoke"), ["train.label_dropout=0.1"])),
    "hides labels",
  ),
  "a classifier's loss of a UNet": (
    lambda: build.model(override(config.load("digits:smoke"), ["loss.name=classifier"]), 1, 10),
    "has network.name",
  ),
  "a classifier that is told the label": (
    lambda: build.model(override(config.load("mnist_classifier:smoke"), ["train.class_conditional=True"]), 1, 10),
    "would be told what it has to find out",
  ),
  "a head on nothing": (lambda: build.model(config.load("npr:smoke"), 1, None), "set train.backbone"),
  "a field where there are none": (
    lambda: build.time_sampler(override(default(), ["time_sampler.name=uniform", "time_sampler.kept=5"])),
    "it has none",
  ),
  "no channels": (lambda: models.make("unet_ddpm", channels=0).check_size(8, 8), "leave no network"),
  "batches of nothing": (
    lambda: train.prepare(override(config.load("digits:smoke"), ["train.batch_size=0"])),
    "train.batch_size = 0",
  ),
  "a preview of nothing": (
    lambda: train.prepare(override(config.load("digits:smoke"), ["train.preview_images=0"])),
    "preview_images = 0",
  ),
  "an unknown variant": (lambda: config.load("mnist_cond:smok"), "no variant 'smok'; choose from smoke"),
  "an unknown variant of two": (lambda: config.load("mnist_sr:basis"), "no variant 'basis'; choose from base, smoke"),
  "a seed of 33 bits": (
    lambda: checked_seeds([1, 2**32]),
    "Seed 4294967296 is not allowed: seeds must be between",
  ),
  "a negative seed": (lambda: checked_seeds(np.array([-1])), "Seed -1 is not allowed"),
  "an unknown trajectory": (
    lambda: methods.cells(methods.papers_methods(), [5], trajectories=["optimum"]),
    "Trajectory 'optimum' is unknown",
  ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name):
  act, sentence = REFUSED[name]
  with pytest.raises(UserError, match=re.escape(sentence)):
    act()


def test_fields_that_are_none_take_their_own_kind_and_none_again():
  changed = override(default(), ["sampling.guidance.ema=0.9999", "sampling.cap_pixels=2", "sampling.guidance.kind=none"])
  guidance = changed.sampling.guidance
  assert guidance.ema == "0.9999" and guidance.kind is None and isinstance(changed.sampling.cap_pixels, float)
  assert override(changed, ["sampling.guidance.ema=None"]).sampling.guidance.ema is None


def test_a_checkpoint_does_not_get_arguments_of_a_schedule_that_is_not_its_own():
  stored = default()
  stored.schedule = dict(name="from_betas", betas=(0.1, 0.2, 0.3))
  again = from_dict(json.loads(json.dumps(stored.to_dict())))
  np.testing.assert_allclose(build.schedule(again).betas, [0.1, 0.2, 0.3])


def test_the_cap_is_on_the_steps_before_the_last_whatever_the_grid():
  capped = sampler("grid=uniform", "steps=10", "cap_pixels=1", "cap_steps=2")
  row = capped.steps
  assert list(row.s.n[row.s.n <= capped.kernel.covariance.level]) == list(row.s.n[-3:])


def test_real_images_stored_class_by_class_are_shuffled_before_they_are_halved():
  pixels = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
  labels = np.arange(100) // 50
  source = Arrays(Info("sorted", "train", 1, 1, 2), pixels, labels)
  halves = quality.real_images(source).ravel()[:50]
  assert 15 < (halves < 50).sum() < 35  # 25, and 4 standard deviations of a hypergeometric draw
  mixed = Arrays(source.info, pixels, labels[::-1].copy())
  np.testing.assert_array_equal(quality.real_images(mixed), pixels)


def test_a_foreign_file_with_an_array_called_meta_is_one_sentence(tmp_path):
  np.savez(tmp_path / "a.npz", meta=np.array("not JSON"), mu=np.zeros(2))
  with pytest.raises(UserError, match="is not a readable JSON file"):
    npz.read(tmp_path / "a.npz")


def test_only_networks_that_enlarge_take_small_images():
  small = types.SimpleNamespace(config=default())
  with pytest.raises(UserError, match="does not enlarge images"):
    Trained._cond(small, None, None, np.zeros((1, 4, 4, 1), np.uint8))


@pytest.mark.parametrize(
  ("text", "sentence"),
  [
    ("raise ValueError('no')", r"cannot be read \(ValueError: no\)"),
    ("def (", r"cannot be read \(SyntaxError"),
    ("def get_config(variant):\n  return get_config(variant)", r"cannot be read \(RecursionError"),
    ("def get_config(variant):\n  return 3", "has no function get_config"),
    ("x = 1", "has no function get_config"),
  ],
)
def test_a_config_file_that_fails_is_one_sentence(tmp_path, text, sentence):
  (tmp_path / "mine.py").write_text(text)
  with pytest.raises(UserError, match=sentence):
    config.load(str(tmp_path / "mine.py"))


@pytest.mark.parametrize("text", ["(" * 100_000, "-" * 50_000 + "1", "{[1]: 2}", "9" * 5000])
def test_values_that_are_no_literals_are_texts(text):
  assert config.value_of(text) == text


@pytest.mark.parametrize(
  "value", ["schedule.T=1000000000", "network.channels=1000000000", f"network.channel_mult={(1,) * 99}"]
)
def test_absurd_sizes_are_refused_before_they_are_believed(value):
  with pytest.raises(UserError, match="at most"):
    override(default(), ["network.name=unet_ddpm", value])
