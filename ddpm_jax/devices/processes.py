"""Multi-process runs: finding the group, waiting until all processes have started, and stopping all when one is lost.

`find` reads from the environment whether this process is one of several. A single process needs nothing else of this
module. Several processes meet in `join` before JAX starts: process 0 listens, the others connect, and each logs which
processes it waits for. JAX's own initialization logs nothing until it fails after five minutes, with a long message.

The connections stay open for the life of the run. When a process dies, the kernel closes its connections. The others
notice within a second and stop with a one-line message, where collectives would hang or fail with a page of C++.

    process k -> 0    "k n"                 once, when it connects
    0 -> process k    "go" or "stop WHY"    when all have connected, or cannot
    both ways         "bye", "stop WHY"     a regular end, or the message with which every process stops
"""

import atexit
import contextlib
import dataclasses
import itertools
import logging
import os
import re
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ddpm_jax.errors import Terminated, UserError

log = logging.getLogger(__name__)

PORT = 8476  # used if the environment names a host without a port
LOST = 3  # exit code of a process that stops because another one was lost
NEWS = 30.0  # seconds between log lines while waiting
SUSPENDED = 24 * 3600  # seconds that a run may be suspended and continue; JAX's heartbeat would abort it after 100


@dataclasses.dataclass(frozen=True)
class Group:
  """Process number `process` of `processes`, which meet at `coordinator`, the "host:port" of process 0."""

  coordinator: str
  processes: int
  process: int

  def __post_init__(self) -> None:
    host, _, port = self.coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
      raise UserError(f"The coordinator {self.coordinator!r} must be host:port of process 0, such as 10.0.0.1:{PORT}.")
    if not 0 <= self.process < self.processes:
      raise UserError(f"Process {self.process} must be one of 0 .. {self.processes - 1}: set --process and --processes.")

  @property
  def address(self) -> tuple[str, int]:
    host, _, port = self.coordinator.rpartition(":")
    return host.strip("[]"), int(port)


# ---------------------------------------------------------------------------------------------------- finding the group


def find(
  environ: Mapping[str, str] = os.environ,
  metadata: Callable[[str], str | None] | None = None,
  *,
  coordinator: str | None = None,
  process: int | None = None,
  processes: int | None = None,
) -> Group | None:
  """The group of this process according to its environment, or None for a single process. The first match counts:

    flags        coordinator, process, processes
    JAX's own    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID (or JOB_COMPLETION_INDEX of a Kubernetes job)
    SLURM        a step of srun with several tasks
    Cloud TPU    the workers of a slice: TPU_WORKER_HOSTNAMES and TPU_WORKER_ID on GKE, the metadata server of a TPU VM

  Args:
    metadata: attribute of a TPU VM -> its text or None. Default: the metadata server, on TPU VMs only.

  Raises:
    UserError: if the environment defines the group incompletely.
  """
  given = {
    "--coordinator (JAX_COORDINATOR_ADDRESS)": coordinator or environ.get("JAX_COORDINATOR_ADDRESS"),
    "--processes (JAX_NUM_PROCESSES)": _first(processes, environ.get("JAX_NUM_PROCESSES")),
    "--process (JAX_PROCESS_ID)": _first(process, environ.get("JAX_PROCESS_ID"), environ.get("JOB_COMPLETION_INDEX")),
  }
  if any(value is not None for name, value in given.items() if "--process " not in name) or process is not None:
    missing = [name for name, value in given.items() if value is None]
    if missing:
      raise UserError(f"A multi-process run needs all three settings: {' and '.join(missing)} is missing.")
    address, count, number = given.values()
    return _several(address, _integer(count), _integer(number))
  if _integer(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
    if missing := [name for name in ("SLURM_STEP_NODELIST", "SLURM_PROCID") if not environ.get(name)]:
      raise UserError(f"SLURM_STEP_NUM_TASKS is set, but {' and '.join(missing)} is not: start the command with srun.")
    return _several(
      f"{_first_host(environ['SLURM_STEP_NODELIST'])}:{_slurm_port(environ)}",
      _integer(environ["SLURM_STEP_NUM_TASKS"]),
      _integer(environ["SLURM_PROCID"]),
    )
  return _tpu_slice(environ, metadata or (_metadata if _on_tpu_vm(environ) else lambda key: None))


def _several(coordinator: str, processes: int, process: int) -> Group | None:
  group = Group(coordinator if ":" in coordinator else f"{coordinator}:{PORT}", processes, process)
  return group if processes > 1 else None


def _tpu_slice(environ: Mapping[str, str], metadata: Callable[[str], str | None]) -> Group | None:
  hosts = environ.get("TPU_WORKER_HOSTNAMES")
  number = environ.get("TPU_WORKER_ID")
  if not hosts or number is None:
    # "ip, ip" or "name:id:ip, name:id:ip"
    hosts = ",".join(entry.strip().split(":")[-1] for entry in (metadata("worker-network-endpoints") or "").split(","))
    number = metadata("agent-worker-number")
  if not hosts or number is None:
    return None
  workers = hosts.split(",")
  slices, slice_number = (
    _integer(environ.get(f"MEGASCALE_{name}", default)) for name, default in (("NUM_SLICES", "1"), ("SLICE_ID", "0"))
  )
  host = environ.get("MEGASCALE_COORDINATOR_ADDRESS", workers[0]).split(":")[0].strip()
  return _several(f"{host}:{PORT}", len(workers) * slices, _integer(number) + slice_number * len(workers))


def _on_tpu_vm(environ: Mapping[str, str]) -> bool:
  return "TPU_SKIP_MDS_QUERY" not in environ and any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))


