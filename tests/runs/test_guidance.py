"""Guidance, fast solvers, cascades and edits from the command line.

Networks have one level. Two are trained, for 4 steps; the others have random weights, which takes no compilation, and
leaves no output at the zeros that networks begin with.
"""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from weights import save_weights

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax.cli import main
from ddpm_jax.jobs import edit, train

# Compiles in seconds. With a group per channel, normalisation would take out what labels add to channels.
TINY = ["channels=8", "channel_mult=(1,)", "groups=4", "attention_resolutions=()", "block_size=1"]
CLASSIFIER = ["channels=8", "channel_mult=(1,)", "attention_resolutions=()", "head_channels=8"]
TRAINED = {"classifier": ("mnist_classifier:smoke", CLASSIFIER), "sr": ("mnist_sr:smoke", TINY)}
UNTRAINED = {"plain": "mnist:smoke", "cond": "mnist_cond:smoke", "base": "mnist_sr:base-smoke"}
FAST = ["--config.sampling.grid=log_snr", "--config.sampling.steps=5"]


def by(kind, scale, model=None, **more):
  options = {"kind": kind, "scale": scale, "model": model, **more}
  return [f"--config.sampling.guidance.{name}={value}" for name, value in options.items() if value is not None]


def untrained(directory, name: str, step: int):
  """A checkpoint of random weights."""
  config = configs.override(configs.load(name), [f"network.{field}" for field in TINY])
  plan = train.prepare(config)
  rng = np.random.default_rng(step)
  draw = lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32)
  params = jax.tree.map(draw, jax.eval_shape(plan.init).params)
  save_weights(str(directory), params, plan.config.to_dict(), rate="0.999", step=step)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A directory with all runs."""
  folder = tmp_path_factory.mktemp("runs")
  jax.config.update("jax_disable_most_optimizations", True)  # compilation is what takes time here: half as long
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_NUM_CPU_DEVICES", "1")  # those that the tests have
    for name, config in UNTRAINED.items():
      untrained(folder / name / "checkpoints", config, 4)
    untrained(folder / "plain" / "checkpoints", "mnist:smoke", 2)
    for name, (config, network) in TRAINED.items():
      fields = [f"--config.network.{field}" for field in network]
      assert main.run(["train", "--config", config, "--workdir", f"{folder}/{name}", *fields]) == 0
    yield folder
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def images(runs, tmp_path):
  """images("plain", *flags): (images, labels) of 6 seeds."""

  def draw(name, *flags):
    out = tmp_path / str(len(list(tmp_path.iterdir())))  # a folder holds samples of one setting
    args = ["sample", "--workdir", f"{runs}/{name}", "--seeds", "0-5", "--formats", "npz", "--out", str(out)]
    assert main.run([*args, *flags]) == 0
    stored = np.load(out / "samples.npz")
    return stored["arr_0"], stored.get("arr_1")

  return draw


def test_classifier_reports_accuracy_by_quarters_of_noise(runs, capsys):
  rows = [json.loads(row) for row in (runs / "classifier" / "metrics.jsonl").read_text().splitlines()]
  assert {"cross_entropy", "top1", "top5", "top1_q0", "top5_q3", "cross_entropy_q2"} <= set(rows[0])
  assert main.run(["evaluate", "--workdir", f"{runs}/classifier"]) == 0
  result = json.loads((runs / "classifier/evaluation/accuracy.json").read_text())
  assert result["images"] == 360 and 0 <= result["top1"] <= result["top5"] <= 1
  # 360 levels spread evenly: a mean over all is the mean of the quarters
  np.testing.assert_allclose(result["top1"], np.mean([result[f"top1_q{q}"] for q in range(4)]), atol=1e-6)
  assert "by quarter" in capsys.readouterr().out


@pytest.mark.parametrize(
  "flags", [[], ["--config.sampling.eta=0"], ["--config.sampling.solver=dpm++2m", *FAST]], ids=["mean", "score", "solver"]
)
def test_classifier_guides_an_unconditional_network(runs, images, flags):
  unguided, labels = images("plain", *flags)
  assert labels is None
  guide = f"{runs}/classifier"
  same, _ = images("plain", *flags, *by("classifier", 0.0, guide))
  np.testing.assert_array_equal(same, unguided)
  guided, labels = images("plain", *flags, *by("classifier", 50.0, guide), "--classes", "3,5")
  np.testing.assert_array_equal(labels, [3, 5, 3, 5, 3, 5])
  assert (guided != unguided).any()


def test_classifier_free_guidance_of_balanced_classes(runs, images):
  conditional, labels = images("cond", *by("None", None))
  np.testing.assert_array_equal(labels, np.arange(6))  # all classes in turn
  guided, _ = images("cond", *by("classifier_free", 4.0))
  assert (guided != conditional).any()
  everywhere, _ = images("cond", *by("classifier_free", 4.0, interval="(1,20)"))  # there are 20 levels
  np.testing.assert_allclose(everywhere.astype(int), guided, atol=1)  # rounding of pixels
  run = ddpm_jax.load(runs / "cond")
  counts = np.bincount(run.labels(range(50)))
  np.testing.assert_array_equal(counts, 5)


def test_autoguidance_by_an_earlier_checkpoint(runs, images):
  plain, _ = images("plain")
  guided, _ = images("plain", *by("autoguidance", 3.0, f"{runs}/plain", step=2))
  assert (guided != plain).any()


@pytest.mark.parametrize("solver", ["dpm++1", "dpm++3m", "dpm++2s", "dpm++2m_sde", "heun", "unipc2", "unipc3_bh1"])
def test_every_solver_draws(images, solver):
  drawn, _ = images("plain", f"--config.sampling.solver={solver}", *FAST)
  assert drawn.shape == (6, 8, 8, 1)


def test_cascade_enlarges_what_the_first_stage_drew(runs, images):
  small, _ = images("base")
  large, _ = images("base", "--upsampler", f"{runs}/sr")
  assert small.shape == (6, 4, 4, 1) and large.shape == (6, 8, 8, 1)
  upsampler = ddpm_jax.load(runs / "sr")
  np.testing.assert_array_equal(large, upsampler.sample(range(6), low_res=small))
  np.testing.assert_array_equal(large[2:3], upsampler.sample([2], low_res=small[2:3]))


def test_edits(runs, capsys):
  work = ["--workdir", f"{runs}/plain", "--images", "0-3"]
  assert main.run(["edit", "reconstruct", *work, "--steps", "5"]) == 0
  assert np.isfinite(json.loads((runs / "plain/edits/reconstruct.json").read_text())["error"]["5"])
  assert main.run(["edit", "image_to_image", *work, "--strength", "0.3"]) == 0
  assert main.run(["edit", "inpaint", *work, "--hide", "left", "--jump", "2", "--resamples", "2"]) == 0
  between = ["--seeds", "0-3", "--frames", "18", "--config.sampling.eta=0"]
  assert main.run(["edit", "interpolate", "--workdir", f"{runs}/plain", *between]) == 0
  with Image.open(runs / "plain/edits/interpolate.png") as picture:
    assert picture.size[0] == 8 * (18 * 9 - 1)  # all frames
  for task in ("reconstruct", "image_to_image", "inpaint", "interpolate"):
    with Image.open(runs / f"plain/edits/{task}.png") as picture:
      assert picture.size[0] >= 256
  run = ddpm_jax.load(runs / "plain")
  source = run.dataset("test")
  known = np.zeros((8, 8), bool)
  known[:, 4:] = True
  drawn = edit.inpaint(run, source, range(4), range(4), known, jump=2, resamples=2)
  np.testing.assert_array_equal(drawn[:, :, 4:], source.gather(np.arange(4))[0][:, :, 4:])


@pytest.mark.parametrize(
  "task, flags, match",
  [
    ("reconstruct", ["--steps", "3,9999"], "9999 steps do not fit a chain of T = 20"),
    ("reconstruct", ["--images", "9999"], "no test image 9999"),
    ("image_to_image", ["--strength", "2"], "strength = 2.0 must be greater than 0"),
    ("image_to_image", ["--seeds", "1"], "16 images but 1 seeds"),
    ("inpaint", ["--resamples", "0"], "resamples = 0 at least 1"),
    ("interpolate", ["--seeds", "0-2"], "use an even number"),
    ("interpolate", ["--frames", "1"], "1 frames cannot show both ends"),
    ("inpaint", ["--strength", "1"], "unknown argument --strength"),
    ("interpolate", ["--images", "1"], "unknown argument --images"),
  ],
)
def test_edits_that_cannot_be_are_refused_at_once(runs, capsys, task, flags, match):
  command = ["edit", task, "--workdir", f"{runs}/base", *flags]
  try:
    assert main.run(command) == 2
  except SystemExit as end:
    assert end.code == 2
  assert match in capsys.readouterr().err.splitlines()[-1]
  assert not (runs / "base/edits").exists()


def test_an_upsampler_has_no_images_of_its_own_to_interpolate(runs, capsys):
  assert main.run(["edit", "interpolate", "--workdir", f"{runs}/sr"]) == 2
  assert "This network enlarges small images, which seeds do not provide" in capsys.readouterr().err


def test_frames_between_two_seeds_have_one_class(runs):
  how = ["sampling.guidance.kind=None", "sampling.grid=uniform", "sampling.steps=2", "sampling.eta=0"]
  run = ddpm_jax.load(runs / "cond", overrides=how)
  frames = edit.interpolate(run, 3, 3, 2, label=4)
  np.testing.assert_array_equal(frames[0], frames[1])
  assert (frames != edit.interpolate(run, 3, 3, 2, label=5)).any()


def test_a_classifier_guides_reconstructions(runs):
  """Also where eta = 1 would let it shift the mean of ancestral steps."""
  plain = ddpm_jax.load(runs / "plain")
  guided = plain.changed(sampling=dict(guidance=dict(kind="classifier", scale=100.0, model=f"{runs}/classifier")))
  source = plain.dataset("test")
  assert (edit.reconstruct(plain, source, [0, 1], 3)[0] != edit.reconstruct(guided, source, [0, 1], 3)[0]).any()


BAD = {
  "class": ("plain", ["--classes", "12", "CLASSIFIER"], "classes are numbered from 0 to 9"),
  "no guide": ("plain", ["--classes", "2"], "unconditional and takes no labels"),
  "no null label": ("plain", by("classifier_free", 2.0), "knows the null label"),
  "no model": ("plain", by("classifier", 2.0), "needs sampling.guidance.model"),
  "no classifier": ("plain", by("classifier", 2.0, "PLAIN"), "is not a noisy classifier"),
  "no network": ("plain", by("autoguidance", 2.0, "GUIDE"), "is a noisy classifier"),
  "schedule": ("plain", ["CLASSIFIER", "--config.schedule.end=0.3"], "was trained on the schedule"),
  "image size": ("base", ["CLASSIFIER"], "data.image_size = 8, but this network with 4"),
  "form": ("plain", ["CLASSIFIER", "--config.sampling.guidance.form=mean", "--config.sampling.eta=0"], "have none"),
  "interval": ("plain", [*by("classifier", 2.0, "GUIDE"), "--config.sampling.guidance.interval=(9,3)"], "is empty"),
  "kind": ("plain", by("magic", 2.0), "'magic'"),
  "solver": ("plain", ["--config.sampling.solver=dpm++2"], "did you mean"),
  "classifier": ("classifier", [], "draws nothing"),
  "upsampler": ("sr", [], "enlarges small images"),
  "other upsampler": ("plain", ["--upsampler", "SR"], "images of 4x4 pixels"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(runs, capsys, case):
  name, flags, sentence = BAD[case]
  words = {"CLASSIFIER": by("classifier", 2.0, f"{runs}/classifier"), "SR": [f"{runs}/sr"]}
  flags = [out for flag in flags for out in words.get(flag, [flag])]
  flags = [flag.replace("=GUIDE", f"={runs}/classifier").replace("=PLAIN", f"={runs}/plain") for flag in flags]
  assert main.run(["sample", "--workdir", f"{runs}/{name}", "--seeds", "0-5", *flags]) == 2
  complaint = capsys.readouterr().err.splitlines()[-1]
  assert complaint.startswith("ddpm-jax: ") and sentence in complaint
