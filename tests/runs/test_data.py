"""ddpm-jax data, as a user types it."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli import main


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
  monkeypatch.setenv("DDPM_JAX_DATA", str(tmp_path / "sets"))
  monkeypatch.chdir(tmp_path)

  def call(*arguments):
    code = main.run(["data", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err

  return call


@pytest.fixture
def photos(tmp_path):
  for number, pixels in enumerate(np.random.RandomState(0).randint(0, 256, (10, 24, 30, 3)).astype(np.uint8)):
    path = tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_a_folder_is_prepared_listed_and_shown(run, photos, tmp_path):
  code, out, err = run("prepare", "my_photos", "photos", "--image_size", "16")
  assert code == 0 and out.startswith("Wrote train 10 images to ") and "my_photos/1.0.0" in out
  assert run("list")[1].splitlines() == ["digits  train 1437, test 360", "my_photos  train 10"]
  code, out, err = run("show", "my_photos", "--split", "train[:9]", "--out", "out.png")
  assert "9 images of 16x16x3" in out and "2 classes" in out
  with Image.open(tmp_path / "out.png") as picture:
    assert picture.size == (3 * 4 * 17 - 4,) * 2  # 3 x 3 images, each pixel 4 x 4


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("show", "my_photo"), "There is no data set 'my_photo'"),
    (("show", "./photos", "--crop", "fancy"), "There is no crop 'fancy'"),
    (("prepare", "my_photos", "nowhere"), "There is no file or folder nowhere"),
    (("prepare", "cifar10", "photos"), "give cifar-10-python.tar.gz"),
  ],
)
def test_what_the_user_can_mend_is_one_sentence_and_exit_code_2(run, photos, tmp_path, arguments, message):
  code, out, err = run(*arguments)
  assert code == 2 and out == "" and err.startswith("ddpm-jax: ") and message in err and err.count("\n") == 1
  assert not (tmp_path / "sets").exists()
