"""Data: known pixels, the preprocessing of the original authors, and pictures on disk."""

import hashlib
import math
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import data
from ddpm_jax.data import crops, images
from ddpm_jax.data.digits import digits, levels_to_pixels
from ddpm_jax.errors import UserError
from ddpm_jax.files.atomic import check, writing


@pytest.fixture(scope="session")
def tfds_dir():
  shared = pathlib.Path(__file__).parents[3] / "shared/data/tfds"
  folder = pathlib.Path(os.environ.get("DDPM_JAX_DATA", shared))
  if not (folder / "mnist").is_dir() or not (folder / "cifar10").is_dir():
    pytest.skip("MNIST and CIFAR-10 are not here: set DDPM_JAX_DATA")
  return folder


# SHA-256 of all pixels and of the labels as uint8, in TFDS's order, computed from the original IDX and .bin files whose
# own check sums are published.
@pytest.mark.parametrize(
  ("name", "split", "shape", "pixels", "labels"),
  [
    (
      "mnist",
      "train",
      (60000, 28, 28, 1),
      "59edd5ea35c0062957306cacba8ae47e71e2c56261f4ca10230aacc14943dd3b",
      "2736d7d4fa861b3eb5cf799ed3247c49ba46c5b056b3b4aceabec80fbf37b0f7",
    ),
    (
      "mnist",
      "test",
      (10000, 28, 28, 1),
      "a85d8dffc6063fb89dcbc2122651701e7bbc18837f940fc9d76df48c224558ca",
      "927a9033bdc84a359f1400c691c7eaa8ab1838a0d81e3cc55ed2b4a1dfe95e69",
    ),
    (
      "cifar10",
      "test",
      (10000, 32, 32, 3),
      "82afa4f4f8a69075def88a286829b9a6eaadcf501af77cb9bf832a7b041b9fd1",
      "26d41a06cf2e3c9ce7650159c4ba91f5ed5d865676edc3dea11a74c1ef079dc9",
    ),
  ],
)
def test_tfds_pixels_are_those_of_the_original_files(tfds_dir, name, split, shape, pixels, labels):
  source = data.load(name, split, data_dir=tfds_dir)
  assert source.images.shape == shape and source.info.num_classes == 10
  assert hashlib.sha256(source.images.tobytes()).hexdigest() == pixels
  assert hashlib.sha256(source.labels.astype(np.uint8).tobytes()).hexdigest() == labels


def test_tfds_is_read_at_random_in_parts_and_at_another_size(tfds_dir):
  source = data.load("cifar10:3.0.2", "train[:100]", data_dir=tfds_dir, memory_limit=0)
  kept = data.load("cifar10", "train[:100]", data_dir=tfds_dir)
  assert len(source) == 100 and source.info.image_size == 32 and source.info.channels == 3
  assert (source[-1]["image"] == kept[99]["image"]).all() and source[-1]["label"] == kept[99]["label"]
  grey = data.load("cifar10", "train[:100]", data_dir=tfds_dir, image_size=16, channels=1)
  assert grey.images.shape == (100, 16, 16, 1)


def test_digits_are_scikit_learns_in_two_fixed_parts():
  from sklearn.datasets import load_digits

  train = digits("train")
  test = digits("test")
  assert (len(train), len(test)) == (1437, 360)
  assert train.info == data.Info("digits", "train", image_size=8, channels=1, num_classes=10)
  ours = np.concatenate([train.images, test.images])
  rows = lambda levels: sorted(map(tuple, levels.reshape(-1, 64).astype(int)))
  assert rows(np.round(ours * (16 / 255))) == rows(load_digits().images)
  assert test.labels[:10].tolist() == [2, 8, 2, 6, 6, 7, 1, 9, 8, 5]  # of NumPy's frozen RandomState(0)


def test_the_17_grey_levels_of_digits_are_coded_reversibly():
  levels = np.arange(17)
  pixels = levels_to_pixels(levels)
  assert pixels.dtype == np.uint8 and len(set(pixels.tolist())) == 17 and (pixels[0], pixels[-1]) == (0, 255)
  np.testing.assert_array_equal(np.round(pixels * (16 / 255)), levels)


@pytest.mark.parametrize(("case", "size"), [(0, 16), (1, 16), (2, 16), (3, 12)])
def test_center_crop_is_openais(golden, case, size):
  numbers = golden("preprocess")
  image = Image.fromarray(numbers[f"center_crop_arr/in{case}"])
  cropped = np.asarray(crops.adm(image, size))
  np.testing.assert_array_equal(cropped, numbers[f"center_crop_arr/out{case}"])
  # float32, the same two operations in the same order: bitwise
  item = numbers[f"center_crop_arr/item{case}"].transpose(1, 2, 0)
  np.testing.assert_array_equal(images.to_float(cropped), item)


def test_truncation_to_uint8_is_openais_for_both_kinds_of_array(golden):
  numbers = golden("preprocess")
  x = numbers["to_uint8/x"].transpose(0, 2, 3, 1)
  np.testing.assert_array_equal(images.to_uint8(x), numbers["to_uint8/out"])
  np.testing.assert_array_equal(images.to_uint8(jnp.asarray(x)), numbers["to_uint8/out"])


