"""Feature networks, extraction and evaluation keep their promises."""

import os
import subprocess
import sys
import textwrap
import types

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.data.digits import digits
from ddpm_jax.data.images import save_npz, save_png
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import image_sets, quality, references
from ddpm_jax.evaluation.evaluate import evaluate
from ddpm_jax.features import classifier
from ddpm_jax.features import extract as extraction
from ddpm_jax.features.classifier import Recipe, train_classifier
from ddpm_jax.features.extract import extract
from ddpm_jax.files import npz as storage
from ddpm_jax.metrics.frechet import fid

QUICK = Recipe(steps=20, num_features=16)


@pytest.fixture(scope="module")
def held_out():
  return digits("test")


@pytest.fixture(scope="module")
def net(held_out):
  train = digits("train")
  return train_classifier(train.images, train.labels, held_out.images, held_out.labels, recipe=QUICK)


def test_classifier_of_digits_learns_in_seconds(held_out):
  """Four seeds of 600 steps gave 98.3 to 100 %; a quarter of the steps is enough for 95 %."""
  train = digits("train")
  net = train_classifier(train.images, train.labels, held_out.images, held_out.labels, recipe=Recipe(steps=150))
  assert net.test_accuracy > 0.95
  predicted = np.asarray(net.logits(held_out.images)).argmax(1)
  assert (predicted == held_out.labels).mean() == pytest.approx(net.test_accuracy, abs=1 / 360)  # other batch size
  assert net.features(held_out.images).shape == (360, 64)


def test_classifier_is_a_function_of_its_seed(held_out, net):
  train = digits("train")
  again = train_classifier(train.images, train.labels, held_out.images, held_out.labels, recipe=QUICK)
  assert again.digest == net.digest and again.describe() == net.describe()


def test_a_data_set_names_its_features(net, tmp_path, monkeypatch):
  """Trained the first time, then read from the cache."""
  trained = []
  monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path))
  monkeypatch.setattr(classifier, "train_classifier", lambda *data, recipe, progress: trained.append(recipe) or net)
  assert quality.classifier_for("digits").digest == quality.classifier_for("digits").digest == net.digest
  assert trained == [Recipe()] and len(list(tmp_path.rglob("*.npz"))) == 1
  (tmp_path / "colour").mkdir()
  save_png(tmp_path / "colour/train/a.png", np.zeros((8, 8, 3), np.uint8))
  save_png(tmp_path / "colour/test/a.png", np.zeros((8, 8, 3), np.uint8))
  with pytest.raises(UserError, match="has no labels"):
    quality.classifier_for(str(tmp_path / "colour"))


def test_photographs_are_mirrored_and_digits_are_not():
  image = jnp.arange(25, dtype=jnp.uint8).reshape(1, 5, 5, 1).repeat(64, 0)
  assert Recipe.suiting(3).flip and not Recipe.suiting(1).flip
  for flip, rightwards in ((False, {1}), (True, {1, -1})):
    seen = classifier._moved(Recipe(flip=flip, max_shift=0), jax.random.key(0), image).astype(int)
    assert set(np.unique(np.diff(seen[:, 2, :, 0], axis=1)).tolist()) == rightwards


def test_feature_net_comes_back_from_its_file(held_out, net, tmp_path):
  net.save(tmp_path / "net.npz")
  restored = classifier.restore(tmp_path / "net.npz")
  assert restored.describe() == net.describe()
  np.testing.assert_array_equal(restored.features(held_out.images[:9]), net.features(held_out.images[:9]))


def test_extraction_drops_and_repeats_no_image(held_out, net):
  """Any batch size gives the same N features in order; a batch of another size may round differently."""
  whole = extract(net, held_out, batch_size=360, outputs=("features", "logits"))
  assert whole["features"].shape == (360, 16) and whole["logits"].shape == (360, 10)
  for batch_size in (7, 100):
    parts = extract(net, held_out, batch_size=batch_size)
    np.testing.assert_allclose(parts["features"], whole["features"], rtol=1e-4, atol=1e-5)


