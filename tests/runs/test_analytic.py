"""Analytic-DPM from the command line: train a network, measure it, put heads on it, and study them all."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax import build
from ddpm_jax.cli import main
from ddpm_jax.files import measurements

TINY = ["channels=8", "channel_mult=(1,)", "attention_resolutions=()"]  # compiles in seconds


@pytest.fixture(scope="module", autouse=True)
def _environment():
  """What cli/environment.py would otherwise choose, too late in a process that has JAX running."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_NUM_CPU_DEVICES", "1")
    yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A directory with a backbone and a head on it, 4 steps each."""
  folder = tmp_path_factory.mktemp("runs")
  tiny = [f"--config.network.{field}" for field in TINY]
  assert main.run(["train", "--config", "digits:smoke", "--workdir", f"{folder}/plain", *tiny]) == 0
  on = ["--config", "npr:smoke", f"--config.train.backbone={folder}/plain", "--workdir", f"{folder}/npr"]
  assert main.run(["train", *on]) == 0
  return folder


def test_a_head_learns_and_its_backbone_does_not(runs):
  plain, npr = (ddpm_jax.load(runs / name, ema="raw") for name in ("plain", "npr"))
  slow = ddpm_jax.load(runs / "plain")  # the slowest average, which the head is put on
  jax.tree.map(np.testing.assert_array_equal, npr.network.params["backbone"], slow.network.params)
  as_stored = lambda section, **more: json.loads(json.dumps(section.to_dict() | more))
  assert as_stored(npr.config.network.backbone) == as_stored(plain.config.network, out_channels=1)
  assert npr.config.schedule == plain.config.schedule and npr.config.data == plain.config.data
  level = build.schedule(plain.config).level(10)
  (x_t, _) = plain.images(plain.dataset("test"), np.arange(4))
  np.testing.assert_allclose(npr.network(x_t, level).eps, slow.network(x_t, level).eps, atol=1e-6)
  assert npr.network(x_t, level).eps_var.shape == x_t.shape


@pytest.fixture(scope="module")
def moments(runs):
  arguments = ["moments", "--workdir", f"{runs}/plain", "--costs", "marginal", "--export", f"{runs}/ms_eps.pth"]
  assert main.run([*arguments, "--images", "64"]) == 0
  return runs / "plain" / "evaluation" / "moments.npz"


def test_moments_are_measured_plotted_exported_and_continued(runs, moments, capsys):
  schedule = build.schedule(ddpm_jax.load(runs / "plain").config)
  found, source = measurements.load_moments(moments, schedule)
  assert found.count == 64 and len(found.levels) == 20 and source["weights"] == "EMA 0.999"
  exported = measurements.gamma(runs / "ms_eps.pth", schedule)
  np.testing.assert_array_equal(exported, found.gamma(20).astype(np.float32))
  with Image.open(moments.with_suffix(".png")) as picture:
    assert picture.size[0] > 500
  assert main.run(["moments", "--workdir", f"{runs}/plain", "--images", "128"]) == 0
  assert "over 128 images" in capsys.readouterr().out
  more, _ = measurements.load_moments(moments, schedule)
  assert more.count == 128 and not np.array_equal(more.mean, found.mean)


def test_the_optimal_covariance_and_both_best_grids_sample(runs, moments):
  costs = f"costs={runs}/plain/evaluation/costs_marginal.npz"
  for how in (["grid=dp_seg", "eta=0.0", "keep_eps=True"], ["grid=dp_vb", costs]):
    options = ["steps=3", "covariance=optimal", f"moments={moments}", "cap_pixels=1.0", *how]
    trained = ddpm_jax.load(runs / "plain", overrides=[f"sampling.{option}" for option in options])
    assert trained.sample([0, 1]).shape == (2, 8, 8, 1)


def test_the_study_makes_the_papers_tables_and_goes_on(runs, moments, capsys):
  arguments = [
    "study",
    "--workdir",
    f"{runs}/plain",
    "--npr",
    f"{runs}/npr",
    "--samples",
    "0",
    "--likelihood",
    "4",
    "--trajectories",
    "even,optimal",
    "--methods",
    "DDPM-small,Analytic-DDPM,NPR-DDPM,NPR-DDIM",
  ]
  assert main.run([*arguments, "--steps", "3"]) == 0
  table = (runs / "plain/study/study.md").read_text()
  rows = [line.split(" | ")[0].strip("| ") for line in table.splitlines() if line.startswith("| ")]
  assert rows == ["K", "DDPM-small", "Analytic-DDPM", "NPR-DDPM", "Analytic-DDPM, optimal trajectory"]
  with Image.open(runs / "plain/study/study.png") as picture:
    assert picture.size[0] > 400
  kept = json.loads((runs / "plain/study/Analytic-DDPM_even_3.json").read_text())
  assert f"{kept['bits_per_dim']['mean']:.2f}" in table
  alone = ddpm_jax.load(
    runs / "plain",
    overrides=[
      "sampling.covariance=optimal",
      f"sampling.moments={moments}",
      "evaluation.grid=uniform",
      "evaluation.steps=3",
      "evaluation.last_row=full_chain",
      "evaluation.covariance=optimal",
    ],
  )
  assert kept["bits_per_dim"]["mean"] == pytest.approx(alone.bits_per_dim(alone.dataset("test"), 4).total.mean(), rel=1e-6)

  capsys.readouterr()
  assert main.run([*arguments, "--steps", "3"]) == 0
  assert "K = 3: " not in capsys.readouterr().out  # nothing is measured twice
  assert main.run([*arguments, "--likelihood", "5", "--steps", "3"]) == 2
  assert "holds a study of something else: likelihood is 4 there and 5 here" in capsys.readouterr().err


def test_a_study_measures_the_moments_that_it_lacks(runs, tmp_path):
  shutil.copytree(runs / "plain" / "checkpoints", tmp_path / "run" / "checkpoints")
  study = ["study", "--workdir", f"{tmp_path}/run", "--samples", "0", "--likelihood", "2", "--steps", "3"]
  assert main.run([*study, "--methods", "DDPM-small"]) == 0
  assert not list(tmp_path.glob("run/evaluation/moments*.npz"))  # which it does not need
  assert main.run([*study, "--methods", "Analytic-DDPM", "--out", f"{tmp_path}/out"]) == 0
  assert len(list(tmp_path.glob("run/evaluation/moments_step4_*.npz"))) == 1
  assert "Analytic-DDPM" in (tmp_path / "out" / "study.md").read_text()


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    (["sample", "--config.sampling.grid=dp_vb", "--config.sampling.steps=3"], 'The grid "dp_vb" follows from costs'),
    (["sample", "--config.sampling.covariance=optimal", "--config.sampling.moments=no.npz"], "There is no file at no.npz"),
    (["moments", "--flow", "--images", "0"], "0 trajectories are too few"),
    (["moments", "--flow", "--levels", "3"], "--levels has no effect on --flow"),
    (["study", "--steps", "3", "--samples", "0", "--eta", "2"], "eta = 2.0 is outside [0, 1]"),
    (["study", "--steps", "3", "--samples", "0", "--skip", "1"], "sampling.skip = 1 is a share"),
    (["study", "--steps", "3", "--samples", "0", "--guidance", "2"], "knows the null label"),
    (["study", "--steps", "3", "--samples", "0", "--add", "x: sampling.solver=nope"], "sampling.solver 'nope' is unknown"),
    (["sample", "--config.optimizer.decay=cosine"], "is about training"),
    (["edit restore", "--blur", "2"], "--blur has no effect on --operator mask: it is for blur"),
    (["edit reconstruct", "--eta", "0.5"], "reconstructed without noise"),
    (["moments", "--images", "0"], "0 images, seed 0: use at least 1 image"),
    (["study", "--steps", "21", "--samples", "0"], "21 steps do not fit a chain of T = 20"),
    (["study", "--steps", "3", "--samples", "0", "--methods", "NPR"], "Method 'NPR' is unknown"),
    (["study", "--samples", "0", "--steps", "3", "--methods", "NPR-DDPM"], "give its run as --npr"),
    (
      ["study", "--samples", "0", "--steps", "3", "--npr", "PLAIN"],
      "expects a run of --config npr, whose second head is 'residual', not None",
    ),
    (["study", "--samples", "0", "--steps", "3", "--cap", "-1"], "A cap of -1 grey levels"),
    (["moments", "--images", "2", "--levels", "2", "--export", "gamma.txt"], "should end in one of .npy"),
    (["study", "--samples", "0", "--likelihood", "0"], "there is nothing to measure"),
    (["study", "--steps", "3", "--samples", "719"], "719 samples are compared with half of the 1437 training images"),
    (["study", "--steps", "3", "--moments", "no.npz"], "--moments no.npz does not exist"),
  ],
)
def test_what_the_user_can_mend_is_one_sentence(runs, moments, capsys, arguments, sentence):
  command, *options = arguments
  options = [option.replace("PLAIN", f"{runs}/plain") for option in options]
  assert main.run([*command.split(), "--workdir", f"{runs}/plain", *options]) == 2
  said = capsys.readouterr().err.splitlines()[-1]
  assert said.startswith("ddpm-jax: ") and sentence in said


def test_a_head_without_a_second_output_is_refused(runs, capsys):
  options = [f"--config.train.backbone={runs}/plain", "--workdir", f"{runs}/no"]
  assert main.run(["train", "--config", "digits:smoke", *options]) == 2
  assert "train.backbone is for a second head" in capsys.readouterr().err


def test_a_network_of_the_sde_has_an_ode_and_euler_samplers(runs, capsys):
  sde = [
    "schedule.name=vp_sde",
    "schedule.start=0.1",
    "schedule.end=20.0",
    "prediction.time_scale=49.95",
    "prediction.time_shift=0",
    "sampling.clip=none",
    "sampling.grid=uniform",
    "sampling.steps=4",
  ]
  flags = [f"--config.{field}" for field in sde]
  assert main.run(["evaluate", "--workdir", f"{runs}/plain", "--likelihood", "0", "--ode", "2", *flags]) == 0
  assert "bits/dim of the ODE on 2 test images" in capsys.readouterr().out
  assert np.isfinite(json.loads((runs / "plain/evaluation/ode_bits_per_dim.json").read_text())["bits_per_dim"])
  for solver in ("euler_maruyama", "euler_ode"):
    trained = ddpm_jax.load(runs / "plain", overrides=[*sde, f"sampling.solver={solver}"])
    assert trained.sample([0, 1]).shape == (2, 8, 8, 1)
  assert main.run(["evaluate", "--workdir", f"{runs}/plain", "--likelihood", "0", "--ode", "2"]) == 2
  assert "needs the schedule vp_sde, but this one was trained on 'linear'" in capsys.readouterr().err
