"""Data: order, shards, resumption, flips; folders and zips; bad input."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import data
from ddpm_jax.data.sources import NO_LABEL, Arrays, Info
from ddpm_jax.errors import UserError


def numbered(count, size=4, channels=1):
  """Images that carry their own number in the first two pixels of column 0 and are not symmetric; label = number."""
  images = np.random.RandomState(0).randint(0, 256, (count, size, size, channels)).astype(np.uint8)
  images[:, 0, 0, 0] = np.arange(count) // 256
  images[:, 1, 0, 0] = np.arange(count) % 256
  return Arrays(Info("numbered", "train", size, channels, count), images, np.arange(count))


def same(batch, other):
  assert batch.keys() == other.keys()
  for key in batch:
    np.testing.assert_array_equal(batch[key], other[key])


def test_every_epoch_is_another_permutation_that_batches_may_straddle():
  batches = data.train_batches(numbered(50), 15, seed=3)
  labels = np.concatenate([batches[step]["label"] for step in range(20)])
  epochs = labels.reshape(6, 50)
  np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(50), (6, 1)))
  assert len(set(map(tuple, epochs))) == 6
  assert (data.train_batches(numbered(50), 15, seed=4)[0]["label"] != labels[:15]).any()


def test_a_batch_may_be_larger_than_the_data_set():
  labels = data.train_batches(numbered(7), 30)[1]["label"]
  np.testing.assert_array_equal(np.sort(labels[5:26].reshape(3, 7)), np.tile(np.arange(7), (3, 1)))


def test_the_order_is_the_same_on_every_machine_and_for_ever():
  labels = data.train_batches(numbered(50), 10, seed=1)[7]["label"]  # of Philox, whose output NumPy keeps
  assert labels.tolist() == [44, 37, 27, 39, 11, 12, 20, 23, 5, 30]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shards_put_together_are_the_global_batch(processes):
  source = numbered(50)
  options = dict(flip=True, dequantize=True, low_res_size=2)
  whole = data.train_batches(source, 12, **options)
  parts = [data.train_batches(source, 12, process=p, processes=processes, **options) for p in range(processes)]
  for step in (0, 4, 19):  # step 4 straddles the end of the first epoch
    shards = [part[step] for part in parts]
    same(whole[step], {key: np.concatenate([shard[key] for shard in shards]) for key in shards[0]})
  seen = [np.concatenate([part[step]["label"] for step in range(25)]) for part in parts]  # 300 positions, 6 epochs
  np.testing.assert_array_equal(np.bincount(np.concatenate(seen), minlength=50), 6)


def test_resuming_at_any_step_is_bitwise_and_iterators_hold_their_place():
  batches = data.train_batches(numbered(50), 8, seed=5, flip=True)
  unbroken = batches.iterate()
  first = [next(unbroken) for _ in range(30)]
  for step in (0, 6, 7, 13, 29):  # 50 / 8: an epoch ends within step 6
    same(first[step], batches[step])
    same(first[step], next(batches.iterate(step)))
  state = json.loads(json.dumps(unbroken.get_state()))
  after = next(unbroken)
  other = batches.iterate()
  other.set_state(state)
  same(next(other), after)
  same(next(batches.iterate(30, prefetch=0)), after)


def test_flips_mirror_about_half_of_the_images_and_change_nothing_else():
  source = numbered(1000)
  plain = data.train_batches(source, 1000, raw=True)[0]
  flipped = data.train_batches(source, 1000, raw=True, flip=True)[0]
  np.testing.assert_array_equal(plain["label"], flipped["label"])
  mirrored = (flipped["image"] != plain["image"]).any((1, 2, 3))
  np.testing.assert_array_equal(flipped["image"][mirrored], plain["image"][mirrored][:, :, ::-1])
  assert 420 < mirrored.sum() < 580  # 5 standard deviations of Binomial(1000, 1/2)
  again = data.train_batches(source, 1000, raw=True, flip=True)[1]  # the next epoch draws anew
  order = np.argsort(flipped["label"])
  next_order = np.argsort(again["label"])
  assert (again["image"][next_order] != flipped["image"][order]).any()
  np.testing.assert_array_equal(source.images, numbered(1000).images)


def test_batches_are_float_in_minus_one_to_one_and_labels_int32():
  source = numbered(20)
  batch = data.train_batches(source, 6)[2]
  raw = data.train_batches(source, 6, raw=True)[2]
  assert batch["image"].dtype == np.float32 and batch["label"].dtype == np.int32 and raw["image"].dtype == np.uint8
  np.testing.assert_array_equal(batch["image"], raw["image"].astype(np.float32) / 127.5 - 1)
  np.testing.assert_array_equal(raw["image"], source.images[raw["label"]])


def test_dequantized_pixels_stay_within_their_level_uniformly():
  source = numbered(64, size=16)
  batch = data.train_batches(source, 64, dequantize=True)[0]
  within = (batch["image"].astype(np.float64) + 1) * 128 - source.images[batch["label"]]
  # float32 near 1 has steps of 2^-24 .. 2^-23, times 128: levels hold to 2^-16
  assert within.min() >= -(2**-16) and within.max() <= 1 + 2**-16
  # 16,384 draws: standard errors 0.0023 of the mean, 0.0006 of the variance; 5 of each
  assert abs(within.mean() - 1 / 2) < 0.012 and abs(within.var() - 1 / 12) < 0.003
  assert abs(np.corrcoef(within.reshape(64, -1)).ravel()[1:64]).max() < 0.3  # images differ: 256 pixels, 5 / sqrt(256)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_sees_every_image_once_in_order(processes):
  source = numbered(50)
  parts = [data.eval_batches(source, 8, process=p, processes=processes) for p in range(processes)]
  assert all(len(part) == 7 for part in parts)
  batches = [part[step] for step in range(7) for part in parts]
  mask = np.concatenate([batch["mask"] for batch in batches])
  labels = np.concatenate([batch["label"] for batch in batches])
  np.testing.assert_array_equal(labels[mask], np.arange(50))
  assert len(labels) == 56 and all(batch["image"].shape == (8 // processes, 4, 4, 1) for batch in batches)
  assert len(list(parts[0].iterate())) == 7


@pytest.fixture(scope="module")
def pictures():
  return np.random.RandomState(1).randint(0, 256, (12, 20, 20, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path, pictures):
  """cat/, dog/ and emu/ of 4 PNGs each."""
  for number, picture in enumerate(pictures):
    path = tmp_path / "set" / ("cat", "dog", "emu")[number // 4] / f"b{number % 2}_{number:02}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
  (tmp_path / "set/notes.txt").write_text("not an image")
  (tmp_path / "set/cat/.b0_hidden.png").write_text("nor this")
  return tmp_path / "set"


def pack(folder):
  path = folder.with_suffix(".zip")
  with zipfile.ZipFile(path, "w") as archive:
    for file in sorted(folder.rglob("*")):
      archive.write(file, file.relative_to(folder))
  return path


def of(source):
  return {tuple(source[i]["image"].ravel()[:6].tolist()): source[i]["label"] for i in range(len(source))}


def test_folders_and_zips_give_the_same_images_in_and_out_of_memory(folder, pictures):
  source = data.load(str(folder))
  assert source.info == Info(str(folder), "train", 20, 3, 3, by_name=True, class_names=("cat", "dog", "emu"))
  assert of(source) == {tuple(picture.ravel()[:6].tolist()): number // 4 for number, picture in enumerate(pictures)}
  for other in (
    data.load(str(folder), memory_limit=0, threads=1),
    data.load(str(folder), memory_limit=0, threads=3),
    data.load(str(pack(folder)), memory_limit=0),
  ):
    assert len(other) == 12 and other.info.num_classes == 3
    same(data.train_batches(source, 5, flip=True)[2], data.train_batches(other, 5, flip=True)[2])
  assert source[-1]["label"] == 2
  with pytest.raises(IndexError):
    source[12]


def test_labels_come_from_folders_prefixes_tables_or_nowhere(folder, pictures):
  first = tuple(pictures[1].ravel()[:6].tolist())  # cat/b1_01.png, third in order of paths
  load = lambda **options: data.load(str(folder), **options)
  assert of(load(labels="prefix"))[first] == 1 and load(labels="prefix").info.num_classes == 2
  assert of(load(labels="none"))[first] == NO_LABEL and load(labels="none").info.num_classes is None
  paths = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/b*.png"))
  table = ["file,label"] + [f"{path},{7 - index % 2}" for index, path in enumerate(paths)]
  (folder / "labels.csv").write_text("\n".join(table))
  assert of(load())[first] == 7 and load().info.num_classes == 8  # found by "auto", numbers stay as they are
  outside = folder.parent / "names.csv"
  outside.write_text("\n".join(f"{path},{'ba'[index % 2]}" for index, path in enumerate(paths)))
  assert of(load(labels=str(outside)))[first] == 1  # names in alphabetical order
  outside.write_text("\n".join(table[:5]))
  with pytest.raises(UserError, match=r"no class for 8 of 12 images, e.g. dog/b0_04.png"):
    load(labels=str(outside))
  with pytest.raises(UserError, match="no table of labels"):
    load(labels="nowhere.csv")
  with pytest.raises(UserError, match="labels must be"):
    load(labels="guess")
  shutil.copy(folder / "cat/b0_00.png", folder)
  with pytest.raises(UserError, match="in no class folder"):
    load(labels="folders")


def test_splits_are_subfolders_and_parts(folder):
  for name in ("cat", "dog", "emu"):
    shutil.move(folder / name, folder / "train" / name)
    (folder / "test" / name).mkdir(parents=True)
    shutil.copy(min((folder / "train" / name).glob("b*")), folder / "test" / name)
  assert len(data.load(str(folder), "train")) == 12 and len(data.load(str(folder), "test")) == 3
  assert data.load(str(folder), "test").info.num_classes == 3
  whole, *parts = (data.load(str(folder), f"train{part}") for part in ("", "[:25%]", "[25%:-4]", "[-4:]"))
  assert whole.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and [len(part) for part in parts] == [3, 5, 4]
  pixels = [tuple(image.ravel().tolist()) for source in (whole, *parts) for image in source.images]
  assert sorted(pixels[:12]) == sorted(pixels[12:])  # every image is in one part
  assert all(len(set(part.labels.tolist())) > 1 for part in parts)  # which has more than one class
  assert len(data.load("digits", "test[:10]")) == 10
  for name in (str(folder), "digits"):
    with pytest.raises(UserError, match="no folder 'valid'|no split 'valid'"):
      data.load(name, "valid")
    with pytest.raises(UserError, match="is not a split"):
      data.load(name, "train[:")
    with pytest.raises(UserError, match="holds no images"):
      data.load(name, "train[5:5]")


def test_some_images_of_a_folder_are_not_of_one_class(folder):
  source = data.load(str(folder), memory_limit=0)
  some = source.some(6)
  assert (np.diff(some) > 0).all() and some.tolist() == source.in_memory().some(6).tolist()
  assert len({source[i]["label"] for i in some}) == 3
  assert source.some().tolist() == source.some(99).tolist() == list(range(12))
  assert data.load("digits").some(3).tolist() == [0, 1, 2]  # lie in random order


def test_images_are_resized_and_turned_grey_or_coloured_on_request(folder):
  grey = data.load(str(folder), image_size=8, channels=1)
  assert grey.images.shape == (12, 8, 8, 1)
  assert data.load("digits", image_size=16, channels=3).images.shape == (1437, 16, 16, 3)
  for path in folder.glob("*/b*.png"):
    Image.open(path).convert("L").save(path)
  assert data.load(str(folder)).info.channels == 1
  Image.new("RGBA", (20, 20)).save(folder / "cat/colour.png")
  assert data.load(str(folder)).info.channels == 3


def test_random_crops_are_for_training_and_depend_on_seed_and_position_only(folder):
  source = data.load(str(folder), image_size=8, crop="random")
  centre = data.load(str(folder), image_size=8)
  same(data.eval_batches(source, 4)[1], data.eval_batches(centre, 4)[1])
  batches = data.train_batches(source, 4, seed=2)
  same(batches[5], data.train_batches(source, 4, seed=2)[5])
  assert (batches[0]["image"] != data.train_batches(centre, 4, seed=2)[0]["image"]).any()
  halves = [data.train_batches(source, 4, seed=2, process=p, processes=2)[5]["image"] for p in (0, 1)]
  np.testing.assert_array_equal(np.concatenate(halves), batches[5]["image"])


@pytest.mark.parametrize("memory_limit", [0, 2**20])
@pytest.mark.parametrize("zipped", [False, True])
def test_corrupt_images_stop_the_run_or_are_left_out_and_counted(folder, caplog, memory_limit, zipped):
  whole = of(data.load(str(folder)))
  broken = folder / "dog/b1_05.png"
  broken.write_bytes(broken.read_bytes()[:400])
  (folder / "emu/b0_08.png").write_bytes(b"no picture")
  name = str(pack(folder) if zipped else folder)
  with pytest.raises(UserError, match=r"dog/b1_05.png in .* cannot be decoded .* set corrupt='skip'"):
    source = data.load(name, memory_limit=memory_limit)
    data.eval_batches(source, 12)[0]
  source = data.load(name, memory_limit=memory_limit, corrupt="skip")
  assert "skipped 2 of 12 images" in caplog.text and "no known image format" in caplog.text
  left = of(source)
  assert len(left) == len(source) == 10 and left.items() <= whole.items()


def test_errors_in_the_prefetching_thread_reach_the_reader(folder):
  (folder / "dog/b1_05.png").write_bytes(b"no picture")
  batches = data.train_batches(data.load(str(folder), memory_limit=0), 12)
  with pytest.raises(UserError, match="cannot be decoded"):
    next(batches.iterate())


def test_bad_input_is_answered_in_one_sentence(folder, tmp_path, monkeypatch):
  monkeypatch.setenv("DDPM_JAX_DATA", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  (tmp_path / "empty").mkdir()
  (tmp_path / "no.zip").write_bytes(b"PK but not a zip")
  (tmp_path / "mnist/3.0.1").mkdir(parents=True)
  (tmp_path / "mnist/3.0.1/dataset_info.json").write_text("{}")
  for arguments, message in [
    (dict(name="mnits"), r"There is no data set 'mnits' in .*; there is digits, mnist\. Did you mean 'mnist'\?"),
    (dict(name="set"), r"A folder of images is given by its path: \./set\."),
    (dict(name="./nowhere"), "There is no folder or zip nowhere"),
    (dict(name="./empty"), "empty holds no images"),
    (dict(name="no.zip"), "no.zip is not a readable zip file"),
    (dict(name="./set/notes.txt"), "is a file"),
    (dict(name="./set", crop="fancy"), "no crop 'fancy': choose from adm, random, lsun, ddim, celeba"),
    (dict(name="./set", corrupt="ignore"), "'error' or 'skip'"),
    (dict(name="./set", channels=0), "channels must be 1"),
    (dict(name="./set", image_size=0), "image_size must be"),
    (dict(name="./set", image_size=64, crop="celeba"), r"cat/b0_00.png in set: crop 'celeba' is for"),
  ]:
    with pytest.raises(UserError, match=message) as error:
      data.load(**arguments)
    assert "\n" not in str(error.value)
  Image.new("RGB", (30, 20)).save(folder / "cat/wide.png")
  with pytest.raises(
    UserError, match=r"2 sizes \(12 of 20x20, 1 of 30x20; cat/wide.png is 30x20\): resize them, or choose one size"
  ):
    data.load("./set")
  assert len(data.load("./set", image_size=16)) == 13
  batches = data.train_batches
  for call, message in [
    (lambda: batches(numbered(9), 9, processes=2), "cannot be shared evenly"),
    (lambda: batches(numbered(9), 8, process=2, processes=2), "Process 2 must be from 0 to 1"),
    (lambda: batches(numbered(9), 0), "Batch size 0"),
    (lambda: batches(numbered(9), 8, seed=-1), "not -1"),
    (lambda: batches(numbered(9), 8, low_res_size=3), "does not divide"),
    (lambda: batches(numbered(9), 8, low_res_size=2, raw=True), "Raw batches"),
    (lambda: batches(numbered(9), 8, dequantize=True, raw=True), "Raw batches"),
  ]:
    with pytest.raises(UserError, match=message):
      call()


def test_an_image_of_another_size_among_many_is_named(folder):
  for number in range(200):
    shutil.copy(folder / "cat/b0_00.png", folder / f"cat/c{number:03}.png")
  Image.new("RGB", (24, 24)).save(folder / "cat/c001.png")
  with pytest.raises(UserError, match=r"211 of 20x20, 1 of 24x24; cat/c001.png is 24x24\): resize them, or choose one size"):
    data.load(str(folder))


def test_encoded_bytes_need_not_be_png(tmp_path, pictures):
  for suffix in ("jpg", "webp", "bmp", "gif"):
    buffer = io.BytesIO()
    Image.fromarray(pictures[0]).save(buffer, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
    (tmp_path / f"x.{suffix.upper()}").write_bytes(buffer.getvalue())
  assert data.load(str(tmp_path)).images.shape == (4, 20, 20, 3)
