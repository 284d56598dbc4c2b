"""The main job from the command line: train, stop, continue, sample, score; and one sentence for whatever goes wrong."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax import config
from ddpm_jax.cli import main
from ddpm_jax.devices import mesh as layout
from ddpm_jax.devices.memory import Needs
from ddpm_jax.jobs import train
from ddpm_jax.training import checkpoints, loop


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The smoke run of the digits config, trained once."""
  workdir = tmp_path_factory.mktemp("digits")
  assert main.run(["train", "--config", "digits:smoke", "--workdir", str(workdir)]) == 0
  return workdir


def test_training_leaves_checkpoints_metrics_and_previews(run):
  rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [2, 4]
  assert all(np.isfinite(row["loss"]) and row["images_per_second"] > 0 and 0 <= row["data_wait"] <= 1 for row in rows)
  assert checkpoints.steps_in(run / "checkpoints") == [2, 3, 4]
  assert {path.name for path in (run / "previews").iterdir()} == {"0000004_raw.png", "0000004_ema_0.999.png"}
  assert list((run / "events").iterdir())


def test_a_run_that_was_killed_continues_bitwise(run, tmp_path):
  shutil.copytree(run, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "checkpoints" / "4")  # as if killed between the checkpoints of steps 2 and 4
  assert main.run(["train", "--config", "digits:smoke", "--workdir", str(tmp_path)]) == 0
  for which in ("raw", "0.999"):
    unbroken, parts = (ddpm_jax.load(path, ema=which).network.params for path in (run, tmp_path))
    assert jax.tree.all(jax.tree.map(np.array_equal, unbroken, parts))


def test_sampling_writes_every_format_in_its_layout(run, tmp_path, capsys):
  formats = "grid,png,npz,gif,strip"
  args = ["sample", "--workdir", str(run), "--seeds", "3,5,8-10", "--formats", formats, "--out", str(tmp_path)]
  assert main.run([*args, "--beside", "sampling.grid=uniform sampling.steps=5 sampling.eta=0"]) == 0
  assert "EMA 0.999" in capsys.readouterr().out
  stored = np.load(tmp_path / "samples.npz")
  assert stored["arr_0"].shape == (5, 8, 8, 1) and stored["arr_0"].dtype == np.uint8
  assert [path.name for path in sorted((tmp_path / "png").iterdir())] == [f"{n:06d}.png" for n in (3, 5, 8, 9, 10)]
  assert np.array_equal(np.asarray(Image.open(tmp_path / "png" / "000008.png")), stored["arr_0"][2, :, :, 0])
  assert Image.open(tmp_path / "denoising.gif").n_frames == 20
  assert (tmp_path / "beside.png").exists() and (tmp_path / "denoising.png").exists()


def test_seed_5_is_the_same_picture_in_any_company(run):
  trained = ddpm_jax.load(run)
  assert np.array_equal(trained.sample([5])[0], trained.sample([1, 2, 5, 7])[2])


def test_evaluation_reports_the_bound_and_its_terms(run, capsys):
  assert main.run(["evaluate", "--workdir", str(run), "--likelihood", "8"]) == 0
  result = json.loads((run / "evaluation" / "bits_per_dim.json").read_text())
  assert result["images"] == 8 and len(result["terms"]) == 20
  assert np.isclose(result["prior"] + sum(result["terms"]), result["bits_per_dim"], rtol=1e-5)  # float32 sums
  assert result["grey_levels"] == 17
  assert "coded uniformly 4.087" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_dry_run_shows_the_config_and_the_size_of_the_network(name, capsys):
  assert main.run(["train", "--config", f"{name}:smoke", "--dry_run"]) == 0
  assert "parameters" in capsys.readouterr().out


def _train(*overrides, spec="digits:smoke"):
  return ["train", "--config", spec, "--workdir", "unused", *(f"--config.{o}" for o in overrides)]