def test_rounding_to_uint8_goes_to_the_nearest_level():
  levels = np.arange(256)
  x = np.concatenate([(levels + shift) / 127.5 - 1 for shift in (-0.49, 0.0, 0.49)])
  np.testing.assert_array_equal(images.to_uint8(x, "round"), np.tile(levels, 3))
  assert images.to_uint8(np.array([-7.0, 7.0])).tolist() == [0, 255]
  assert (images.to_uint8(images.to_float(levels.astype(np.uint8)), "round") == levels).all()
  with pytest.raises(UserError, match="'truncate' or 'round'"):
    images.to_uint8(x, "floor")


def test_celeba_crop_takes_rows_57_to_184_and_columns_25_to_152():
  rows, columns = np.mgrid[0:218, 0:178]
  image = Image.fromarray(np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8))
  cropped = np.asarray(crops.celeba(image, 128))
  np.testing.assert_array_equal(cropped[:, 0, 0], np.arange(57, 185))
  np.testing.assert_array_equal(cropped[0, :, 1], np.arange(25, 153))
  assert crops.celeba(image, 64).size == (64, 64)
  with pytest.raises(UserError, match="178x218"):
    crops.celeba(image.rotate(90, expand=True), 64)


def test_lsun_and_ddim_crops_shrink_a_ramp_to_its_middle():
  ramp = Image.fromarray(np.tile(np.arange(0, 240, dtype=np.uint8), (120, 1)))
  # Blocks of 4 pixels have means 4 k + 1.5, of which columns 15 .. 44 of 60 remain; BOX rounds half up.
  np.testing.assert_array_equal(np.asarray(crops.lsun(ramp, 30))[0], 4 * np.arange(15, 45) + 2)
  # BILINEAR with its triangle over 8 pixels is exact on a ramp as well, up to the rounding of 8 bits.
  inner = np.asarray(crops.ddim(ramp, 30))[0].astype(int)
  assert abs(inner - (4 * np.arange(15, 45) + 1.5)).max() <= 1


def test_random_crop_is_a_window_of_a_shrunken_image_of_every_allowed_size():
  noise = np.random.RandomState(0).randint(0, 256, (90, 70, 3)).astype(np.uint8)
  image = Image.fromarray(noise)
  size = 16
  shorts = range(size, math.ceil(size / 0.8) + 1)
  whole = {short: np.asarray(crops.adm(image.crop((0, 0, 70, 70)), short)) for short in shorts}
  square = image.crop((0, 0, 70, 70))
  seen = set()
  for draw in range(60):
    cropped = np.asarray(crops.random(square, size, draw))
    np.testing.assert_array_equal(cropped, np.asarray(crops.random(square, size, draw)))
    for short in shorts:
      windows = np.lib.stride_tricks.sliding_window_view(whole[short], (size, size, 3))[..., 0, :, :, :]
      seen |= {short} if (windows == cropped).all((-1, -2, -3)).any() else set()
    assert crops.random(image, size, draw).size == (size, size)
  assert seen == set(shorts)


def test_area_is_the_mean_over_blocks():
  x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
  small = images.area(x, 2)
  assert small.shape == (2, 2, 2, 3)
  np.testing.assert_array_equal(small[1, 1, 0], x[1, 2:4, 0:3].mean((0, 1)))
  np.testing.assert_array_equal(images.area(jnp.asarray(x), 2), small)
  with pytest.raises(UserError, match="divisor"):
    images.area(x, 3)


def test_grid_fills_rows_from_the_left():
  pictures = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
  expected = [
    [1, 1, 0, 2, 2],
    [1, 1, 0, 2, 2],
    [0] * 5,
    [3, 3, 0, 4, 4],
    [3, 3, 0, 4, 4],
    [0] * 5,
    [5, 5, 0, 0, 0],
    [5, 5, 0, 0, 0],
  ]
  np.testing.assert_array_equal(images.grid(pictures, 2)[..., 0], expected)
  np.testing.assert_array_equal(images.grid(pictures, 2, scale=3)[1::3, 1::3, 0], expected)
  assert images.grid(pictures, gap=0).shape == (4, 6, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_and_batches_survive_the_disk(tmp_path, channels):
  frames = np.random.RandomState(0).randint(0, 256, (3, 8, 8, channels)).astype(np.uint8)
  images.save_png(tmp_path / "one.png", frames[0])
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "one.png")).reshape(8, 8, channels), frames[0])
  images.save_npz(tmp_path / "all.npz", frames, np.arange(3))
  loaded = np.load(tmp_path / "all.npz")
  assert loaded.files == ["arr_0", "arr_1"] and loaded["arr_1"].dtype == np.int64
  np.testing.assert_array_equal(loaded["arr_0"], frames)
  images.save_npz(tmp_path / "all.npz", frames)
  assert np.load(tmp_path / "all.npz").files == ["arr_0"]
  images.save_gif(tmp_path / "all.gif", frames)
  with Image.open(tmp_path / "all.gif") as animation:
    assert animation.n_frames == 3 and animation.info["loop"] == 0
  assert {path.name for path in tmp_path.iterdir()} == {"one.png", "all.npz", "all.gif"}


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / "note.txt"
  path.write_text("old")
  with pytest.raises(RuntimeError), writing(path) as temporary:
    temporary.write_text("ne")
    raise RuntimeError
  assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_refused_and_one_that_can_stays_as_it_is(tmp_path):
  (tmp_path / "note.txt").write_text("old")
  check(tmp_path / "note.txt")
  check(tmp_path / "new/folder/new.txt")
  assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
  with pytest.raises(UserError, match="note.txt/new.txt cannot be written"):
    check(tmp_path / "note.txt/new.txt")
  with pytest.raises(UserError, match="is a folder"):
    check(tmp_path)
