"""launch/slurm.sbatch under a real SLURM on this machine: Debian's slurmctld, slurmd and munge, started here as root."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = f"{os.environ['PATH']}:/usr/sbin"

pytestmark = pytest.mark.skipif(
  os.name != "posix" or os.geteuid() != 0 or not all(shutil.which(name, path=PATH) for name in DAEMONS),
  reason="needs root and Debian's packages slurmctld, slurmd and munge",
)

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={run}/munge
CryptoType=crypto/munge
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1
StateSaveLocation={run}/state
SlurmdSpoolDir={run}/spool
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd.pid
SlurmctldLogFile={run}/slurmctld.log
SlurmdLogFile={run}/slurmd.log
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP OverSubscribe=FORCE:4
"""


@pytest.fixture(scope="module")
def slurm():
  """The environment in which sbatch and scontrol talk to a cluster of this one machine."""
  run = pathlib.Path("/run") / f"ddpm_jax_slurm_{os.getpid()}"  # munged trusts no directory that others may write to
  for name in (".", "state", "spool"):
    (run / name).mkdir(mode=0o755)
  with socket.socket() as one, socket.socket() as two:
    one.bind(("127.0.0.1", 0))
    two.bind(("127.0.0.1", 0))
    ports = one.getsockname()[1], two.getsockname()[1]
  host = socket.gethostname().partition(".")[0]
  (run / "slurm.conf").write_text(CONFIG.format(run=run, host=host, ports=ports))
  key = run / "key"
  key.write_bytes(os.urandom(128))
  key.chmod(0o400)
  environment = os.environ | {"SLURM_CONF": str(run / "slurm.conf"), "PATH": PATH}
  munged = [
    "munged",
    "-F",
    "--force",
    f"--key-file={key}",
    f"--socket={run}/munge",
    f"--pid-file={run}/munge.pid",
    f"--log-file={run}/munge.log",
    f"--seed-file={run}/seed",
  ]
  started = []
  try:
    for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
      log = (run / f"{command[0]}.out").open("w")
      started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
      time.sleep(1.0)
    wait(lambda: "idle" in call(environment, "sinfo", "-h", "-o", "%T"), lambda: said(run))
    yield environment
  finally:
    for daemon in reversed(started):
      daemon.terminate()
      daemon.wait(30)
    shutil.rmtree(run, ignore_errors=True)


def call(environment: dict, *command: str) -> str:
  return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout.strip()


def said(run: pathlib.Path) -> str:
  return "\n".join(path.read_text(errors="replace")[-1500:] for path in [*run.glob("*.log"), *run.glob("*.out")])


def wait(done, why, seconds: float = 120.0) -> None:
  until = time.monotonic() + seconds
  while not done():
    assert time.monotonic() < until, why()
    time.sleep(0.5)


def submit(slurm: dict, out: pathlib.Path, program: str, *flags: str, **variables: str) -> str:
  """The number of a job of two tasks that runs `program` in the place of ddpm-jax."""
  script = out.with_suffix(".py")
  script.write_text(f"#!{sys.executable}\n{program}")
  script.chmod(0o755)
  environment = slurm | {"DDPM_JAX": str(script), **variables}
  return call(
    environment,
    "sbatch",
    "--parsable",
    "--nodes=1",
    "--ntasks-per-node=2",
    f"--output={out}",
    *flags,
    str(LAUNCH / "slurm.sbatch"),
    "train",
    "--wait=30",
  )


MEET = """
import os, sys
sys.path.insert(0, os.environ["SOURCE"])
from ddpm_jax.devices import processes
group = processes.find()
lifeline = processes.Lifeline(group, 60.0)
print("met", group.process, group.processes, sys.argv[1:], flush=True)
lifeline.close()
"""

# its second process ends a second after the first
SAVED = """
import os, pathlib, sys, time
lives = pathlib.Path(os.environ["LIVES"] + os.environ["SLURM_PROCID"])
with lives.open("a") as file:
  file.write("life\\n")
time.sleep(int(os.environ["SLURM_PROCID"]))
sys.exit(42 if len(lives.read_text().splitlines()) == 1 else 0)
"""


def test_two_tasks_find_each_other(slurm, tmp_path):
  out = tmp_path / "meet.txt"
  job = submit(slurm, out, MEET, SOURCE=str(LAUNCH.parent))
  ended(slurm, job, out)
  met = sorted(line for line in out.read_text().splitlines() if line.startswith("met"))
  assert met == ["met 0 2 ['train', '--wait=30']", "met 1 2 ['train', '--wait=30']"]


def test_a_run_that_saved_itself_goes_back_to_the_queue(slurm, tmp_path):
  out = tmp_path / "requeue.txt"
  job = submit(slurm, out, SAVED, LIVES=str(tmp_path / "lives"))
  show = lambda: call(slurm, "scontrol", "show", "job", job)
  wait(lambda: "Restarts=1" in show() and "JobState=PENDING" in show(), lambda: show() + out.read_text())
  assert "The run is saved" in out.read_text()
  # SLURM lets a requeued job wait two minutes. Two seconds are the least: credentials are revoked by the whole second, and
  # a life that begins in the second in which the last one ended is refused.
  call(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now+2")
  ended(slurm, job, out)
  assert [(tmp_path / f"lives{task}").read_text() for task in (0, 1)] == ["life\nlife\n"] * 2


def ended(slurm: dict, job: str, out: pathlib.Path) -> None:
  show = lambda: call(slurm, "scontrol", "show", "job", job)
  wait(lambda: "JobState=COMPLETED" in show(), lambda: show() + (out.read_text() if out.exists() else ""))
