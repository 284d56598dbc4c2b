"""Several processes as one run: the same numbers, checkpoints that pass between them, and an end in a sentence."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny_run
from weights import save_weights

from ddpm_jax import config
from ddpm_jax.features import classifier
from ddpm_jax.files import npz
from ddpm_jax.jobs import train as experiment
from ddpm_jax.training import checkpoints, loop, state

PROGRAMS = pathlib.Path(__file__).parents[1] / "programs"
STEPS = 16


def start(processes: int, devices: int, directory, *flags, program="processes.py") -> subprocess.CompletedProcess:
  """A program of tests/, `processes` times with `devices` each."""
  path = os.pathsep.join(map(str, (PROGRAMS, PROGRAMS.parents[1])))
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": path, "XDG_CACHE_HOME": str(directory)}
  command = [PROGRAMS.parents[1] / "launch" / "local.sh", str(processes), sys.executable, PROGRAMS / program, *flags]
  return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600)


def train(processes: int, devices: int, directory, *flags) -> subprocess.CompletedProcess:
  return start(processes, devices, directory, directory, *flags)


def report(done: subprocess.CompletedProcess) -> dict:
  assert done.returncode == 0, done.stderr
  (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]  # one process speaks, beside Gloo
  return json.loads(line)


@pytest.fixture(scope="module")
def first_start(tmp_path_factory) -> tuple[pathlib.Path, dict]:
  """(directory, report) of one process with four devices."""
  directory = tmp_path_factory.mktemp("alone")
  return directory, report(train(1, 4, directory, "--steps", str(STEPS)))


@pytest.fixture(scope="module")
def alone(first_start) -> list[float]:
  """Its losses."""
  assert first_start[1]["processes"] == 1
  return tiny_run.losses_of(first_start[0])


def test_a_second_start_compiles_nothing(first_start, tmp_path):
  cache, found = first_start
  assert found["compiled"] >= 2  # the first state and the step, whatever else JAX needs
  assert report(start(1, 4, cache, tmp_path, "--steps", "2"))["compiled"] == 0


def test_four_processes_and_then_two_lose_as_one_does(alone, tmp_path):
  four = report(train(4, 1, tmp_path, "--steps", "10", "--fsdp", "4"))
  assert (four["processes"], four["devices"], four["parts"]) == (4, 4, 4)
  two = report(train(2, 2, tmp_path, "--steps", str(STEPS), "--fsdp", "2"))  # continues from step 10
  assert (two["processes"], two["devices"], two["parts"]) == (2, 4, 2)
  # 1e-5: partial sums over four devices in float32, added in another order; 1e-7 was seen
  np.testing.assert_allclose(tiny_run.losses_of(tmp_path), alone, rtol=1e-5)


@pytest.mark.parametrize("who", [[], ["--who", "1"]], ids=["all", "one"])
def test_sigterm_to_all_or_one_saves_the_same_step_and_loses_none(alone, tmp_path, who):
  stopped = train(2, 1, tmp_path, "--steps", "1000", "--at", "12", "--signal", "TERM", *who)
  assert stopped.returncode == loop.Preempted.exit_code, stopped.stderr
  rows = len(tiny_run.losses_of(tmp_path))
  saved = checkpoints.steps_in(tmp_path)[-1]
  # The signal comes with batch 12, the thirteenth, which is sent two batches ahead (loop._on_device): before step 11.
  assert saved == rows >= 11 and f"at step {saved}; the checkpoint is saved" in stopped.stdout
  if not who:
    return  # the same for both from here on
  report(train(2, 1, tmp_path, "--steps", str(saved + 2)))
  losses = tiny_run.losses_of(tmp_path)  # each step once
  assert len(losses) == saved + 2
  np.testing.assert_allclose(losses[: len(alone)], alone[: len(losses)], rtol=1e-5)  # as above


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other_in_a_sentence(tmp_path, lost):
  done = train(2, 1, tmp_path, "--steps", "1000", "--at", "30", "--who", str(lost))
  seconds = time.time() - (tmp_path / f"signalled_{lost}").stat().st_mtime
  assert done.returncode == (128 + signal.SIGKILL if lost == 0 else 3), done.stderr  # the first that is not 0
  sentence = f"ddpm-jax: process {1 - lost} of 2 stops: Process {lost} of 2 was lost. Run the same command again: "
  assert sentence + "training continues from the last checkpoint.\n" in done.stderr  # between JAX's own words
  assert "Traceback" not in done.stderr
  assert seconds < 30  # 0.3 on an idle machine
  assert len(tiny_run.losses_of(tmp_path)) - checkpoints.steps_in(tmp_path)[-1] <= 10  # checkpoint_every of processes.py


def test_a_full_disk_of_one_process_ends_both_in_a_sentence(tmp_path):
  done = train(2, 1, tmp_path, "--steps", "1000", "--fsdp", "2", "--disk", "6000", "--who", "1")
  assert done.returncode == 3, done.stderr  # of process 0, the first
  for process in (0, 1):
    sentence = f"ddpm-jax: process {process} of 2 stops: A checkpoint could not be written to {re.escape(str(tmp_path))}: "
    assert re.search(sentence + ".*File too large.* the same command continues", done.stderr), done.stderr
  assert "Traceback" not in done.stderr


@pytest.fixture
def untrained(tmp_path_factory):
  """A run at step 0 of the smallest network of the digits, with an untrained classifier for its distances."""
  directory = tmp_path_factory.mktemp("untrained")
  small = ["network.channels=8", "network.channel_mult=(1,)", "network.groups=4", "network.attention_resolutions=()"]
  plan = experiment.prepare(config.override(config.load("digits:smoke"), [*small, "schedule.T=4"]))
  weights = state.place(plan.init, plan.mesh).params
  save_weights(str(directory / "checkpoints"), weights, plan.config.to_dict(), rate="0.999", step=0)
  params = classifier.SmallConvNet(8, 10).init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.uint8))["params"]
  net = classifier.FeatureNet(
    params, (8, 8, 1), 10, classifier.Recipe(num_features=8), "none", test_images=0, test_accuracy=0.0
  )
  net.save(directory / "evaluation" / "classifier.npz")
  return directory


def commands(directory) -> list[list[str]]:
  """Samples, moments, bits/dim that need them, distances and FID, in the directory of a run."""
  workdir = ["--workdir", f"{directory}"]
  drawn = ["--formats", "npz,grid", "--out", f"{directory}/samples"]
  against = ["--reference", "digits@test", "--num_samples", "12", "--metrics", "fid", "--keep", f"{directory}/features"]
  return [
    ["sample", *workdir, "--seeds", "0-9", *drawn],
    ["moments", *workdir, "--images", "8"],
    [
      "evaluate",
      *workdir,
      "--likelihood",
      "8",
      "--covariance",
      "posterior,optimal",
      "--distance",
      "12",
      *against,
      "--features",
      f"{directory}/evaluation/classifier.npz",
    ],
  ]


def files_of(directory) -> dict[str, bytes]:
  found = [path for path in sorted(directory.rglob("*")) if path.is_file() and "checkpoints" not in path.parts]
  return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def test_samples_moments_and_scores_are_those_of_one_process(untrained, tmp_path):
  one = tmp_path / "one"
  two = tmp_path / "two"
  for processes, devices, directory in ((1, 4, one), (2, 2, two)):
    shutil.copytree(untrained, directory)
    done = start(processes, devices, tmp_path, json.dumps(commands(directory)), program="commands.py")
    assert done.returncode == 0, done.stderr
    if processes == 2:
      assert done.stdout.count("Fréchet distance of 12 samples") == 1  # one of them speaks
  ours = files_of(one)
  theirs = files_of(two)
  assert ours.keys() == theirs.keys()  # one of them writes
  pictures = ("samples/samples.npz", "samples/grid.png", "evaluation/nearest_neighbours.png")
  for name in (*pictures, "evaluation/bits_per_dim_posterior.json", "evaluation/distance.json"):
    assert ours[name] == theirs[name], name  # bitwise: each image is drawn and scored on one device
  metrics = [json.loads(files["evaluation/metrics.json"])["metrics"] for files in (ours, theirs)]
  assert metrics[0] == metrics[1]
  moments = [npz.read(path / "evaluation" / "moments.npz")[0]["mean"] for path in (one, two)]
  np.testing.assert_allclose(*moments, rtol=1e-6)  # sums over devices, in another order
  bits = [json.loads(files["evaluation/bits_per_dim_optimal.json"])["bits_per_dim"] for files in (ours, theirs)]
  assert bits[0] == pytest.approx(bits[1], rel=1e-5)  # by these moments


def test_a_command_for_one_process_says_so(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "ddpm_jax", "edit", "inpaint", "--workdir", str(tmp_path)],
    env=os.environ | {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 2
  assert done.stderr.startswith(
    "ddpm-jax: ddpm-jax edit runs in one process, but the environment says that this is one of 2"
  )


def test_who_waits_in_vain_says_for_whom(tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  flags = ["--coordinator", address, "--processes", "3", "--process", "0", "--wait", "0.5"]
  command = [sys.executable, "-m", "ddpm_jax", "train", "--config", "digits:smoke", "--workdir", str(tmp_path), *flags]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert done.returncode == 2
  waiting, sentence = done.stderr.splitlines()
  assert waiting == "Waiting for processes 1, 2 of 3."
  assert sentence.startswith("ddpm-jax: Processes 1, 2 of 3 did not connect within 0.5 s: ")