def test_extraction_goes_on_where_it_stopped(held_out, net, tmp_path, monkeypatch):
  monkeypatch.setattr(extraction, "CHUNK", 100)

  class Watched:
    read = []
    fail_at = 250

    def __len__(self):
      return 360

    def gather(self, indices):
      if max(indices) >= self.fail_at:
        raise KeyboardInterrupt
      self.read.extend(indices)
      return held_out.gather(indices)

  images = Watched()
  keep = dict(folder=tmp_path, source="the digits", batch_size=50)
  with pytest.raises(KeyboardInterrupt):
    extract(net, images, **keep)
  files = sorted(tmp_path.rglob("*.npz"))
  assert [file.name for file in files] == ["000000000.npz", "000000100.npz"]
  damaged = bytearray(files[0].read_bytes())
  damaged[len(damaged) // 2] ^= 1
  files[0].write_bytes(damaged)
  images.read.clear()
  images.fail_at = 1000
  resumed = extract(net, images, **keep)["features"]
  assert images.read == [*range(100), *range(200, 360)]  # all but the one good chunk
  np.testing.assert_array_equal(resumed, extract(net, held_out, batch_size=50)["features"])


def test_features_do_not_depend_on_the_number_of_devices(net, tmp_path):
  """Bit by bit, on 1 and on 8 (virtual) devices of a process of its own."""
  net.save(tmp_path / "net.npz")
  program = textwrap.dedent(f"""
    import jax, numpy as np
    from ddpm_jax.data.digits import digits
    from ddpm_jax.features import classifier
    from ddpm_jax.features.extract import extract
    net = classifier.restore({str(tmp_path / "net.npz")!r})
    one, eight = (extract(net, digits("test"), batch_size=16, devices=jax.devices()[:n])["features"] for n in (1, 8))
    np.testing.assert_array_equal(one, eight)
    """)
  env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
  subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | env)


def test_bad_input_to_feature_networks_is_one_sentence(held_out, net, tmp_path):
  with pytest.raises(UserError, match="no images"):
    extract(net, digits_of(held_out, slice(0, 0)))
  with pytest.raises(UserError, match="4x4x1, but the feature network .* 8x8x1"):
    extract(net, digits_of(held_out, (slice(0, 5), slice(0, 4), slice(0, 4))))
  with pytest.raises(UserError, match="uint8 .* not on float32"):
    train_classifier(*[a.astype(np.float32) for a in (held_out.images, held_out.labels)] * 2)
  storage.write(tmp_path / "other.npz", {"a": np.zeros(3)}, {})
  with pytest.raises(UserError, match="does not contain a feature network"):
    classifier.restore(tmp_path / "other.npz")
  with pytest.raises(UserError, match="no file"):
    classifier.restore(tmp_path / "absent.npz")
  content = (tmp_path / "other.npz").read_bytes()
  (tmp_path / "other.npz").write_bytes(content[:-40])
  with pytest.raises(UserError, match="is not a readable zip file"):
    classifier.restore(tmp_path / "other.npz")


def digits_of(source, index):
  images = source.images[index]
  return type(source)(source.info, images, source.labels[: len(images)])


# ---------------------------------------------------------------- whole evaluations


@flax.struct.dataclass
class Projection:
  """A stand-in for Inception: random projections of the pixels, under its outputs' names."""

  weights: jax.Array
  name: str = flax.struct.field(pytree_node=False, default="inception_tf")

  def __call__(self, images):
    flat = images.reshape(len(images), -1) / 255.0 @ self.weights
    return {"features": flat[:, :20], "spatial": flat[:, 20:30], "logits": flat[:, 30:]}

  @property
  def digest(self):
    return storage.digest({"weights": self.weights})

  def check(self, image_shape):
    pass

  def describe(self):
    return {"name": self.name, "sha256": self.digest}


@pytest.fixture(scope="module")
def projection():
  return Projection(jax.random.normal(jax.random.key(0), (64, 40)))


@pytest.fixture(scope="module")
def halves():
  """Two halves of the training digits, 700 each."""
  images = digits("train").images
  return [image_sets.of_arrays(name, {"arr_0": part}) for name, part in (("a", images[:700]), ("b", images[700:1400]))]


def test_an_evaluation_says_everything(halves, projection):
  result = evaluate(*halves, projection, count=700, subsets=3)
  assert set(result["metrics"]) == {"fid", "sfid", "inception_score", "precision_recall", "kid"}
  a, b = (projection(half.source.images)["features"] for half in halves)
  assert result["metrics"]["fid"] == pytest.approx(fid(np.asarray(b), np.asarray(a)), rel=1e-5)
  assert result["metrics"]["precision_recall"]["precision"] > 0.7
  assert result["samples"] == {
    "name": "a",
    "count": 700,
    "image_shape": [8, 8, 1],
    "sha256": halves[0].sha256,
    "preprocessing": "uint8 pixels of the file",
  }
  assert result["reference"]["sha256"] == halves[1].sha256 != halves[0].sha256
  assert result["features"]["sha256"] == projection.digest


