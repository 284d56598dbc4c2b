"""The covariances that followed Analytic-DPM, and restoring, from the command line."""

import json

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax import build
from ddpm_jax.cli import main

TINY = ["channels=8", "channel_mult=(1,)", "attention_resolutions=()"]  # compiles in seconds


@pytest.fixture(scope="module", autouse=True)
def _environment():
  """What cli/environment.py would otherwise choose, too late in a process that has JAX running."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_NUM_CPU_DEVICES", "1")
    patch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  """A network of 4 training steps with moments of each pixel."""
  folder = tmp_path_factory.mktemp("runs") / "plain"
  tiny = [f"--config.network.{field}" for field in TINY]
  assert main.run(["train", "--config", "digits:smoke", "--workdir", str(folder), *tiny]) == 0
  assert main.run(["moments", "--workdir", str(folder), "--images", "32", "--per_pixel"]) == 0
  return folder


def test_bits_per_dim_by_every_covariance(plain):
  names = "optimal,optimal_diagonal,jacobian"
  arguments = ["--likelihood", "4", "--config.evaluation.grid=uniform", "--config.evaluation.steps=4"]
  assert main.run(["evaluate", "--workdir", str(plain), "--covariance", names, *arguments]) == 0
  found = [json.loads((plain / "evaluation" / f"bits_per_dim_{name}.json").read_text()) for name in names.split(",")]
  assert [result["covariance"] for result in found] == names.split(",")
  assert len({result["bits_per_dim"] for result in found}) == 3


def test_samples_of_a_full_covariance_and_its_refusals(plain, capsys):
  trained = ddpm_jax.load(plain).changed(sampling=dict(covariance="full", grid="uniform", steps=3)).with_moments()
  assert trained.sample(range(2)).shape == (2, 8, 8, 1)
  assert main.run(["evaluate", "--workdir", str(plain), "--covariance", "full", "--likelihood", "4"]) != 0
  assert 'covariance = "full" has no bits/dim' in capsys.readouterr().err
  with pytest.raises(ddpm_jax.errors.UserError, match="ddpm-jax moments --per_pixel"):
    build.covariance_of(ddpm_jax.load(plain).config, "optimal_diagonal", 1.0)


def test_an_ocm_head_learns_on_a_frozen_network(plain, tmp_path):
  on = ["--config", "ocm:smoke", f"--config.train.backbone={plain}", "--workdir", f"{tmp_path}/ocm"]
  assert main.run(["train", *on]) == 0
  ocm = ddpm_jax.load(tmp_path / "ocm", ema="raw")
  slow = ddpm_jax.load(plain)
  jax.tree.map(np.testing.assert_array_equal, ocm.network.params["backbone"], slow.network.params)
  level = build.schedule(ocm.config).level(np.int64(10))
  x_t, _ = ocm.images(ocm.dataset("test"), np.arange(4))
  pred = ocm.network(x_t, level)
  head = ocm.network.output(x_t, level)[..., 1:]
  np.testing.assert_allclose(pred.eps_var, 1 + head, rtol=1e-6)
  moved = jax.jvp(lambda x: ocm.network(x, level).eps, (x_t,), (x_t,))[1]
  assert np.abs(moved).max() > 0  # a head does not hide the Jacobian of its backbone
  assert np.isfinite(ocm.bits_per_dim(ocm.dataset("test"), 4).total).all()


def test_restoring(plain, tmp_path, capsys):
  (tmp_path / "ops.py").write_text("def top(x):\n  return x[:, :4]\n\n\ndef bent(x):\n  return x**2\n")
  common = ["edit", "restore", "--workdir", str(plain), "--images", "0-1", "--config.sampling.grid=uniform", "--steps", "3"]
  for arguments in (["--operator", "downsample"], ["--operator", f"{tmp_path}/ops.py:top", "--covariance", "marginal"]):
    assert main.run([*common, *arguments]) == 0
    assert "PSNR" in capsys.readouterr().out
    result = json.loads((plain / "edits" / "restore.json").read_text())
    assert len(result["psnr"]) == len(result["ssim"]) == 2 and np.isfinite(result["psnr"]).all()
  assert (plain / "edits" / "restore.png").exists()
  for arguments, sentence in (
    (["--operator", f"{tmp_path}/ops.py:bent"], "is not linear"),
    (["--operator", "grey"], "are already grey"),
    (["--operator", "smear"], "is unknown"),
    (["--covariance", "fill"], "did you mean 'full'?"),
    (["--noise", "-1"], "must be at least 0"),
  ):
    assert main.run([*common, *arguments]) != 0
    assert sentence in capsys.readouterr().err