@pytest.mark.parametrize(
  "argv, says",
  [
    (_train("sampling.etta=0"), ["etta", "'eta'"]),
    (_train("optimiser.learning_rate=1"), ["optimiser", "'optimizer'"]),
    (_train("network.chanels=8"), ["chanels", "'channels'"]),
    (_train("schedule.T=many"), ["many", "integer"]),
    (_train("schedule.T=0"), ["schedule.T = 0", "at least 2"]),
    (_train("data.name=digitz"), ["digitz", "digits"]),
    (_train("train.total_steps=0"), ["total_steps", "required"]),
    (_train("network.channel_mult=(1,2,2,2,2)"), ["8x8", "halved 4 times"]),
    (_train("loss.name=hybrid"), ["hybrid", "second"]),
    (_train("schedule.name=cosin"), ["cosin", "'cosine'"]),
    (_train("network.dropout=1.5"), ["dropout = 1.5", "below 1"]),
    (_train("optimizer.learning_rate=-1"), ["learning_rate = -1", "greater than 0"]),
    (_train("optimizer.b1=2.0"), ["b1 = 2", "below 1"]),
    (_train(spec="digitz"), ["digitz", "'digits'"]),
    (_train(spec=__file__), ["test_digits.py", "no function get_config"]),
    (["train", "--config", "digits:smoke", "--workdir", "/proc/none"], ["/proc/none cannot be written"]),
    (["data", "list", "--data_dir", "nowhere"], ["no folder nowhere"]),
    (["data", "show", "digits", "--out", "x.jpg"], ["x.jpg", "end in .png"]),
    (["plan", "--config", "digits", "--price_per_chip_hour", "-1"], ["-1 must be more than 0"]),
    (["sample", "--workdir", "nowhere"], ["no checkpoint", "nowhere"]),
    (["sample", "--workdir", __file__], ["no checkpoint", "test_digits.py"]),
    (["sample", "--weights", "cifar10-dppm"], ["no directory", "did you mean the published weights 'cifar10-ddpm'"]),
  ],
)
def test_bad_configs_get_one_sentence_and_leave_nothing(argv, says, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert main.run(argv) == 2
  error = capsys.readouterr().err.strip()
  assert error.startswith("ddpm-jax: ") and "\n" not in error and all(word in error for word in says)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "change, says",
  [
    (["--config.sampling.eta=0.5", "--config.sampling.covariance=learned_range"], ["eta = 0.5", "posterior"]),
    (["--config.sampling.eta=2.0"], ["eta = 2.0", "[0, 1]"]),
    (["--config.sampling.grid=uniform", "--config.sampling.steps=50"], ["50 steps", "T = 20"]),
    (["--config.sampling.grid=10,x"], ["10,x"]),
    (["--seeds", "1-"], ["1-"]),
    (["--seeds", "0-99999999999"], ["0-99999999999", "10,000,000"]),
    (["--config.sampling.grid=unifrom"], ["'unifrom'", "did you mean 'uniform'"]),
    (["--config.sampling.guidance.scale=3"], ["guidance.scale=3.0 means nothing without", "guidance.kind=classifier"]),
    (["--config.sampling.solver=heun", "--config.sampling.eta=0.5"], ["eta=0.5 means nothing", '"heun"']),
    (["--beside", "sampling.etta=0"], ["etta", "'eta'"]),
    (["--beside", "sampling.eta=7"], ["eta = 7.0", "[0, 1]"]),
    (["--beside", "seed=1"], ["'seed=1'", "steps=20"]),
    (["--beside", ""], ["nothing", "steps=20"]),
    (["--upsampler", "nowhere"], ["no checkpoint", "nowhere"]),
    (["--out", "/proc/none"], ["/proc/none/grid.png cannot be written"]),
    (["--formats", "jpg"], ["jpg"]),
    (["--classes", "3"], ["unconditional"]),
    (["--ema", "0.5"], ["0.5", "0.999"]),
    (["--step", "1"], ["step 1", "2", "4"]),
    (["--config.network.channels=24"], ["another network", "(24,)", "(16,)"]),
  ],
)
def test_bad_sampling_requests_get_one_sentence(run, change, says, capsys):
  before = sorted(run.rglob("*"))
  assert main.run(["sample", "--workdir", str(run), *change]) == 2
  assert sorted(run.rglob("*")) == before
  error = capsys.readouterr().err.strip()
  assert "\n" not in error and all(word in error for word in says), error


