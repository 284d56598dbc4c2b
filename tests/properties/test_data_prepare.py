"""`data prepare`: the files that users hold become array_record, once, whole, and the same as TFDS's."""

import hashlib
import io
import json
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import data
from ddpm_jax.data import crops, prepare
from ddpm_jax.errors import UserError


def noise(count, height, width, seed=0):
  return np.random.RandomState(seed).randint(0, 256, (count, height, width, 3)).astype(np.uint8)


def encoded(image, kind="PNG"):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, kind)
  return buffer.getvalue()


def save(path, image):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(encoded(image))


def rows(source):
  return sorted((source[i]["image"].tobytes(), source[i]["label"]) for i in range(len(source)))


@pytest.fixture
def small_shards(monkeypatch):
  monkeypatch.setattr(prepare, "SHARD_IMAGES", 8)


@pytest.fixture
def folder(tmp_path):
  """Two splits of 30 and 6 images of 3 classes, larger than they are wanted."""
  for split, count in (("train", 30), ("val", 6)):
    for number, image in enumerate(noise(count, 20, 24, seed=count)):
      save(tmp_path / "own" / split / "abc"[number % 3] / f"{number:02}.png", image)
  return tmp_path / "own"


def cifar_batches(train, test):
  """The six files of the python version, with these rows."""
  for name, (images, labels) in {**{f"data_batch_{k + 1}": train[k] for k in range(5)}, "test_batch": test}.items():
    content = {b"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), b"labels": labels, b"batch_label": b"x"}
    yield name, pickle.dumps(content, protocol=2)


def write_tar(path, files):
  with tarfile.open(path, "w:gz") as archive:
    for name, content in files:
      member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))


def test_prepared_folders_load_as_the_folder_itself_does(folder, tmp_path, small_shards):
  made = prepare.prepare("own_set", folder, data_dir=tmp_path / "sets", image_size=8)
  assert made == tmp_path / "sets/own_set/1.0.0"
  for split in ("train", "val"):
    prepared = data.load("own_set", split, data_dir=tmp_path / "sets")
    direct = data.load(str(folder), split, image_size=8)
    assert rows(prepared) == rows(direct)
    assert (prepared.info.image_size, prepared.info.channels, prepared.info.num_classes) == (8, 3, 3)
  assert len(data.load("own_set", "train[:50%]", data_dir=tmp_path / "sets")) == 15
  assert sorted(file.name for file in made.glob("*train*")) == [
    f"own_set-train.array_record-{k:05}-of-00004" for k in range(4)
  ]


def test_tfds_reads_what_was_prepared(folder, tmp_path, small_shards):
  import tensorflow_datasets as tfds

  made = prepare.prepare("own_set", folder, data_dir=tmp_path, image_size=8)
  theirs = tfds.builder_from_directory(made).as_data_source("train")
  ours = data.load("own_set", data_dir=tmp_path)
  assert len(theirs) == len(ours) == 30
  for index in range(30):
    assert (theirs[index]["image"] == ours[index]["image"]).all() and theirs[index]["label"] == ours[index]["label"]
  assert {theirs[index]["id"].decode().partition("/")[0] for index in range(30)} == {"a", "b", "c"}
  labels = [ours[index]["label"] for index in range(30)]
  assert labels != sorted(labels)  # TFDS's hash order: a part of a split is a random sample


@pytest.mark.parametrize(
  "damage", [3, [1], lambda shards: dict.fromkeys(shards, 3), lambda shards: dict.fromkeys(shards, {})]
)
def test_shards_whose_entries_are_damaged_are_made_again(folder, tmp_path, small_shards, damage):
  made = prepare.prepare("own_set", folder, data_dir=tmp_path, image_size=8)
  whole = (made / "manifest.json").read_text()
  content = json.loads(whole)
  content["shards"] = damage(content["shards"]) if callable(damage) else damage
  (made / "manifest.json").write_text(json.dumps(content))
  prepare.prepare("own_set", folder, data_dir=tmp_path, image_size=8)
  assert (made / "manifest.json").read_text() == whole


