"""The launch scripts: clean, and saying what they would do."""

import pathlib
import shutil
import subprocess

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


def test_local_wants_a_number():
  done = call(LAUNCH / "local.sh", "ddpm-jax", "train")
  assert done.returncode == 2 and "usage: launch/local.sh N COMMAND" in done.stderr


def test_a_tpu_slice_is_created_used_and_deleted():
  done = call(LAUNCH / "tpu_vm.sh", "--dry_run", "--zone", "us-west4-a", "--type", "v5p-32", "--bucket", "gs://b/all/runs",
              "train", "--config", "imagenet64_adm", "--workdir", "runs/adm")  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert [line.split()[4] for line in lines if "tpu-vm" in line] == ["create", "scp", "ssh", "ssh", "delete"]
  assert "--version=v2-alpha-tpuv5 " in lines[0]
  assert "--only-dir=all/runs" in done.stdout
  assert "gcloud storage rsync --recursive gs://b/all/runs/adm runs/adm" in done.stdout


@pytest.mark.parametrize("arguments", [["--zone", "a", "--type", "v5p-8", "train"], ["--zne", "a"], ["--zone"]])
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