def _metadata(key: str) -> str | None:
  url = f"http://metadata.google.internal/computeMetadata/v1/instance/attributes/{key}"
  try:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=5) as answer:
      return answer.read().decode()
  except OSError:
    return None


def _first_host(nodes: str) -> str:
  """The first name in a SLURM list.

  >>> [_first_host(nodes) for nodes in ("node7", "a1,b2", "tpu[003-015,020],x", "g[1,3]")]
  ['node7', 'a1', 'tpu003', 'g1']
  """
  head = nodes.partition(",")[0]
  prefix, bracket, numbers = head.partition("[")
  return prefix + numbers.partition("-")[0].rstrip("]") if bracket else head


def _slurm_port(environ: Mapping[str, str]) -> int:
  """A port that differs between the steps of a job, so that two steps can share a machine."""
  return 61_440 + (8 * _integer(environ.get("SLURM_JOB_ID", "0")) + _integer(environ.get("SLURM_STEP_ID", "0"))) % 4096


def _integer(text: str | int) -> int:
  try:
    return int(text)
  except ValueError:
    raise UserError(f"{str(text)[:40]!r} is not the number of a process or a job: write an integer.") from None


def _first(*values: Any) -> Any:
  return next((value for value in values if value is not None), None)


# ---------------------------------------------------------------------------------------------------- the run


_lifeline: "Lifeline | None" = None
_barriers = itertools.count()


def join(group: Group, timeout: float = 300.0, *, saves: bool = False) -> None:
  """Waits for the whole group, then initializes JAX. From then on only process 0 logs and writes.

  Args:
    group: this process and its group.
    timeout: seconds to wait.
    saves: whether training/loop.py handles SIGTERM and saves before it stops. Other commands stop at once.

  Raises:
    UserError: if a process is missing after `timeout` seconds, or the machine's name has no address.
  """
  global _lifeline
  import jax

  _lifeline = lifeline = Lifeline(group, timeout)  # from here on the others notice when this process ends
  atexit.register(lifeline.close)
  check_host_name()
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.config.update("jax_enable_preemption_service", saves)
  jax.distributed.initialize(
    group.coordinator,
    group.processes,
    group.process,
    initialization_timeout=max(60, int(timeout)),
    heartbeat_timeout_seconds=SUSPENDED,
  )
  if group.process:
    logging.getLogger().setLevel(logging.ERROR)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # silences progress bars too; final messages use sys.__stderr__
  log.info("All %d processes have connected.", group.processes)


def check_host_name() -> None:
  """Raises UserError unless this machine's own name has an address, which Gloo needs and reports missing in C++ only."""
  name = socket.gethostname()
  try:
    socket.getaddrinfo(name, None)
  except (OSError, UnicodeError):
    raise UserError(
      f"The name of this machine, {name}, has no address, and several processes need one: add a line with its address and "
      f"{name} to /etc/hosts."
    ) from None