def test_the_manifest_counts_and_hashes_every_shard(folder, tmp_path, small_shards):
  made = prepare.prepare("own_set", folder, data_dir=tmp_path, image_size=8)
  manifest = json.loads((made / "manifest.json").read_text())
  source = data.load("own_set", data_dir=tmp_path)
  start = 0
  for name in sorted(file.name for file in made.glob("*-train.*")):
    entry = manifest["shards"][name]
    part = slice(start, start := start + entry["images"])
    assert entry["sha256"] == hashlib.sha256((made / name).read_bytes()).hexdigest()
    assert entry["pixels"] == hashlib.sha256(source.images[part].tobytes()).hexdigest()
    assert entry["labels"] == {str(k): n for k, n in enumerate(np.bincount(source.labels[part])) if n}
  assert start == 30 and {key: manifest["decoder"][key] for key in ("image_size", "channels", "crop")} == {
    "image_size": 8,
    "channels": 3,
    "crop": "adm",
  }


def contents(made):
  return {file.name: file.read_bytes() for file in made.iterdir()}


def test_a_killed_run_continues_and_ends_with_the_same_files(folder, tmp_path):
  script = textwrap.dedent("""
    import os, resource, signal, sys
    from ddpm_jax.data import originals, prepare
    prepare.SHARD_IMAGES = 8
    encode, calls = originals.encode_png, []
    def counted(image):
      calls.append(image)
      if len(calls) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
      return encode(image)
    originals.encode_png = counted
    prepare.prepare("own_set", sys.argv[1], data_dir=sys.argv[2], image_size=8, threads=1)
  """)
  repository = pathlib.Path(__file__).parents[2]
  killed = subprocess.run([sys.executable, "-c", script, folder, tmp_path / "a"], cwd=repository)
  assert killed.returncode == -signal.SIGKILL
  made = tmp_path / "a/own_set/1.0.0"
  left = {file.name: file.stat().st_mtime_ns for file in made.glob("own_set-*")}
  assert len(left) == 2 and list(made.glob(".*tmp*"))
  with pytest.raises(UserError, match="no data set 'own_set'"):
    data.load("own_set", data_dir=tmp_path / "a")

  kept = prepare.SHARD_IMAGES
  prepare.SHARD_IMAGES = 8
  try:
    prepare.prepare("own_set", folder, data_dir=tmp_path / "a", image_size=8)
    prepare.prepare("own_set", folder, data_dir=tmp_path / "b", image_size=8)
  finally:
    prepare.SHARD_IMAGES = kept
  assert all((made / name).stat().st_mtime_ns == time for name, time in left.items())
  assert contents(made) == contents(tmp_path / "b/own_set/1.0.0")


