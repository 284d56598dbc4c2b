"""The short flags for how images are drawn: --sampler, --steps, --eta, --guidance, --classifier, --weaker."""

import argparse
from typing import Any

FLAGS = ("sampler", "steps", "eta", "guidance", "classifier", "weaker")


def add_arguments(parser: argparse.ArgumentParser, *, steps: bool = True) -> None:
  """Adds the flags. Without `steps` for a command whose own --steps is something else."""
  group = parser.add_argument_group("how images are drawn", "An explicit --config.FIELD=VALUE wins over these.")
  group.add_argument(
    "--sampler",
    metavar="NAME",
    help="ddpm, ddim, iddpm, analytic, npr, sn, dpm++2m, unipc, heun ... (see ddpm-jax samplers)",
  )
  if steps:
    group.add_argument("--steps", type=int, metavar="K", help="number of steps")
  group.add_argument("--eta", type=float, help="share of DDPM's noise in each step: 0 is DDIM, 1 is DDPM")
  group.add_argument("--guidance", type=float, metavar="SCALE", help="guidance scale; 1 leaves the network as it is")
  group.add_argument("--classifier", metavar="RUN", help="guide by this noisy classifier")
  group.add_argument("--weaker", metavar="RUN", help="guide by this weaker network (autoguidance)")


def of(args: argparse.Namespace) -> dict[str, Any]:
  """The flags that were given, as keyword arguments of `ddpm_jax.load`."""
  values = {name: getattr(args, name, None) for name in FLAGS}
  return {name: value for name, value in values.items() if value is not None}
