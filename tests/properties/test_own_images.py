"""One's own images: classes decide whether the network is told them, and may be named on the command line."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import config as configs
from ddpm_jax.data.classes import class_numbers
from ddpm_jax.data.images import grid, grid_by_class, viewable
from ddpm_jax.errors import UserError
from ddpm_jax.jobs import train


def photos(root, *classes):
  for number, name in enumerate(classes * 10):
    (root / name).mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(number).randint(0, 256, (30 + number, 40, 3)).astype(np.uint8)
    Image.fromarray(noise).save(root / name / f"{number:02}.png")
  return root


@pytest.mark.parametrize(("classes", "conditional"), [(("cat", "dog", "emu"), True), (("cat",), False)])
def test_the_network_is_told_classes_if_there_are_any(tmp_path, classes, conditional):
  config = configs.override(configs.load("own_images"), [f"data.name={photos(tmp_path / 'photos', *classes)}"])
  run = train.prepare(config)
  assert run.config.train.class_conditional is conditional
  assert run.config.train.label_dropout == (0.1 if conditional else 0.0)
  assert run.config.data.class_names == (classes if conditional else None)
  assert len(run.source) == 9 * len(classes) and run.source.info.shape == (32, 32, 3)
  described = train.describe_data(run.source)
  assert described["images"] == len(run.source) and "30 images" not in described["summary"]


def test_classes_are_given_by_name_or_number():
  names = ("cat", "dog", "7")
  assert class_numbers("dog,cat", names, 3) == [1, 0]
  assert class_numbers("7,0-1", names, 3) == [2, 0, 1]  # a name goes before a number
  assert class_numbers("3,8-9", None, 10) == [3, 8, 9]
  for text, message in (
    ("cow", "choose from cat, dog, 7"),
    ("3", "from 0 to 2"),
    ("2-99999999", "from 0 to 2"),
    ("", "neither"),
  ):
    with pytest.raises(UserError, match=message):
      class_numbers(text, names, 3)


def test_images_of_any_channels_can_be_looked_at():
  image = np.random.RandomState(0).randint(0, 256, (2, 3, 6)).astype(np.uint8)
  for channels in (1, 3, 4):
    np.testing.assert_array_equal(viewable(image[..., :channels]), image[..., :channels])
  np.testing.assert_array_equal(viewable(image[..., :2])[..., [0, 3]], image[..., :2])
  side_by_side = viewable(image)
  assert side_by_side.shape == (2, 18, 1)
  np.testing.assert_array_equal(side_by_side[:, 3:6, 0], image[..., 1])


def test_a_grid_has_a_row_per_class_with_its_name():
  images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)
  picture = grid_by_class(images, np.array([1, 0, 1, 0, 1]), ("cat", "dog"))
  shown = picture[:, -(3 * 17 - 1) :]
  np.testing.assert_array_equal(
    shown, grid(images[[1, 3, 0, 0, 2, 4]] * [[[[1]]], [[[1]]], [[[0]]], [[[1]]], [[[1]]], [[[1]]]], 3)
  )
  margin = picture[:, : -(3 * 17 - 1)]
  assert (margin[:16] < 128).any() and (margin[17:] < 128).any()  # both names
  np.testing.assert_array_equal(grid_by_class(images, np.zeros(5, int)), grid(images))  # one class
