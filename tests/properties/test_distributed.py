"""Who belongs to a run, and the meeting of its processes, without JAX."""

import io
import os
import socket
import sys
import threading

import pytest

from ddpm_jax.devices import processes as distributed
from ddpm_jax.devices.processes import Group, Lifeline, find
from ddpm_jax.errors import UserError

SLURM = {
  "SLURM_JOB_ID": "70",
  "SLURM_STEP_ID": "0",
  "SLURM_STEP_NODELIST": "tpu[003-004]",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_PROCID": "3",
}
JAX = {"JAX_COORDINATOR_ADDRESS": "job-0.net:1234", "JAX_NUM_PROCESSES": "2"}
VM = {"worker-network-endpoints": "a:1:10.0.0.1,b:2:10.0.0.2", "agent-worker-number": "1"}
GKE = {"TPU_WORKER_HOSTNAMES": "w-0.svc,w-1.svc", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "s-0.svc:8080"}


@pytest.mark.parametrize(
  ("environ", "metadata", "flags", "group"),
  [
    ({}, {}, {}, None),
    ({}, {}, dict(coordinator="host:99", process=1, processes=2), Group("host:99", 2, 1)),
    (JAX | {"JAX_PROCESS_ID": "1"}, {}, {}, Group("job-0.net:1234", 2, 1)),
    (JAX | {"JOB_COMPLETION_INDEX": "0"}, {}, {}, Group("job-0.net:1234", 2, 0)),
    (JAX | {"JAX_PROCESS_ID": "1"}, {}, dict(process=0), Group("job-0.net:1234", 2, 0)),
    (JAX | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, {}, {}, None),
    ({"JOB_COMPLETION_INDEX": "3"}, {}, {}, None),  # a Kubernetes job of separate runs
    (SLURM, {}, {}, Group("tpu003:62000", 4, 3)),
    (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, {}, {}, None),
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, {}, {}, None),  # the batch script itself, before srun
    ({}, VM, {}, Group(f"10.0.0.1:{distributed.PORT}", 2, 1)),
    ({}, {"worker-network-endpoints": "10.0.0.1", "agent-worker-number": "0"}, {}, None),  # a slice of one host
    (GKE, {}, {}, Group(f"w-0.svc:{distributed.PORT}", 2, 1)),
    (GKE | SLICES, {}, {}, Group(f"s-0.svc:{distributed.PORT}", 4, 3)),
  ],
)
def test_the_environment_says_who_we_are(environ, metadata, flags, group):
  assert find(environ, metadata.get, **flags) == group