@pytest.mark.parametrize("argv", [["report", "--workdir", "runs"], ["data", "list"]])
def test_commands_that_read_no_config_refuse_changes_of_one(argv, capsys):
  with pytest.raises(SystemExit, match="2"):
    main.run([*argv, "--config.sampling.eta=0"])
  assert "--config.sampling.eta=0 has no effect on" in capsys.readouterr().err


def test_a_run_is_not_continued_with_another_network(run, capsys):
  assert main.run(["train", "--config", "digits:smoke", "--workdir", str(run), "--config.network.channels=24"]) == 2
  assert "another network" in capsys.readouterr().err


def test_whatever_ends_a_run_the_checkpoint_in_the_making_is_completed(tmp_path, monkeypatch):
  completed = []

  def fit(*_, checkpoints, **__):
    raise loop.Diverged("enough")

  monkeypatch.setattr(loop, "fit", fit)
  monkeypatch.setattr(checkpoints.Checkpoints, "close", lambda self: completed.append(self.directory.name))
  with pytest.raises(loop.Diverged):
    train.train(config.load("digits:smoke"), tmp_path)
  assert completed == ["checkpoints"]


@pytest.mark.parametrize("known", [True, False])
def test_remat_auto_is_decided_by_the_memory_of_the_device(known, tmp_path, monkeypatch, caplog):
  caplog.set_level("INFO")
  stored = []
  peaks = iter([3 * 2**30, 2**30])

  def compile_lowered(lowered):
    assert "stablehlo.convolution" in lowered.as_text()
    return None, Needs(0, 0, next(peaks))

  monkeypatch.setattr(train, "memory_of", lambda device: 2**31 if known else None)
  monkeypatch.setattr(train, "compile_lowered", compile_lowered)
  monkeypatch.setattr(loop, "fit", lambda *_, config, **__: stored.append(config))
  train.train(config.override(config.load("digits:smoke"), ["network.remat=auto"]), tmp_path)
  assert stored[0]["network"]["remat"] == ("norms" if known else "auto")
  assert ("remat=norms: none needs 3, norms needs 1 of 2 GiB." in caplog.messages) == known


@pytest.mark.parametrize("name", ["digits:smoke", "imagenet256_adm_upsampler:smoke"])
def test_a_step_is_planned_for_the_batches_that_it_gets(name, tmp_path, monkeypatch):
  """So that a policy that was tried is not compiled a second time."""
  given = []
  monkeypatch.setattr(
    loop, "fit", lambda init, step, feed, intervals, *, mesh, **_: given.append(layout.put_batch(next(feed(0)), mesh))
  )
  train.train(config.load(name), tmp_path)
  _, planned = train.prepare(config.load(name)).arguments()
  described = [{name: (x.shape, x.dtype, x.sharding.spec) for name, x in batch.items()} for batch in (*given, planned)]
  assert described[0] == described[1]


def test_a_run_is_continued_whatever_is_recomputed(run):
  for remat in ("blocks", True, "auto"):
    changed = config.load("digits:smoke")
    changed.network.remat = remat
    assert train.train(changed, run).step == changed.train.total_steps


def test_overrides_keep_the_type_of_a_field():
  changed = config.override(config.default(), ["sampling.eta=0", "data.flip=true", "network.channel_mult=(1,2)"])
  assert changed.sampling.eta == 0.0 and isinstance(changed.sampling.eta, float)
  assert changed.data.flip is True and changed.network.channel_mult == (1, 2)
  assert config.from_dict(json.loads(json.dumps(changed.to_dict()))).to_dict() == changed.to_dict()
