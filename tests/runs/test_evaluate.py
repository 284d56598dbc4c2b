"""ddpm-jax evaluate and report, end to end on a run with random weights."""

import dataclasses
import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest
from PIL import Image
from weights import save_weights

import ddpm_jax
from ddpm_jax import build, config
from ddpm_jax.cli import main
from ddpm_jax.configs.digits import get_config
from ddpm_jax.data import images as pixels
from ddpm_jax.data.digits import digits
from ddpm_jax.errors import UserError
from ddpm_jax.features.classifier import Recipe, train_classifier
from ddpm_jax.jobs import edit, report
from ddpm_jax.jobs.trained import NotFinite

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("DDPM_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("JAX_NUM_CPU_DEVICES", "1")  # JAX runs already and cannot be given more
    yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A checkpoint of untrained weights, and classifier features."""
  folder = tmp_path_factory.mktemp("run")
  smoke = get_config("smoke")
  with smoke.unlocked():
    smoke.data.update(image_size=8, channels=1, num_classes=10)
    smoke.network.update(channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), groups=4)
  params = build.initial_params(build.model(smoke, 1, 10), jax.random.key(0), 8, 1)
  save_weights(str(folder / "checkpoints"), params, smoke.to_dict(), rate="0.999", step=4)
  train = digits("train")
  test = digits("test")
  recipe = Recipe(steps=20, num_features=16)
  train_classifier(train.images, train.labels, test.images, test.labels, recipe=recipe).save(folder / "classifier.npz")
  return folder


def measure(workdir, *arguments, metrics="fid,inception_score,precision_recall", code=0):
  """The JSON of `ddpm-jax evaluate` against a reference."""
  out = workdir / "result.json"
  options = ["--features", str(workdir / "classifier.npz"), "--metrics", metrics, "--out", str(out)]
  assert main.run(["evaluate", *options, *map(str, arguments)]) == code
  return json.loads(out.read_text()) if code == 0 else None


def test_samples_drawn_on_the_way_measure_as_the_same_samples_in_a_file(workdir, capsys):
  drawn = measure(workdir, "--workdir", workdir, "--num_samples", 100, "--reference", "digits@train")
  shown = capsys.readouterr().out
  assert "100 images, drawn on [-1, 1]" in shown and "1,437 images, pixels as stored" in shown and "fid " in shown
  assert drawn["samples"]["count"] == 100 and drawn["reference"]["count"] == 1437
  main.run(["sample", "--workdir", str(workdir), "--seeds", "0-99", "--formats", "npz", "--out", str(workdir / "out")])
  stored = measure(workdir, "--samples", workdir / "out/samples.npz", "--num_samples", 100, "--reference", "digits@train")
  assert stored["metrics"] == drawn["metrics"]
  assert stored["samples"]["sha256"] != drawn["samples"]["sha256"]  # of pixels; of network, settings and seeds


def test_a_reference_is_made_and_used(workdir, capsys):
  reference = workdir / "reference.npz"
  main.run(
    [
      "evaluate",
      "--features",
      str(workdir / "classifier.npz"),
      "--samples",
      "digits@train",
      "--make_reference",
      str(reference),
    ]
  )
  assert "moments of 1,437 images" in capsys.readouterr().out
  test = ["--samples", "digits@test", "--num_samples", 360, "--reference"]
  by_file, by_images = (measure(workdir, *test, real, metrics="fid") for real in (reference, "digits@train"))
  assert by_file["metrics"]["fid"] == pytest.approx(by_images["metrics"]["fid"], rel=1e-9)
  itself = measure(workdir, "--samples", "digits@train", "--num_samples", 1437, "--reference", reference, metrics="fid")
  assert abs(itself["metrics"]["fid"]) < 1e-6


def test_a_metric_of_ones_own(workdir, tmp_path, monkeypatch, capsys):
  """The distance to the nearest image of the same set is 0; a metric of moments gets moments."""
  own = pathlib.Path(__file__).parents[2] / "docs" / "examples" / "metric.py"
  (tmp_path / "own.py").write_text(
    "from ddpm_jax.evaluation.evaluate import Metric\n"
    "shift = Metric('features', 'moments', lambda samples, moments, _: {'all': abs(samples.mean(0) - moments.mean).max()})\n"
    "number = 3\n"
  )
  monkeypatch.chdir(tmp_path)
  names = (f"{own}:distance_to_nearest", "own.py:shift")
  test = ("--samples", "digits@test", "--num_samples", 360, "--reference", "digits@test")
  found = measure(workdir, *test, metrics=",".join(("kid", *names)))["metrics"]
  assert found[names[0]] == 0 and found[names[1]]["all"] < 1e-6 and set(found) == {"kid", *names}  # 24 bits of a mean
  measure(workdir, *test, metrics="own.py:number", code=2)
  assert "own.py:number is not a metric" in capsys.readouterr().err
  measure(workdir, *test, metrics="own.py:absent", code=2)
  assert "has no object 'absent'" in capsys.readouterr().err


def test_a_path_may_have_an_at_sign_of_its_own(workdir):
  path = workdir / "me@home" / "digits.npz"
  path.parent.mkdir()
  np.savez(path, arr_0=IMAGES)
  found = measure(workdir, "--samples", path, "--num_samples", 40, "--reference", path, metrics="kid")
  assert found["samples"]["count"] == found["reference"]["count"] == 40


IMAGES = digits("test").images[:40]
BAD_FILES = {
  "floats": {"arr_0": IMAGES / 255},
  "nan": {"arr_0": np.where(np.arange(40).reshape(-1, 1, 1, 1) == 3, np.nan, IMAGES / 127.5 - 1)},
  "few": {"arr_0": IMAGES[:10]},
  "none": {"arr_0": IMAGES[:0] / 255, "arr_1": np.zeros(0, int)},
  "unnamed": {"images": IMAGES},
  "large": {"arr_0": IMAGES.repeat(2, 1).repeat(2, 2)},
  "rgb": {"arr_0": IMAGES.repeat(3, 3)},
  "oblong": {"arr_0": IMAGES[:, :4]},
  "labels": {"arr_0": IMAGES, "arr_1": np.zeros(3, int)},
  "good": {"arr_0": IMAGES},
  "other_features": {"mu": np.zeros(20), "sigma": np.eye(20)},
  "nan_moments": {"mu": np.full(16, np.nan), "sigma": np.eye(16)},
  "moments_of_large": {"mu": np.zeros(16), "sigma": np.eye(16), "arr_0": IMAGES.repeat(2, 1).repeat(2, 2)},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """The files above, and some that are no .npz."""
  folder = tmp_path_factory.mktemp("files")
  for name, arrays in BAD_FILES.items():
    np.savez(folder / f"{name}.npz", **arrays)
  whole = (folder / "good.npz").read_bytes()
  (folder / "cut.npz").write_bytes(whole[:700])
  (folder / "flipped.npz").write_bytes(whole[:400] + bytes([whole[400] ^ 1]) + whole[401:])
  for number, image in enumerate(IMAGES[:20]):
    pixels.save_png(folder / "mixed" / f"{number:02}.png", image if number else image.repeat(2, 0).repeat(2, 1))
  return folder


TRAIN = ["--reference", "digits@train"]
OF_40 = ["--num_samples", "40"]
REFUSED = [  # "./" stands for the folder of files
  (["./floats.npz", *TRAIN], "are float64 from 0 to 1; they must be uint8"),
  (["./nan.npz", *TRAIN], "Image 3 of .*nan.npz has pixels that are not finite"),
  (["./none.npz", *TRAIN, *OF_40], r"none.npz holds no images: its array of them has shape \(0, 8, 8, 1\)"),
  (["./unnamed.npz", *TRAIN, *OF_40], "unnamed.npz holds images, but images must be in arr_0"),
  (["./few.npz", *TRAIN, "--num_samples", "10"], "10 samples are too few for fid: the covariance of 16 features"),
  (["./few.npz", *TRAIN, *OF_40], "There are 10 samples, but 40 were requested"),
  (["./good.npz", *TRAIN], "40 samples, but published FIDs use 50,000"),
  (["./good.npz", "--reference", "./few.npz", *OF_40], "10 reference images are too few for fid"),
  (["./large.npz", *TRAIN, *OF_40], "are 16x16x1, but the feature network .* was trained on 8x8x1"),
  (["./good.npz", "--reference", "./large.npz", *OF_40], "samples are 8x8x1, the reference .* is 16x16x1"),
  (["./good.npz", "--reference", "./moments_of_large.npz", *OF_40], "samples are 8x8x1, the reference .* is 16x16x1"),
  (["./good.npz", "--reference", "./rgb.npz", *OF_40], "samples are 8x8x1, the reference .* is 8x8x3"),
  (["./oblong.npz", *TRAIN, *OF_40], "are 4x8x1, but the feature network classifier_8x8x1_16"),
  (["./mixed", *TRAIN, "--num_samples", "20"], "have 2 sizes"),
  (["./labels.npz", *TRAIN, *OF_40], r"40 images, but labels \(arr_1\) of shape \(3,\)"),
  (["./cut.npz", *TRAIN, *OF_40], "cut.npz is not a readable zip file"),
  (["./good.npz", "--reference", "./flipped.npz", *OF_40], "arr_0.npy in .*flipped.npz is not a readable array"),
  (["./good.npz", "--reference", "./absent.npz", *OF_40], "no file .*absent.npz"),
  (["./good.npz", "--reference", "./other_features.npz", *OF_40], "has 20 features, but .* gives 16"),
  (["./good.npz", "--reference", "./nan_moments.npz", *OF_40], "moments that are not finite"),
  (["./good.npz", *TRAIN, *OF_40, "--out", "/proc/none/metrics.json"], "/proc/none/metrics.json cannot be written"),
  (["./good.npz", *TRAIN, "--num_samples", "0"], "--num_samples 0 is too few"),
  (["./good.npz", *TRAIN, *OF_40, "--features", "inception_tg"], "did you mean 'inception_tf'"),
  (["./good.npz"], "needs something to compare with"),
  (["./good.npz", *TRAIN, *OF_40, "--clip", "ViT-B-32.pt"], "--clip has no effect on --reference: leave it out"),
  (["./good.npz", "--make_reference", "./new.npz"], "--metrics has no effect on --make_reference: leave"),
  (["./good.npz", *TRAIN, "--likelihood", "8"], "--likelihood is about a network"),
  (["./good.npz", *TRAIN, "--config.sampling.eta=0"], "--config.sampling.eta=0 is about a network"),
]


@pytest.mark.parametrize("arguments, match", REFUSED)
def test_bad_input_is_one_sentence_and_exit_code_2(workdir, files, capsys, arguments, match):
  arguments = [text.replace("./", f"{files}/") for text in ["--samples", *arguments]]
  if "--features" not in arguments:
    arguments += ["--features", str(workdir / "classifier.npz")]
  assert main.run(["evaluate", *arguments, "--metrics", "fid"]) == 2
  errors = [line for line in capsys.readouterr().err.splitlines() if line and "img/s" not in line]  # bars
  assert len(errors) == 1 and errors[0].startswith("ddpm-jax: ") and re.search(match, errors[0]), errors


@pytest.mark.parametrize(
  "arguments, match",
  [
    (["--distance", "64"], "64 images are too few for the covariance of 64 features"),
    (["--distance", "64", "--likelihood", "4"], "64 images are too few for the covariance"),
    (["--distance", "719"], "719 samples are compared with half of the 1437 training images"),
    (["--distance", "99", "--config.data.num_classes=None"], "digits has no labels"),
    (["--ode", "4", "--likelihood", "4"], "needs the schedule vp_sde"),
    (["--likelihood", "4", "--features", "mnist"], "--features is about a comparison"),
    (["--likelihood", "4", "--batch_size", "5"], "--batch_size is about a comparison"),
    (
      ["--reference", "digits@train", "--features", "digits", "--num_samples", "9"],
      "9 images are too few for the covariance",
    ),
    (
      ["--reference", "digits@train", "--features", "digits", "--num_samples", "99", "--out", "/proc/none/x.json"],
      "/proc/none/x.json cannot be written",
    ),
  ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_drawn_or_trained(workdir, arguments, match, capsys):
  before = sorted(workdir.rglob("*"))
  assert main.run(["evaluate", "--workdir", str(workdir), *arguments]) == 2
  shown = capsys.readouterr()
  (error,) = shown.err.splitlines()
  assert re.search(match, error) and "bits/dim" not in shown.out
  assert sorted(workdir.rglob("*")) == before


def test_a_number_of_samples_that_is_not_theirs_is_refused(workdir, capsys):
  options = ["--features", str(workdir / "classifier.npz"), "--num_samples", "361"]
  assert main.run(["evaluate", "--samples", "digits@test", "--make_reference", str(workdir / "no.npz"), *options]) == 2
  assert "There are 360 samples, not 361" in capsys.readouterr().err and not (workdir / "no.npz").exists()


def test_bits_per_dim_with_every_covariance(workdir, capsys):
  """The analytic one by the moments that ddpm-jax moments leaves beside the results."""
  assert main.run(["moments", "--workdir", str(workdir), "--images", "16", "--levels", "5"]) == 0
  folder = workdir / "evaluation"
  likelihood = ["evaluate", "--workdir", str(workdir), "--likelihood", "4"]
  capsys.readouterr()
  assert main.run([*likelihood, "--covariance", "all"]) == 0
  shown = capsys.readouterr().out
  found = {}
  for name in ("posterior", "marginal", "optimal"):
    found[name] = json.loads((folder / f"bits_per_dim_{name}.json").read_text())
    assert found[name]["covariance"] == name and found[name]["steps"] == 20 and f"20 steps, {name} covariance: " in shown
    assert found[name]["bits_per_dim"] == pytest.approx(found[name]["prior"] + sum(found[name]["terms"]), rel=1e-5)
  assert len({result["bits_per_dim"] for result in found.values()}) == 3 and (folder / "covariances.png").exists()

  capsys.readouterr()
  assert main.run([*likelihood, "--covariance", "learned_range"]) == 2
  assert "learned_range" in capsys.readouterr().err
  assert main.run([*likelihood, "--covariance", "optimum"]) == 2
  assert "did you mean 'optimal'?" in capsys.readouterr().err


@pytest.mark.parametrize(
  "assignments, covariance",
  [
    ([], "marginal"),  # the config digits says so
    (["sampling.covariance=posterior"], "posterior"),
    (["sampling.covariance=posterior", "evaluation.covariance=marginal"], "marginal"),
    (["evaluation.covariance=None"], "posterior"),
  ],
)
def test_the_covariance_that_was_asked_for_last_is_measured(assignments, covariance):
  assert build.bound_covariance(config.override(get_config(), assignments)) == covariance


def test_figures_of_the_paper(workdir):
  assert main.run(["evaluate", "--workdir", str(workdir), "--figures"]) == 0
  for name in ("samples", "progressive", "interpolation", "nearest_neighbours"):
    with Image.open(workdir / "evaluation" / f"{name}.png") as picture:
      assert picture.size[0] >= 500
  trained = ddpm_jax.load(workdir)
  source = trained.dataset("test")
  pairs = np.array([[0, 1], [2, 3], [4, 5]])
  near = edit.between(trained, source, pairs, frames=2, strength=0.05)  # of one of 20 levels: almost the images themselves
  error = np.abs(near.astype(float) - source.gather(pairs.ravel())[0].reshape(near.shape))
  assert error.mean() < 8, "grey levels"


def test_samples_that_share_a_noisy_image(workdir):
  """Near the images they are almost the images; all differ, and not every sampler can draw them."""
  trained = ddpm_jax.load(workdir)
  source = trained.dataset("test")
  drawn = edit.resample(trained, source, [3, 5], count=3, level=1).astype(float)
  assert drawn.shape == (2, 3, 8, 8, 1)
  assert np.abs(drawn - source.gather(np.array([3, 5]))[0][:, None]).mean() < 8, "grey levels"
  drawn = edit.resample(trained, source, [3], count=3, level=20)
  assert len(np.unique(drawn, axis=1)[0]) == 3
  for level, sampling, message in ((21, {}, "between 1 and 20"), (5, dict(eta=0.0), "adds no noise")):
    with pytest.raises(UserError, match=message):
      edit.resample(trained.changed(sampling=sampling), source, [3], 2, level)


def test_mixtures_of_pixels(workdir):
  source = ddpm_jax.load(workdir).dataset("test")
  first, last = source.gather(np.array([4, 9]))[0].astype(float)
  row = edit.mixed(source, np.array([[4, 9]]), frames=3)[0]
  np.testing.assert_array_equal(row[::2], np.stack([first, last]))
  assert np.abs(row[1] - (first + last) / 2).max() <= 0.5


def test_pictures_between_and_of_one_noisy_image(workdir):
  assert (
    main.run(["edit", "between", "--workdir", str(workdir), "--images", "0-3", "--strength", "0.2,1", "--frames", "3"]) == 0
  )
  assert main.run(["edit", "resample", "--workdir", str(workdir), "--images", "0,1,2", "--level", "5", "--count", "4"]) == 0
  shapes = {}
  for name in ("between", "resample"):
    with Image.open(workdir / "edits" / f"{name}.png") as picture:
      shapes[name] = picture.size[0] / picture.size[1]
  # 2 pairs of 1 + 2 rows with 3 frames; 3 rows of 1 + 4 images
  assert shapes["between"] == pytest.approx(3 / 6, rel=0.1)
  assert shapes["resample"] == pytest.approx(5 / 3, rel=0.1)
  assert main.run(["edit", "between", "--workdir", str(workdir), "--images", "0-2"]) == 2


def test_both_splits_and_their_gap(workdir, capsys):
  assert main.run(["evaluate", "--workdir", str(workdir), "--likelihood", "4", "--split", "train,test"]) == 0
  shown = capsys.readouterr().out
  found = [json.loads((workdir / "evaluation" / f"bits_per_dim{end}.json").read_text()) for end in ("_on_train", "")]
  assert [one["split"] for one in found] == ["train", "test"]
  assert f"{found[1]['bits_per_dim'] - found[0]['bits_per_dim']:+.3f} bits/dim" in shown
  for one in found:
    assert len(one["rate_bits_per_dim"]) == len(one["distortion_rmse"]) == one["steps"]
    assert one["rate_bits_per_dim"][0] == pytest.approx(one["prior"])
    assert one["rate_bits_per_dim"][-1] + one["terms"][-1] == pytest.approx(one["bits_per_dim"], rel=1e-5)  # float32
  assert main.run(["evaluate", "--workdir", str(workdir), "--split", "nowhere"]) == 2


def test_what_is_no_number_becomes_no_pixel(workdir, capsys):
  """Neither in samples nor in bits/dim."""
  trained = ddpm_jax.load(workdir)
  x = np.zeros((4, 8, 8, 1), np.float32)
  x[1, 2, 3] = np.inf
  x[3] = np.nan
  with pytest.raises(NotFinite, match=r"2 of 4 samples .* \(inf; seeds 6, 8\): the weights are finite, so lower"):
    trained.to_pixels(x, [5, 6, 7, 8])
  nan = dataclasses.replace(
    trained, network=trained.network.replace(params=jax.tree.map(lambda leaf: leaf * np.nan, trained.network.params))
  )
  with pytest.raises(NotFinite, match="2 of 2 bounds are not finite .*test images 0, 1"):
    nan.bits_per_dim(nan.dataset("test"), 2)
  save_weights(str(workdir / "nan/checkpoints"), nan.network.params, trained.config.to_dict(), rate="0", step=4)
  assert main.run(["sample", "--seeds", "0-2", "--workdir", str(workdir / "nan")]) == 2
  complaint = capsys.readouterr().err.splitlines()[-1]
  assert "has values that are not finite" in complaint
  assert not list((workdir / "nan").rglob("*.png"))


# ---------------------------------------------------------------- the page


def test_results_of_other_settings_do_not_overwrite_each_other(workdir):
  common = ["--workdir", workdir, "--reference", "digits@train", "--num_samples", "20", "--metrics", "kid"]
  common = ["evaluate", *map(str, common), "--features", str(workdir / "classifier.npz")]
  for more in (["--steps", "2"], ["--steps", "3"], ["--steps", "2"]):
    assert main.run([*common, "--sampler", "ddim", *more]) == 0
  found = {file.name: json.loads(file.read_text())["sampling"] for file in workdir.glob("evaluation/metrics*.json")}
  assert sorted(found) == ["metrics.json", "metrics_2.json"]
  assert "2steps" in found["metrics.json"] and "3steps" in found["metrics_2.json"]


@pytest.fixture(scope="module")
def page(workdir, tmp_path_factory):
  """The report about the run, with samples, curves and measurements."""
  checkpoint = workdir / "checkpoints"
  workdir = tmp_path_factory.mktemp("page")
  shutil.copytree(checkpoint, workdir / "checkpoints")
  grid = pixels.grid(digits("test").images[:16])
  pixels.save_png(workdir / "samples/50steps/grid.png", grid)
  pixels.save_gif(workdir / "samples/50steps/denoising.gif", [grid, 255 - grid])
  rows = [{"step": step, "loss": 1 / step, "grad_norm": 1.0, "images_per_second": 100.0} for step in (1, 2, 3)]
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')  # killed
  (workdir / "evaluation").mkdir(exist_ok=True)
  (workdir / "evaluation/distance.json").write_text(json.dumps({"samples": 12.5, "features": {"name": "<b>&"}}))
  (workdir / "commands.log").write_text("2026-01-02 03:04  ddpm-jax evaluate --workdir runs/mine --distance 100\n")
  metrics = {"metrics": {"fid": 7.25}, "features": {"name": "classifier_8x8x1_64"}}
  (workdir / "evaluation/metrics.json").write_text(json.dumps(metrics))
  assert main.run(["report", "--workdir", str(workdir)]) == 0
  return workdir / "report.html"


class Page(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.open = []
    self.images = []
    self.text = ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    assert not {"href", "srcset"} & attrs.keys() and tag not in ("script", "link", "iframe")
    if tag == "img":
      self.images.append(attrs["src"])
    elif tag != "meta":
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def test_the_page_holds_everything_and_refers_to_nothing(page):
  text = page.read_text()
  parsed = Page(text)
  assert not parsed.open and "http://" not in text and "https://" not in text and "url(" not in text
  assert [re.match(r"data:(image/\w+);base64,", src)[1] for src in parsed.images] == ["image/gif", "image/png", "image/png"]
  for words in (
    "digits, step 4",
    "Fréchet distance of samples, in features of the data set's classifier",
    "training time",
    "ddpm-jax evaluate --workdir runs/mine --distance 100",
    "12.5",
    "<b>&",
    "ddpm-jax evaluate",
    "FID in features of classifier_8x8x1_64",
    "7.25",
    '"channel_mult"',
    "3 rows of metrics.jsonl",
    "Python",
  ):
    assert words in parsed.text, words


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_every_picture_and_does_not_scroll_sideways(page, tmp_path, width):
  """A phone is 390 pixels wide. Windows are at least 500 wide, frames are not: the page tells the frame's owner its size."""
  tell = (
    "<script>onload = () => { const root = document.documentElement; parent.postMessage({"
    "pictures: [...document.images].map(i => i.naturalWidth > 0), over: root.scrollWidth - root.clientWidth}, '*') }"
    "</script>"
  )
  (tmp_path / "page.html").write_text(page.read_text().replace("</body>", f"{tell}</body>"))
  listen = "<script>onmessage = event => document.body.textContent = JSON.stringify(event.data)</script>"
  frame = f'<iframe width="{width}" height="800" src="page.html"></iframe>'
  (tmp_path / "frame.html").write_text(f"<!doctype html><body>{listen}{frame}</body>")
  options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,900", "--virtual-time-budget=10000"]
  command = [CHROMIUM, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "frame.html").as_uri()]
  dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
  told = json.loads(re.search(r"\{.*\}", dom)[0])
  assert told == {"pictures": [True, True, True], "over": 0}


def test_a_directory_without_a_run_is_refused(tmp_path, capsys):
  assert main.run(["report", "--workdir", str(tmp_path)]) == 2
  assert "holds no checkpoint" in capsys.readouterr().err
  assert not list(pathlib.Path(tmp_path).iterdir())


def test_the_page_of_a_bare_checkpoint_has_its_config(workdir, tmp_path):
  shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
  assert '"channel_mult"' in Page(report.text_of(tmp_path)).text