@pytest.mark.parametrize(
  ("environ", "flags", "message"),
  [
    (JAX, {}, r"--process \(JAX_PROCESS_ID\) is missing"),
    ({}, dict(process=0), "--coordinator .* and --processes .* is missing"),
    (JAX | {"JAX_PROCESS_ID": "2"}, {}, r"Process 2 must be one of 0 \.\. 1"),
    (JAX | {"JAX_PROCESS_ID": "one"}, {}, "'one' is not the number"),
    (JAX | {"JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "host:port"}, {}, "must be host:port"),
    (JAX | {"JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "host:65536"}, {}, "must be host:port"),
    ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, {}, "SLURM_STEP_NODELIST is not: start the command with srun"),
    (SLURM | {"SLURM_JOB_ID": "x"}, {}, "'x' is not the number of a process or a job"),
  ],
)
def test_half_a_description_is_refused(environ, flags, message):
  with pytest.raises(UserError, match=message):
    find(environ, {}.get, **flags)


def meet(members: list[tuple[int, int]], timeout: float = 20.0) -> dict:
  """(process, processes) -> its Lifeline or the sentence with which it gave up; all at the same time."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  found = {}

  def come(place: int, process: int, processes: int) -> None:
    try:
      found[place] = Lifeline(Group(address, processes, process), timeout)
    except UserError as error:
      found[place] = str(error)

  threads = [threading.Thread(target=come, args=(i, *member)) for i, member in enumerate(members)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return found


def test_all_meet_in_any_order_and_part_in_peace():
  found = meet([(2, 3), (1, 3), (0, 3)])
  assert all(isinstance(lifeline, Lifeline) for lifeline in found.values())
  assert sorted(found[2].peers) == [1, 2]
  for lifeline in found.values():
    lifeline.close()


def test_everybody_is_told_who_did_not_come():
  found = meet([(0, 4), (2, 4)], timeout=0.5)
  assert found[0] == found[1]
  assert found[0].startswith("Processes 1, 3 of 4 did not connect within 0.5 s")


def test_nobody_waits_for_ever_without_process_0():
  assert "Process 0 of 2 did not answer at 127.0.0.1:" in meet([(1, 2)], timeout=0.5)[0]


def test_a_port_that_is_taken_is_one_sentence_with_the_remedy():
  with socket.create_server(("", 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(UserError, match=rf"cannot listen on port {port} \(.*in use\): set another port in --coordinator"):
      Lifeline(Group(f"127.0.0.1:{port}", 2, 0), timeout=5.0)


def test_a_process_that_starts_late_is_waited_for_and_later_is_told(monkeypatch):
  came = threading.Event()
  call = Lifeline._call

  def late(lifeline, deadline, timeout):
    came.wait(10)
    call(lifeline, deadline, timeout)

  monkeypatch.setattr(Lifeline, "_call", late)
  monkeypatch.setattr(distributed.log, "info", lambda line, *_: came.set() if "Waiting for process 1 of 2" in line else None)
  found = meet([(0, 2), (1, 2)])  # the second calls when the first has waited for it
  assert all(isinstance(lifeline, Lifeline) for lifeline in found.values())
  for lifeline in found.values():
    lifeline.close()
  monkeypatch.undo()
  assert "did not connect within 0.2 s" in meet([(0, 2)], timeout=0.2)[0]
  assert "Process 0 of 2 did not answer at 127.0.0.1:" in meet([(1, 2)], timeout=0.2)[0]  # 0 has given up


def test_a_host_that_has_no_address_is_one_sentence():
  with pytest.raises(UserError, match=r"did not answer at nowhere\.invalid:1234 .*is the address right\?"):
    Lifeline(Group("nowhere.invalid:1234", 2, 1), timeout=0.2)


@pytest.mark.parametrize(
  ("members", "message"),
  [
    ([(0, 3), (1, 3), (1, 3)], "Two processes were started as number 1"),
    ([(0, 3), (1, 2)], "Process 1 was started as one of 2"),
  ],
)
def test_processes_that_disagree_are_told(members, message):
  found = meet(members)
  assert all(message in word for word in found.values())


def test_the_end_comes_even_if_nobody_reads_any_more(monkeypatch, capfd):
  class Ended(Exception):
    pass

  def leave(code):
    raise Ended(code)

  (alone,) = meet([(0, 1)]).values()
  output = io.StringIO()
  output.close()
  monkeypatch.setattr(sys, "stdout", output)  # whose flush fails, as that of a pipe without a reader
  monkeypatch.setattr(os, "_exit", leave)
  with pytest.raises(Ended, match="3"):
    alone._end("Process 1 of 2 was lost.", 3)
  monkeypatch.undo()
  assert capfd.readouterr().err == "ddpm-jax: process 0 of 1 stops: Process 1 of 2 was lost.\n"


def test_a_machine_whose_name_has_no_address_is_told_what_to_do(monkeypatch):
  def unknown(*_):
    raise socket.gaierror(-2, "Name or service not known")

  distributed.check_host_name()
  monkeypatch.setattr(socket, "getaddrinfo", unknown)
  with pytest.raises(UserError, match="has no address.*to /etc/hosts"):
    distributed.check_host_name()