def test_a_set_against_itself_is_at_distance_zero(halves, projection):
  metrics = evaluate(halves[0], halves[0], projection, count=700, subsets=3)["metrics"]
  assert abs(metrics["fid"]) < 1e-6 and abs(metrics["sfid"]) < 1e-6
  assert metrics["precision_recall"]["precision"] == metrics["precision_recall"]["recall"] == 1


def test_a_reference_file_stands_for_its_images(halves, projection, tmp_path):
  """Written and read, in OpenAI's layout; and the same without what only this project writes."""
  references.write(tmp_path / "ours.npz", references.make(halves[1], projection, near=300))
  arrays, meta = storage.read(tmp_path / "ours.npz")
  assert set(arrays) == {"mu", "sigma", "mu_s", "sigma_s", "arr_0"} and arrays["arr_0"].shape == (300, 8, 8, 1)
  assert meta["count"] == 700 and meta["sha256"] == halves[1].sha256
  direct = evaluate(*halves, projection, count=700, subsets=3)["metrics"]
  np.savez(tmp_path / "openai.npz", **arrays)
  for name in ("ours", "openai"):
    result = evaluate(halves[0], references.read(tmp_path / f"{name}.npz"), projection, count=700, subsets=3)
    assert result["metrics"]["fid"] == pytest.approx(direct["fid"], rel=1e-12)
    assert result["metrics"]["sfid"] == pytest.approx(direct["sfid"], rel=1e-12)
    assert result["metrics"]["precision_recall"]["reference_count"] == 300


def test_images_come_from_files_folders_and_data_sets(tmp_path, halves):
  images = digits("test").images[:20]
  save_npz(tmp_path / "a.npz", images, np.arange(20) % 10)
  for number, image in enumerate(images):
    save_png(tmp_path / "folder" / f"{number:02}.png", image)
  sets = [image_sets.open_set(str(tmp_path / name)) for name in ("a.npz", "folder")]
  for images_set in sets:
    np.testing.assert_array_equal(images_set.source.gather(np.arange(20))[0], images)
  assert sets[0].sha256 == sets[1].sha256 == image_sets.pixel_digest(images)  # small sets are held as pixels
  assert image_sets.open_set("digits", "test").name == "digits test"
  encoded = [image_sets.of_source(data.load(str(tmp_path / "folder"), memory_limit=0)) for _ in range(2)]
  assert encoded[0].sha256 == encoded[1].sha256 != sets[0].sha256


def test_drawn_images_are_all_drawn_once_by_their_seeds():
  asked = []

  def draw(seeds):
    asked.extend(seeds)
    return np.full((len(seeds), 2, 2, 1), seeds[:, None, None, None] % 256, np.uint8)

  images = image_sets.drawn(draw, 2500, (2, 2, 1), name="drawn", sha256="0", preprocessing="none")
  for start in range(0, 2500, 300):
    indices = np.arange(start, min(start + 300, 2500))
    np.testing.assert_array_equal(images.source.gather(indices)[0][:, 0, 0, 0], indices % 256)
  assert asked == list(range(2500))


def test_classes_of_drawn_images_are_balanced_across_blocks(monkeypatch):
  """60 images in blocks of 16: each of 4 classes 15 times, image i always of the same class."""
  monkeypatch.setattr(image_sets, "DRAWN", 16)
  drawn = []

  def sample(seeds, labels):
    drawn.extend(zip(seeds, labels, strict=True))
    return np.zeros((len(seeds), 2, 2, 1), np.uint8)

  config = ml_collections.ConfigDict({"data": {"name": "digits"}, "sampling": {"rounding": "truncate"}})
  trained = types.SimpleNamespace(
    config=config,
    network=types.SimpleNamespace(params={"w": np.zeros(3)}),
    guide=None,
    step=7,
    weights="EMA 0.99",
    image_shape=(2, 2, 1),
    sample=sample,
    labels=lambda seeds: np.arange(len(seeds)) % 4,
  )
  run = image_sets.of_run(trained, 60)
  for start in range(0, 60, 7):
    run.source.gather(np.arange(start, min(start + 7, 60)))
  assert drawn == [(seed, seed % 4) for seed in range(60)]
  assert run.name == "samples of digits, step 7, EMA 0.99"