def test_running_again_mends_damaged_missing_and_outdated_shards(folder, tmp_path, small_shards):
  made = prepare.prepare("own_set", folder, data_dir=tmp_path, image_size=8)
  whole = contents(made)
  shards = sorted(made.glob("*-train.*"))
  times = [shard.stat().st_mtime_ns for shard in shards]
  damaged = bytearray(shards[1].read_bytes())
  damaged[len(damaged) // 2] ^= 1
  shards[1].write_bytes(damaged)
  shards[2].unlink()
  prepare.prepare("own_set", folder, data_dir=tmp_path, image_size=8)
  assert contents(made) == whole and shards[0].stat().st_mtime_ns == times[0]
  prepare.prepare("own_set", folder, data_dir=tmp_path, image_size=16)
  assert data.load("own_set", data_dir=tmp_path).info.image_size == 16


def test_data_sets_of_others_are_not_touched(folder, tmp_path):
  made = tmp_path / "own_set/1.0.0"
  made.mkdir(parents=True)
  for name in ("dataset_info.json", "own_set-train.array_record-00000-of-00007"):
    (made / name).write_text("{}")
  before = contents(made)
  with pytest.raises(UserError, match="was not made by this command"):
    prepare.prepare("own_set", folder, data_dir=tmp_path, image_size=8)
  assert contents(made) == before


def test_a_damaged_or_missing_shard_is_named_when_it_is_read(folder, tmp_path, small_shards):
  made = prepare.prepare("own_set", folder, data_dir=tmp_path, image_size=8)
  (made / "own_set-train.array_record-00002-of-00004").unlink()
  with pytest.raises(UserError, match=r"image 16 of own_set train cannot be read .* copy it again"):
    data.load("own_set", data_dir=tmp_path)
  assert len(data.load("own_set", "train[:16]", data_dir=tmp_path)) == 16


def test_a_full_disk_ends_in_one_sentence_and_nothing_half_written(tmp_path):
  for number, image in enumerate(noise(40, 64, 64)):
    save(tmp_path / "own" / f"{number:02}.png", image)  # 40 x 12 kB of noise
  script = textwrap.dedent("""
    import resource, sys
    from ddpm_jax.data import prepare
    from ddpm_jax.errors import UserError
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
      prepare.prepare("own_set", sys.argv[1], data_dir=sys.argv[2])
    except UserError as error:
      print(error)
  """)
  repository = pathlib.Path(__file__).parents[2]
  command = [sys.executable, "-c", script, tmp_path / "own", tmp_path / "sets"]
  said = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout
  assert "own_set-train.array_record-00000-of-00001 cannot be written" in said and "run again to continue" in said
  assert said.count("\n") == 1
  assert not (tmp_path / "sets").exists()


def test_cifar10_comes_from_the_python_version_in_tfds_order(tmp_path, caplog):
  images = noise(12, 32, 32)
  labels = [number % 10 for number in range(12)]
  batches = list(
    cifar_batches([(images[2 * k : 2 * k + 2], labels[2 * k : 2 * k + 2]) for k in range(5)], (images[10:], labels[10:]))
  )
  write_tar(tmp_path / "cifar-10-python.tar.gz", batches)
  prepare.prepare("cifar10", tmp_path / "cifar-10-python.tar.gz", data_dir=tmp_path / "a")
  assert "these pixels are not what was published" in caplog.text
  (tmp_path / "files").mkdir()
  for name, content in batches:
    (tmp_path / "files" / name).write_bytes(content)
  prepare.prepare("cifar10", tmp_path / "files", data_dir=tmp_path / "b")
  source = data.load("cifar10:3.0.2", data_dir=tmp_path / "a")
  order = sorted(range(10), key=lambda index: hashlib.md5(f"train{index}".encode()).hexdigest())
  np.testing.assert_array_equal(source.images, images[order])
  assert source.labels.tolist() == [labels[index] for index in order]
  assert rows(data.load("cifar10", data_dir=tmp_path / "b")) == rows(source)


def test_the_order_is_that_of_tfds_own_cifar10():
  shared = pathlib.Path(__file__).parents[3] / "shared/data/tfds"
  real = pathlib.Path(os.environ.get("DDPM_JAX_DATA", shared))
  if not (real / "cifar10").is_dir():
    pytest.skip("CIFAR-10 is not here: set DDPM_JAX_DATA")
  import tensorflow_datasets as tfds

  theirs = tfds.builder_from_directory(real / "cifar10/3.0.2").as_data_source("test")
  order = prepare.tfds_order("test", [str(index) for index in range(10_000)])
  # ids say where images were in the original files
  assert [theirs[k]["id"] for k in range(200)] == [f"test_{index:05}".encode() for index in order[:200]]


def test_pickles_that_want_to_run_something_are_refused(tmp_path):
  class Bomb:
    def __reduce__(self):
      return os.system, ("touch " + str(tmp_path / "exploded"),)

  one = (noise(1, 32, 32), [0])
  write_tar(tmp_path / "cifar.tar.gz", [(name, pickle.dumps(Bomb())) for name, _ in cifar_batches([one] * 5, one)])
  with pytest.raises(UserError, match=r"names (posix|nt)\.system, which could run code"):
    prepare.prepare("cifar10", tmp_path / "cifar.tar.gz", data_dir=tmp_path)
  assert not (tmp_path / "exploded").exists()


def test_mnist_comes_from_idx_files(tmp_path):
  digits = noise(9, 28, 28)[..., 0]
  for prefix, part in (("train", slice(0, 6)), ("t10k", slice(6, 9))):
    images = digits[part]
    labels = np.arange(9, dtype=np.uint8)[part]
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
      header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
      (tmp_path / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())
  prepare.prepare("mnist", tmp_path, data_dir=tmp_path)
  source = data.load("mnist", "test", data_dir=tmp_path)
  assert source.info.channels == 1 and sorted(source.labels.tolist()) == [6, 7, 8]
  np.testing.assert_array_equal(source.images[source.labels == 7][0, ..., 0], digits[7])


def test_celeba_is_split_by_its_list_and_cropped_as_ddim_does(tmp_path):
  images = noise(5, 218, 178)
  for number, image in enumerate(images):
    save(tmp_path / "celeba/img_align_celeba" / f"{number:06}.png", image)
  lines = [f"{number:06}.png {code}" for number, code in enumerate((0, 0, 1, 2, 2))]
  (tmp_path / "celeba/list_eval_partition.txt").write_text("\n".join(lines))
  prepare.prepare("celeba64_ddim", tmp_path / "celeba", data_dir=tmp_path)
  for split, numbers in (("train", [0, 1]), ("validation", [2]), ("test", [3, 4])):
    source = data.load("celeba64_ddim", split, data_dir=tmp_path)
    expected = [np.asarray(crops.celeba(Image.fromarray(images[number]), 64)).tobytes() for number in numbers]
    assert sorted(image.tobytes() for image in source.images) == sorted(expected)
    assert source.info.num_classes is None
  csv = "image_id,partition\n" + "\n".join(line.replace(" ", ",") for line in lines)  # as on Kaggle
  (tmp_path / "celeba/list_eval_partition.txt").rename(tmp_path / "celeba/list_eval_partition.csv").write_text(csv)
  prepare.prepare("celeba64_ddim", tmp_path / "celeba", data_dir=tmp_path / "again")
  assert len(data.load("celeba64_ddim", "test", data_dir=tmp_path / "again")) == 2


def test_lsun_comes_from_lmdb_by_one_box_resize(tmp_path):
  lmdb = pytest.importorskip("lmdb")
  images = noise(6, 300, 260)
  for split, part in (("train", slice(0, 4)), ("val", slice(4, 6))):
    with lmdb.open(str(tmp_path / f"church_outdoor_{split}_lmdb"), map_size=2**24) as database:
      with database.begin(write=True) as transaction:
        for number, image in enumerate(images[part]):
          transaction.put(f"{number:040x}".encode(), encoded(image))
  prepare.prepare("lsun_church256", tmp_path, data_dir=tmp_path)
  for split, part in (("train", slice(0, 4)), ("val", slice(4, 6))):
    source = data.load("lsun_church256", split, data_dir=tmp_path)
    expected = [np.asarray(crops.lsun(Image.fromarray(image), 256)).tobytes() for image in images[part]]
    assert sorted(image.tobytes() for image in source.images) == sorted(expected)
  prepare.prepare("lsun_cat256", tmp_path / "church_outdoor_val_lmdb", data_dir=tmp_path)
  assert len(data.load("lsun_cat256", data_dir=tmp_path)) == 2
  (tmp_path / "broken").mkdir()
  (tmp_path / "broken/data.mdb").write_bytes(b"no database" * 1000)
  with pytest.raises(UserError, match="cannot be read as an lmdb"):
    prepare.prepare("lsun_cat256", tmp_path / "broken", data_dir=tmp_path)


def test_imagenet_is_read_from_class_folders_zips_or_openais_names(folder, tmp_path):
  shutil.rmtree(folder / "val")
  prepare.prepare("imagenet64_adm", folder, data_dir=tmp_path / "a")
  source = data.load("imagenet64_adm", data_dir=tmp_path / "a")
  assert source.info.image_size == 64 and source.info.num_classes == 3
  (tmp_path / "flat").mkdir()
  for file in folder.rglob("*.png"):
    shutil.copy(file, tmp_path / "flat" / f"n{file.parent.name}_{file.name}")
  prepare.prepare("imagenet64_adm", tmp_path / "flat", data_dir=tmp_path / "b", labels="prefix")
  assert rows(data.load("imagenet64_adm", data_dir=tmp_path / "b")) == rows(source)


def test_corrupt_images_stop_the_work_or_are_left_out_and_counted(folder, tmp_path, small_shards, caplog):
  (folder / "train/b/04.png").write_bytes(b"broken")
  with pytest.raises(UserError, match=r"b/04.png in .* cannot be decoded"):
    prepare.prepare("own_set", folder, data_dir=tmp_path, image_size=8)
  with pytest.raises(UserError, match="no data set 'own_set'"):
    data.load("own_set", data_dir=tmp_path)
  made = prepare.prepare("own_set", folder, data_dir=tmp_path, image_size=8, corrupt="skip")
  assert len(data.load("own_set", data_dir=tmp_path)) == 29
  manifest = json.loads((made / "manifest.json").read_text())
  assert sum((entry["skipped"] for entry in manifest["shards"].values()), []) == ["b/04.png"]
  assert "skipped: train/b/04.png" in caplog.text


def test_bad_input_is_answered_in_one_sentence(folder, tmp_path, monkeypatch):
  (tmp_path / "empty").mkdir()
  (tmp_path / "file").write_text("x")
  for arguments, message in [
    (dict(name="own-set", path=folder), "is not a name for a data set"),
    (dict(name="digits", path=folder), "is not a name for a data set"),
    (dict(name="own", path=tmp_path / "nowhere"), "There is no file or folder"),
    (dict(name="own", path=tmp_path / "empty"), "holds no images"),
    (dict(name="own", path=folder, image_size=(8, 0)), "image_size must be N or"),
    (dict(name="own", path=folder, image_size=8, crop="random"), "cannot be prepared with crop 'random'"),
    (dict(name="own", path=folder, image_size=8, corrupt="ignore"), "'error' or 'skip'"),
    (dict(name="imagenet64_adm", path=folder, image_size=32), "of its own"),
    (dict(name="cifar10", path=tmp_path / "empty"), "give cifar-10-python.tar.gz"),
    (dict(name="cifar10", path=tmp_path / "file"), "is not a readable tar file"),
    (dict(name="mnist", path=tmp_path / "empty"), "four idx files"),
    (dict(name="celeba64_ddim", path=tmp_path / "empty"), "give CelebA's folder"),
    (dict(name="lsun_cat256", path=tmp_path / "empty"), "unpack LSUN's zip"),
    (dict(name="own", path=folder, image_size=8, data_dir=tmp_path / "file"), "choose another data_dir"),
  ]:
    with pytest.raises(UserError, match=message) as error:
      prepare.prepare(**{"data_dir": tmp_path / "sets", **arguments})
    assert "\n" not in str(error.value)
  shutil.rmtree(folder / "train/c")
  with pytest.raises(UserError, match=r"val/c/02.png is of the class 'c', which the training split of .* lacks"):
    prepare.prepare("own", folder, data_dir=tmp_path / "sets", image_size=8)
  assert not (tmp_path / "sets").exists()
