"""Many processes as one run: who belongs to it, the wait for all of them, and the end of all when one is lost.

A process asks its environment whether it is one of several (`find`); alone, nothing here happens. Otherwise all of them
meet before JAX starts (`join`): process 0 listens, the others call, and each says whom it waits for. JAX's own start is
silent until it fails, five minutes later and in many words.

The connections of that meeting stay open for the life of the run. The kernel closes those of a process that dies, so the
others hear of it within a second and end in a sentence, where collectives would hang or fail in a page of C++.

    process k -> 0    "k n"                 once, when it comes
    0 -> process k    "go" or "stop WHY"    when all have come, or cannot
    both ways         "bye", "stop WHY"     a regular end, or the sentence with which everybody is to stop
"""

import atexit
import contextlib
import dataclasses
import itertools
import logging
import os
import selectors
import socket
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Mapping

from ddpm_jax.errors import UserError

log = logging.getLogger(__name__)

PORT = 8476  # where the environment names a host and no port
LOST = 3  # exit code of a process that stops because another one did
NEWS = 30.0  # seconds between lines that say for whom we wait
SUSPENDED = 24 * 3600  # seconds that a run may be stopped and go on; JAX's heartbeat would abort it after 100


@dataclasses.dataclass(frozen=True)
class Group:
  """Process `process` of `processes`; they meet at `coordinator`, "host:port" of process 0."""

  coordinator: str
  processes: int
  process: int

  def __post_init__(self):
    host, _, port = self.coordinator.rpartition(":")
    if not host or not port.isdigit():
      raise UserError(f"The coordinator {self.coordinator!r} must be host:port of process 0, as 10.0.0.1:{PORT}.")
    if not 0 <= self.process < self.processes:
      raise UserError(f"Process {self.process} is none of 0 .. {self.processes - 1}: set --process and --processes.")

  @property
  def address(self) -> tuple[str, int]:
    host, _, port = self.coordinator.rpartition(":")
    return host.strip("[]"), int(port)


# ---------------------------------------------------------------------------------------------------- who we are