def test_bad_input_to_evaluations_is_one_sentence(halves, projection, net, tmp_path):
  images = halves[0].source.images

  def refuses(match, call, *args, **kwargs):
    with pytest.raises(UserError, match=match) as error:
      call(*args, **kwargs)
    assert "\n" not in str(error.value)

  def npz(array, name="bad.npz"):
    np.savez(tmp_path / name, arr_0=array)
    return str(tmp_path / name)

  bad = images[:5].astype(np.float32)
  refuses("float32 from 0 to 255; they must be uint8", image_sets.open_set, npz(bad))
  bad[3, 0, 0] = np.nan
  refuses("Image 3 of .*bad.npz has pixels that are not finite", image_sets.open_set, npz(bad))
  refuses("are int64; they must be uint8", image_sets.open_set, npz(images.astype(np.int64)))
  refuses("have their channels first", image_sets.open_set, npz(np.zeros((4, 3, 32, 32), np.uint8)))
  refuses("have their channels first", image_sets.open_set, npz(images.transpose(0, 3, 1, 2)))
  refuses(r"shape \(5, 8, 8\); they must be \[N, height, width, channels", image_sets.open_set, npz(images[:5, ..., 0]))
  path = npz(images)
  content = open(path, "rb").read()
  open(path, "wb").write(content[:5000])
  refuses("is not a readable zip file", image_sets.open_set, path)
  np.savez(tmp_path / "stats.npz", mu=np.zeros(20), sigma=np.eye(20))
  refuses("holds mu, sigma, but images must be in arr_0", image_sets.open_set, str(tmp_path / "stats.npz"))
  refuses("but no mu and sigma: it is not a reference", references.read, npz(images))

  refuses("There are 700 samples, but published FIDs use 50,000", evaluate, *halves, projection)
  refuses("There are 700 samples, but 800 were requested", evaluate, *halves, projection, count=800)
  few = image_sets.of_arrays("few", {"arr_0": images[:20]})
  refuses(
    "20 samples are too few for s?fid: the covariance of 20 features",
    evaluate,
    few,
    halves[1],
    projection,
    count=20,
    metrics=["fid"],
  )
  refuses("20 reference images are too few", evaluate, halves[0], few, projection, count=700, metrics=["fid"])
  large = image_sets.of_arrays("large", {"arr_0": images.repeat(2, 1).repeat(2, 2)})
  refuses("samples are 8x8x1, the reference large is 16x16x1", evaluate, halves[0], large, projection, count=700)
  narrow = image_sets.of_arrays("narrow", {"arr_0": images[:, :, :4]})
  refuses("samples are 8x8x1, the reference narrow is 8x4x1", evaluate, halves[0], narrow, projection, count=700)
  refuses("no metric 'fids'; did you mean 'fid'", evaluate, *halves, projection, count=700, metrics=["fids"])
  refuses(
    "sfid cannot be computed: the feature network has no output .spatial.",
    evaluate,
    *halves,
    net,
    count=700,
    metrics=["sfid"],
  )
  statistics = references.read(tmp_path / "stats.npz")
  refuses(
    "kid cannot be computed: the reference has no images",
    evaluate,
    halves[0],
    statistics,
    projection,
    count=700,
    metrics=["kid"],
  )
  refuses("has 20 features, but classifier_8x8x1_16 gives 16", evaluate, halves[0], statistics, net, count=700)
  references.write(tmp_path / "ours.npz", references.make(halves[1], projection))
  refuses(
    "made with the features inception_tf .* not with classifier_8x8x1_16",
    evaluate,
    halves[0],
    references.read(tmp_path / "ours.npz"),
    net,
    count=700,
  )
  arrays, _ = storage.read(tmp_path / "ours.npz")
  np.savez(tmp_path / "openai.npz", **arrays)
  refuses(
    "a reference of OpenAI's, made with inception_tf, not with other",
    evaluate,
    halves[0],
    references.read(tmp_path / "openai.npz"),
    projection.replace(name="other"),
    count=700,
  )
