"""Several processes as one run: the same losses, checkpoints that pass between them, and an end in a sentence."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny_run

HERE = pathlib.Path(__file__).parents[1]
STEPS = 16


def start(processes: int, devices: int, directory, *flags) -> subprocess.CompletedProcess:
  """tests/processes.py, `processes` times with `devices` each."""
  path = os.pathsep.join(map(str, (HERE, HERE.parent)))
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": path, "XDG_CACHE_HOME": str(directory)}
  command = [HERE.parent / "launch" / "local.sh", str(processes), sys.executable, HERE / "processes.py", directory, *flags]
  return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600)


def report(done: subprocess.CompletedProcess) -> dict:
  assert done.returncode == 0, done.stderr
  (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]  # one process speaks, beside Gloo
  return json.loads(line)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> list[float]:
  """The losses of one process with four devices."""
  directory = tmp_path_factory.mktemp("alone")
  assert report(start(1, 4, directory, "--steps", str(STEPS)))["processes"] == 1
  return tiny_run.losses_of(directory)


def test_four_processes_and_then_two_lose_as_one_does(alone, tmp_path):
  four = report(start(4, 1, tmp_path, "--steps", "10", "--fsdp", "4"))
  assert (four["processes"], four["devices"], four["parts"]) == (4, 4, 4)
  two = report(start(2, 2, tmp_path, "--steps", str(STEPS), "--fsdp", "2"))  # continues from step 10
  assert (two["processes"], two["devices"], two["parts"]) == (2, 4, 2)
  # 1e-5: partial sums over four devices in float32, added in another order; 1e-7 was seen
  np.testing.assert_allclose(tiny_run.losses_of(tmp_path), alone, rtol=1e-5)


def test_a_lost_process_ends_the_others_in_a_sentence(tmp_path):
  done = start(2, 1, tmp_path, "--steps", "1000", "--die", "30")
  assert done.returncode == 3, done.stderr
  sentence = "ddpm-jax: process 0 of 2 stops: Process 1 of 2 was lost; the same command continues from the last checkpoint."
  assert sentence in done.stderr.splitlines()
  assert "Traceback" not in done.stderr


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
  assert sentence.startswith("ddpm-jax: Processes 1, 2 of 3 did not come within 0.5 s: ")