def find(
  environ: Mapping[str, str] = os.environ,
  metadata: Callable[[str], str | None] | None = None,
  *,
  coordinator: str | None = None,
  process: int | None = None,
  processes: int | None = None,
) -> Group | None:
  """The group that the environment says we are in, or None for a process of its own. The first of these that is there:

    flags        coordinator, process, processes
    JAX's own    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID (or JOB_COMPLETION_INDEX of a Kubernetes job)
    SLURM        a step of srun with several tasks
    Cloud TPU    the workers of a slice: TPU_WORKER_HOSTNAMES and TPU_WORKER_ID on GKE, the metadata server of a TPU VM

  Args:
    metadata: attribute of a TPU VM -> its text, None if there is none. Default: the metadata server, on a TPU VM alone.

  Raises:
    UserError: if it says so by halves.
  """
  given = {
    "--coordinator (JAX_COORDINATOR_ADDRESS)": coordinator or environ.get("JAX_COORDINATOR_ADDRESS"),
    "--processes (JAX_NUM_PROCESSES)": _first(processes, environ.get("JAX_NUM_PROCESSES")),
    "--process (JAX_PROCESS_ID)": _first(process, environ.get("JAX_PROCESS_ID"), environ.get("JOB_COMPLETION_INDEX")),
  }
  if any(value is not None for name, value in given.items() if "--process " not in name) or process is not None:
    missing = [name for name, value in given.items() if value is None]
    if missing:
      raise UserError(f"One of several processes needs to know all of them: {' and '.join(missing)} is missing.")
    address, count, number = given.values()
    return _several(address, _integer(count), _integer(number))
  if _integer(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
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
  """Another one for each step of a job, so that two of them can share a machine."""
  return 61_440 + (8 * int(environ.get("SLURM_JOB_ID", "0")) + int(environ.get("SLURM_STEP_ID", "0"))) % 4096


def _integer(text: str | int) -> int:
  try:
    return int(text)
  except ValueError:
    raise UserError(f"{text!r} is no number of a process: write an integer.") from None


def _first(*values):
  return next((value for value in values if value is not None), None)


# ---------------------------------------------------------------------------------------------------- one run


_lifeline: "Lifeline | None" = None
_barriers = itertools.count()


def join(group: Group, timeout: float = 300.0, *, saves: bool = False) -> None:
  """Waits for all of the group, then starts JAX as one of them. From here on only process 0 speaks and writes.

  Args:
    timeout: seconds to wait.
    saves: SIGTERM to any process is for training/loop.py, which saves before it ends; it ends other commands at once.

  Raises:
    UserError: if somebody has not come after `timeout` seconds.
  """
  global _lifeline
  import jax

  _lifeline = lifeline = Lifeline(group, timeout)  # from here on the others hear of whatever ends this one
  atexit.register(lifeline.close)
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
    sys.stdout = sys.stderr = open(os.devnull, "w")  # progress bars too; our last sentence goes to sys.__stderr__
  log.info("All %d processes are here.", group.processes)


def wait_for_all() -> None:
  """Returns when every process has called this as often. Collectives do not wait: gloo fails after 30 s."""
  from jax._src import distributed  # its barrier has no public name; Orbax uses it too

  if (client := distributed.global_state.client) is not None:
    client.wait_at_barrier(f"ddpm_jax {next(_barriers)}", 24 * 3600 * 1000)


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Whatever ends the block in one process of several, but a return, ends them all, each in a sentence."""
  try:
    yield
  except BaseException as error:
    if _lifeline is None:
      raise
    _lifeline.fail(error)


def first() -> bool:
  """Whether this process speaks and writes: process 0 of several, or the only one."""
  return _lifeline is None or _lifeline.group.process == 0


def agreed(ok: bool) -> bool:
  """Whether every process says so."""
  import jax
  from jax.experimental import multihost_utils

  if jax.process_count() == 1:
    return ok
  wait_for_all()
  return bool(multihost_utils.process_allgather(ok).all())


class Lifeline:
  """Connections between process 0 and each of the others, open as long as both run. The constructor waits for all."""

  def __init__(self, group: Group, timeout: float):
    self.group = group
    self.peers: dict[int, socket.socket] = {}
    self.ended = threading.Lock()  # taken by whoever says the last sentence
    (self._receive if group.process == 0 else self._call)(time.monotonic() + timeout, timeout)
    threading.Thread(target=self._listen, daemon=True, name="lifeline").start()

  # ------------------------------------------------------------ meeting

  def _receive(self, deadline: float, timeout: float) -> None:
    """Process 0 waits until all others have called."""
    count, missing = self.group.processes, set(range(1, self.group.processes))
    news = _News()
    try:
      server = _serve(self.group.address[1])
    except OSError as error:
      raise UserError(
        f"Process 0 cannot listen on port {self.group.address[1]} ({error.strerror}): give another one in --coordinator."
      ) from None
    with server:
      server.settimeout(0.2)
      while missing:
        news(f"Waiting for process{'es' * (len(missing) > 1)} {_listed(missing)} of {count}.")
        if time.monotonic() > deadline:
          self._give_up(
            f"Process{'es' * (len(missing) > 1)} {_listed(missing)} of {count} did not come within {timeout:g} s: "
            "look at why, or start as many processes as there are."
          )
        with contextlib.suppress(TimeoutError):
          caller, _ = server.accept()
          number = self._greet(caller, missing)
          if number is not None:
            missing.remove(number)
            self.peers[number] = caller
    self._tell("go")

  def _greet(self, caller: socket.socket, missing: set[int]) -> int | None:
    """The number of a caller that is one of us."""
    _keep_alive(caller)
    try:
      number, count = map(int, _line(caller, 5.0).split())
    except (ValueError, OSError):
      caller.close()  # somebody else's probe
      return None
    if count != self.group.processes:
      self._give_up(f"Process {number} was started as one of {count}, process 0 as one of {self.group.processes}.", caller)
    if number not in missing:
      self._give_up(f"Two processes were started as number {number}: give each a number of its own.", caller)
    return number

  def _give_up(self, why: str, *more: socket.socket) -> None:
    self.peers |= {-1 - k: caller for k, caller in enumerate(more)}
    self._tell(f"stop {why}")
    raise UserError(why)

  def _call(self, deadline: float, timeout: float) -> None:
    """Process k calls process 0, and waits for its word."""
    process, count = self.group.process, self.group.processes
    news, nobody = _News(), f"Process 0 of {count} did not answer at {self.group.coordinator} within {timeout:g} s"
    while True:
      news(f"Process {process} of {count} is waiting for process 0 at {self.group.coordinator}.")
      try:
        peer = socket.create_connection(self.group.address, timeout=2.0)
        break
      except OSError as error:
        if time.monotonic() > deadline:
          raise UserError(f"{nobody} ({error.strerror or error}): is it running, and the address right?") from None
        time.sleep(0.2)
    _keep_alive(peer)
    peer.sendall(f"{process} {count}\n".encode())
    log.debug("Process %d of %d is waiting for the others.", process, count)
    try:
      word = _line(peer, deadline - time.monotonic() + 10.0)  # process 0 gives up first, and says why
    except OSError:
      raise UserError(f"{nobody}: is it running?") from None
    if word != "go":
      raise UserError(word.removeprefix("stop ") or f"Process 0 of {count} stopped before all processes had come.")
    self.peers[0] = peer

  # ------------------------------------------------------------ the life of a run

  def _listen(self) -> None:
    """Ends the process when another one is lost or asks for it."""
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
          f"Process {key.data} of {self.group.processes} was lost; give the same command again: "
          "training continues from the last checkpoint."
        )
        self._end(why, LOST)

  def _end(self, why: str, code: int) -> None:
    """Says the sentence here and to the others, and ends at once: JAX would wait for those who cannot come."""
    if not self.ended.acquire(blocking=False):
      time.sleep(60)  # the other thread is ending the process
    try:
      self._tell(f"stop {why}")
      sentence = f"ddpm-jax: process {self.group.process} of {self.group.processes} stops: {why}\n"
      os.write(2, sentence.encode())  # at once, whoever else is writing
      sys.stdout.flush()
    finally:  # also when nobody reads any more what we say
      os._exit(code)

  def fail(self, error: BaseException) -> None:
    """Ends all processes because of what was raised here."""
    if not isinstance(error, UserError):
      time.sleep(3.0)  # when another process is lost, JAX fails here too: the thread that listens knows better
      traceback.print_exception(error, file=sys.__stderr__)
    why = f"{error}" if isinstance(error, UserError) else f"process {self.group.process} failed: {type(error).__name__}."
    self._end(" ".join(why.split()), 2 if isinstance(error, UserError) else 1)

  def close(self) -> None:
    """A regular end; JAX holds a barrier after it, at which all processes end together."""
    self._tell("bye")

  def _tell(self, word: str) -> None:
    for peer in self.peers.values():
      with contextlib.suppress(OSError):
        peer.sendall(f"{word}\n".encode())


class _News:
  """Logs a line when it changes, and again every NEWS seconds."""

  def __init__(self):
    self.said, self.at = "", 0.0

  def __call__(self, line: str) -> None:
    if line != self.said or time.monotonic() > self.at + NEWS:
      self.said, self.at = line, time.monotonic()
      log.info(line)


def _serve(port: int) -> socket.socket:
  if socket.has_dualstack_ipv6():
    return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
  return socket.create_server(("", port))


def _keep_alive(peer: socket.socket) -> None:
  """Finds out within half a minute that the machine at the other end is gone."""
  peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
    if hasattr(socket, option):
      peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _line(peer: socket.socket, timeout: float | None) -> str:
  """What the other end says next; "" if it is gone. Raises OSError when it takes longer than `timeout` seconds."""
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
