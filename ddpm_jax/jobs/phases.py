"""Named phases of a long job: one log line each, and a running clock on a terminal."""

import logging
import sys
import threading
import time

log = logging.getLogger(__name__)


class Phase:
  """A phase such as "Compiling the training step", from `begin` to `end`; also a context manager."""

  def __init__(self, name: str):
    self.name = name
    self._over = threading.Event()
    self._began = 0.0

  def begin(self) -> "Phase":
    """Logs the name, and starts the clock if standard error is a terminal."""
    log.info("%s ...", self.name)
    self._began = time.monotonic()
    if sys.stderr.isatty():
      threading.Thread(target=self._tick, daemon=True).start()
    return self

  def end(self) -> None:
    """Stops the clock; logs the duration if it exceeds two seconds."""
    if self._over.is_set():
      return
    self._over.set()
    seconds = time.monotonic() - self._began
    if seconds > 2:
      log.info("%s took %.0f s.", self.name, seconds)

  def _tick(self) -> None:
    while not self._over.wait(1):
      print(f"\r{self.name}: {time.monotonic() - self._began:.0f} s ", end="", file=sys.stderr, flush=True)
    print("\r", end="", file=sys.stderr, flush=True)

  def __enter__(self) -> "Phase":
    return self.begin()

  def __exit__(self, *_) -> None:
    self.end()
