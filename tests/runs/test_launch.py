"""The launch scripts: clean, and saying what they would do."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]


def call(*command) -> subprocess.CompletedProcess:
  return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_are_clean(script):
  assert call("bash", "-n", script).returncode == 0
  if shutil.which("shellcheck"):
    checked = call("shellcheck", script)
    assert checked.returncode == 0, checked.stdout


def test_local_starts_every_process_and_returns_the_first_failure(tmp_path):
  show = 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"; exit $((JAX_PROCESS_ID == 1 ? 7 : 0))'
  done = call(LAUNCH / "local.sh", 3, "bash", "-c", show)
  lines = sorted(done.stdout.splitlines())
  assert [line[:6] for line in lines] == ["0 of 3", "1 of 3", "2 of 3"]
  assert len({line.partition(" at ")[2] for line in lines}) == 1
  assert done.returncode == 7


CHILD = """
trap 'touch asked.$JAX_PROCESS_ID; [[ -e stubborn ]] || exit 42' TERM
echo $$ > pid.$JAX_PROCESS_ID
while :; do sleep 0.05; done
"""


def wait_for(*files: pathlib.Path) -> None:
  until = time.monotonic() + 60
  while not all(file.exists() and (file.stat().st_size or "pid" not in file.name) for file in files):
    assert time.monotonic() < until
    time.sleep(0.01)


@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["Ctrl-C", "kill -INT"])
def test_local_saves_at_the_first_ctrl_c_and_kills_at_the_second(tmp_path, send):
  for stubborn in (False, True):
    (tmp_path / "stubborn").touch() if stubborn else None
    started, asked = ([tmp_path / f"{name}.{k}" for k in (0, 1)] for name in ("pid", "asked"))
    # In a process group of its own, as behind a prompt; env: whoever runs the tests may have Ctrl-C ignored.
    command = ["env", "--default-signal=INT", LAUNCH / "local.sh", "2", "bash", "-c", CHILD]
    local = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE)
    wait_for(*started)
    send(local.pid, signal.SIGINT)
    wait_for(*asked)
    if stubborn:
      send(local.pid, signal.SIGINT)
    assert local.wait(60) == (128 + signal.SIGKILL if stubborn else 42), local.stderr.read()
    for file in started:  # no orphans
      with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)
      file.unlink()
    for file in asked:
      file.unlink()


def test_local_wants_a_number():
  done = call(LAUNCH / "local.sh", "ddpm-jax", "train")
  assert done.returncode == 2 and "usage: launch/local.sh N COMMAND" in done.stderr


def test_a_tpu_slice_is_created_used_and_deleted():
  done = call(
    LAUNCH / "tpu_vm.sh",
    "--dry_run",
    "--zone",
    "us-west4-a",
    "--type",
    "v5p-32",
    "--bucket",
    "gs://b/all/runs",
    "train",
    "--config",
    "imagenet64_adm",
    "--workdir",
    "runs/adm",
  )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert [line.split()[4] for line in lines if "tpu-vm" in line] == ["create", "scp", "ssh", "ssh", "delete"]
  assert "--version=v2-alpha-tpuv5 " in lines[0]
  assert "--only-dir=all/runs" in done.stdout
  assert "gcloud storage rsync --recursive gs://b/all/runs/adm runs/adm" in done.stdout


SLICE = ["--zone", "a", "--type", "v5p-8"]


@pytest.mark.parametrize(
  "arguments",
  [
    [*SLICE, "train"],
    ["--zne", "a"],
    ["--zone"],
    [*SLICE, "--bucket", "gs://b", "train", "--workdir", "/tmp/run"],  # would be deleted with the slice
    [*SLICE, "--bucket", "gs://b", "train", "--workdir=run"],
  ],
)
def test_a_tpu_slice_wants_to_know(arguments):
  done = call(LAUNCH / "tpu_vm.sh", "--dry_run", *arguments)
  assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1


def test_jobset_is_one_pod_per_host_that_restarts_together():
  """Checked against the schema of JobSet v0.9.1 (its CustomResourceDefinition) when it was written."""
  job = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
  assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  (replicated,) = job["spec"]["replicatedJobs"]
  spec = replicated["template"]["spec"]
  assert spec["completionMode"] == "Indexed" and spec["parallelism"] == spec["completions"] and spec["backoffLimit"] == 0
  pod = spec["template"]["spec"]
  rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
  (container,) = pod["containers"]
  assert container["resources"]["limits"]["google.com/tpu"] * spec["parallelism"] == rows * columns
  assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
  assert pod["terminationGracePeriodSeconds"] >= 60
