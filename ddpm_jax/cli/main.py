"""The command line, ddpm-jax.

Commands import JAX only when they run, so that --help is fast.
"""

import argparse
import contextlib
import gc
import importlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator

from ddpm_jax import __version__, importable
from ddpm_jax.devices import processes
from ddpm_jax.errors import Terminated, UserError
from ddpm_jax.files import history

COMMANDS = {
  "train": "train a network, or continue where the last run stopped",
  "sample": "draw images from a trained network: grids, PNGs, npz, a denoising animation",
  "explore": "a page in the browser: move one setting of a sampler, and see what changes",
  "edit": "reconstruct, vary, inpaint or interpolate images with a trained network",
  "evaluate": "bits/dim, FID, precision and recall ... of a network, or of any images against any reference",
  "report": "one self-contained HTML page about a run",
  "moments": "measure the moments that Analytic-DPM needs, and the costs of its steps",
  "study": "the tables of Analytic-DPM and its extension: methods by numbers of steps",
  "figures": "figures of the papers that do not need a network: noise schedules",
  "convert": "published weights of the six codebases and of diffusers to checkpoints, and back",
  "export": "a sampler as one program that runs with JAX alone",
  "plan": "memory, time and cost of a run on devices that you need not have",
  "data": "list, show and prepare data sets",
  "samplers": "list the samplers, with one line each",
  "configs": "list the configs, with one line each",
}

WITHOUT_CONFIG = ("report", "data", "figures", "samplers", "configs")

DESCRIPTION = """The DDPM family in JAX: trains, samples, guides and evaluates.

  ddpm-jax train    --config digits --workdir runs/digits
  ddpm-jax sample   --workdir runs/digits --sampler ddim --steps 50
  ddpm-jax evaluate --workdir runs/digits

To see what there is to choose from, run ddpm-jax samplers or ddpm-jax configs. Any field of the config can be changed by
--config.SECTION.FIELD=VALUE. With --dry_run, train and sample print the config."""


def main(argv: list[str] | None = None) -> None:
  """Runs `argv`.

  Exit codes: 0 success, 2 an error of the user (one sentence on stderr), 3 another process was lost, 42 training stopped by
  SIGTERM or Ctrl-C with everything saved, 130 Ctrl-C, 143 SIGTERM.
  """
  gc.set_threshold(100_000, 50, 100)  # imports and traces make millions of lasting objects; this saves a tenth of the start
  sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
  """The exit code of one command."""
  parser = argparse.ArgumentParser(
    "ddpm-jax", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--version", action="version", version=__version__)
  commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
  for name, summary in COMMANDS.items():
    module = importlib.import_module(f"ddpm_jax.cli.{name}")
    command = commands.add_parser(
      name,
      help=summary,
      description=module.__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    command.set_defaults(run=module.run)
    module.add_arguments(command)
    if name not in (*WITHOUT_CONFIG, "edit"):  # whose tasks have it
      command.add_argument("--trust", action="store_true", help="import the code that a checkpoint's config names, if any")
  args, rest = parser.parse_known_args(argv)
  unknown = [arg for arg in rest if not arg.startswith("--config.")]
  if unknown:
    parser.error(f"unknown argument {unknown[0]}; see ddpm-jax {args.command} --help")
  args.overrides = [arg.removeprefix("--config.") for arg in rest]
  if args.overrides and args.command in WITHOUT_CONFIG:
    parser.error(f"{rest[0]} has no effect on {args.command}, which does not read a config: leave it out")
  if getattr(args, "trust", False):
    importable.trust_everything()
  logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
  for noisy in ("absl", "orbax", "jax"):
    logging.getLogger(noisy).setLevel(logging.WARNING)
  try:
    with _sigterm_unwinds(), processes.together():
      code = args.run(args) or 0
      if code == 0:
        history.add(getattr(args, "workdir", None), argv)
      return code
  except UserError as error:
    print(f"ddpm-jax: {error}", file=sys.stderr)
    return 2
  except (KeyboardInterrupt, Terminated) as stopped:
    number = signal.SIGINT if isinstance(stopped, KeyboardInterrupt) else signal.SIGTERM
    print(f"ddpm-jax: stopped by {number.name}; locks and temporary files are removed.", file=sys.stderr)
    return 128 + number


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
  """SIGTERM raises Terminated in this block, once; a second SIGTERM ends the process immediately.

  Signals can be handled in the main thread only. An ignored SIGTERM stays ignored.
  """
  ignored = signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
  if ignored or threading.current_thread() is not threading.main_thread():
    yield
    return

  def stop(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated

  before = signal.signal(signal.SIGTERM, stop)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)  # None: not installed from Python