def wait_for_all() -> None:
  """A barrier over all processes. Collectives are not enough, because gloo gives up after 30 s."""
  from jax._src import distributed  # the barrier has no public name; Orbax uses it too

  if (client := distributed.global_state.client) is not None:
    client.wait_at_barrier(f"ddpm_jax {next(_barriers)}", 24 * 3600 * 1000)


@contextlib.contextmanager
def together() -> Iterator[None]:
  """In a multi-process run, an exception in this block stops every process with a one-line message."""
  try:
    yield
  except BaseException as error:
    if _lifeline is None:
      raise
    _lifeline.fail(error)


def first() -> bool:
  """Whether this process logs and writes: process 0 of several, or the only one."""
  return _lifeline is None or _lifeline.group.process == 0


def agreed(ok: bool) -> bool:
  """Whether `ok` is True in every process."""
  import jax
  from jax.experimental import multihost_utils

  if jax.process_count() == 1:
    return ok
  wait_for_all()
  return bool(multihost_utils.process_allgather(ok).all())


class Lifeline:
  """The connections between process 0 and the others, open while they run. The constructor waits for all processes."""

  def __init__(self, group: Group, timeout: float) -> None:
    self.group = group
    self.peers: dict[int, socket.socket] = {}
    self.ended = threading.Lock()  # held by the thread that ends the process
    (self._receive if group.process == 0 else self._call)(time.monotonic() + timeout, timeout)
    threading.Thread(target=self._listen, daemon=True, name="lifeline").start()

  # ------------------------------------------------------------ meeting

  def _receive(self, deadline: float, timeout: float) -> None:
    """Process 0 waits until all others have connected."""
    count = self.group.processes
    missing = set(range(1, count))
    news = _News()
    try:
      server = _serve(self.group.address[1])
    except OSError as error:
      port = self.group.address[1]
      raise UserError(
        f"Process 0 cannot listen on port {port} ({os.strerror(error.errno or 0)}): set another port in --coordinator."
      ) from None
    with server:
      server.settimeout(0.2)
      while missing:
        news(f"Waiting for process{'es' * (len(missing) > 1)} {_listed(missing)} of {count}.")
        if time.monotonic() > deadline:
          self._give_up(
            f"Process{'es' * (len(missing) > 1)} {_listed(missing)} of {count} did not connect within {timeout:g} s: "
            "check their logs, or set --processes to the number that run."
          )
        with contextlib.suppress(TimeoutError):
          caller, _ = server.accept()
          number = self._greet(caller, missing)
          if number is not None:
            missing.remove(number)
            self.peers[number] = caller
    self._tell("go")

  def _greet(self, caller: socket.socket, missing: set[int]) -> int | None:
    """The process number of a caller; None if it is not a process of this run."""
    _keep_alive(caller)
    try:
      number, count = map(int, _line(caller, 5.0).split())
    except (ValueError, OSError):
      caller.close()  # an unrelated probe
      return None
    if count != self.group.processes:
      self._give_up(f"Process {number} was started as one of {count}, process 0 as one of {self.group.processes}.", caller)
    if number not in missing:
      self._give_up(f"Two processes were started as number {number}: give each its own number.", caller)
    return number

  def _give_up(self, why: str, *more: socket.socket) -> None:
    self.peers |= {-1 - k: caller for k, caller in enumerate(more)}
    self._tell(f"stop {why}")
    raise UserError(why)

  def _call(self, deadline: float, timeout: float) -> None:
    """Process k connects to process 0 and waits for its answer."""
    process = self.group.process
    count = self.group.processes
    news = _News()
    no_answer = f"Process 0 of {count} did not answer at {self.group.coordinator} within {timeout:g} s"
    while True:
      news(f"Process {process} of {count} is waiting for process 0 at {self.group.coordinator}.")
      try:
        peer = socket.create_connection(self.group.address, timeout=2.0)
        break
      except OSError as error:
        if time.monotonic() > deadline:
          raise UserError(f"{no_answer} ({error.strerror or error}): is it running, and is the address right?") from None
        time.sleep(0.2)
    _keep_alive(peer)
    peer.sendall(f"{process} {count}\n".encode())
    log.debug("Process %d of %d is waiting for the others.", process, count)
    try:
      word = _line(peer, deadline - time.monotonic() + 10.0)  # process 0 times out first and sends the reason
    except OSError:
      raise UserError(f"{no_answer}: is it running?") from None
    if word != "go":
      raise UserError(word.removeprefix("stop ") or f"Process 0 of {count} stopped before all processes had connected.")
    self.peers[0] = peer

  # ------------------------------------------------------------ the life of a run

  def _listen(self) -> None:
    """Ends the process when another one is lost or requests it."""
    selector = selectors.DefaultSelector()
    for number, peer in self.peers.items():
      peer.settimeout(None)
      selector.register(peer, selectors.EVENT_READ, number)
    while selector.get_map():
      for key, _ in selector.select():
        try:
          word = _line(key.fileobj, None)
        except OSError:
          word = ""
        if word == "bye":
          selector.unregister(key.fileobj)
          continue
        why = word.removeprefix("stop ") or (
          f"Process {key.data} of {self.group.processes} was lost. Run the same command again: "
          "training continues from the last checkpoint."
        )
        self._end(why, LOST)

  def _end(self, why: str, code: int) -> None:
    """Prints the message, sends it to the others, and exits at once: JAX would wait for processes that are lost."""
    if not self.ended.acquire(blocking=False):
      time.sleep(60)  # the other thread is ending the process
    try:
      self._tell(f"stop {why}")
      sentence = f"ddpm-jax: process {self.group.process} of {self.group.processes} stops: {why}\n"
      os.write(2, sentence.encode())  # unbuffered
      sys.stdout.flush()
    finally:  # also when stderr is closed
      os._exit(code)

  def fail(self, error: BaseException) -> None:
    """Ends all processes because of an exception in this one."""
    if isinstance(error, Terminated):
      self._end(f"process {self.group.process} was stopped by SIGTERM.", 128 + signal.SIGTERM)
    if not isinstance(error, UserError):
      time.sleep(3.0)  # when another process is lost, JAX fails here too; the listening thread has the better message
      traceback.print_exception(error, file=sys.__stderr__)
    why = f"{error}" if isinstance(error, UserError) else f"process {self.group.process} failed: {type(error).__name__}."
    self._end(" ".join(why.split()), 2 if isinstance(error, UserError) else 1)

  def close(self) -> None:
    """Announces a regular end. JAX then holds a barrier at which all processes end together."""
    self._tell("bye")

  def _tell(self, word: str) -> None:
    for peer in self.peers.values():
      with contextlib.suppress(OSError):
        peer.sendall(f"{word}\n".encode())


class _News:
  """Logs a line when it changes, and again every NEWS seconds."""

  def __init__(self) -> None:
    self.logged = ""
    self.at = 0.0

  def __call__(self, line: str) -> None:
    if line != self.logged or time.monotonic() > self.at + NEWS:
      self.logged = line
      self.at = time.monotonic()
      log.info(line)


def _serve(port: int) -> socket.socket:
  if socket.has_dualstack_ipv6():
    return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
  return socket.create_server(("", port))


def _keep_alive(peer: socket.socket) -> None:
  """Detects within half a minute that the machine at the other end is gone."""
  peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
    if hasattr(socket, option):
      peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _line(peer: socket.socket, timeout: float | None) -> str:
  """The next line from the other end; "" if it is gone. Raises OSError when it takes longer than `timeout` seconds."""
  peer.settimeout(timeout)
  text = b""
  while not text.endswith(b"\n"):
    byte = peer.recv(1)
    if not byte:
      return ""
    text += byte
  return text.decode().strip()


def _listed(numbers: set[int]) -> str:
  """
  >>> _listed({3, 1, 2}), _listed(set(range(1, 99)))
  ('1, 2, 3', '1, 2, 3, 4, ... (98 in all)')
  """
  first = ", ".join(map(str, sorted(numbers)[:4]))
  return first if len(numbers) <= 4 else f"{first}, ... ({len(numbers)} in all)"
