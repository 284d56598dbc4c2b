"""What a run will need and cost, before anything is paid for: memory, time at best, the largest batch that fits.

The real training step and the real sampler are compiled for a TPU slice that need not exist, or for the devices here.
Nothing runs, and neither data nor weights are needed.

  ddpm-jax plan --config imagenet64_adm --topology v5e:4x4
  ddpm-jax plan --config imagenet256_adm --topology v5p:2x2x4 --config.mesh.fsdp=16 --price_per_chip_hour 1
  ddpm-jax plan --config imagenet64_adm --topology v5e:4x4 --config.network.remat=auto     which policy is fastest, too
  ddpm-jax plan --config digits                                             the devices at hand

The time at best is a bound, the roofline: no run is faster. How much of it a run reaches is known by measuring only; say
what you assume by --utilisation, and the time and cost at that are told too. One published figure: DDPM's CIFAR-10 (Ho et
al. 2020, appendix B: 21 steps a second of 128 images on a TPU v3-8) did 100 of the 492 TFLOP/s of its chips, 0.2.
"""

import argparse
import dataclasses

from ddpm_jax.cli import short


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", required=True, metavar="NAME[:VARIANT]", help="a config of configs/, or a .py file")
  parser.add_argument("--topology", help="a TPU slice such as v5e:4x4, v5p:2x2x4, v6e:8x8 (default: the devices here)")
  parser.add_argument("--programs", default="train,sample", help="which of them to plan (default %(default)s)")
  parser.add_argument(
    "--as_configured",
    action="store_true",
    help="do not look for the largest batch that fits: take train.per_device_batch and sampling.batch_size as they are",
  )
  parser.add_argument("--exact", action="store_true", help="compile as the run will: slower; memory exact, not from above")
  parser.add_argument("--utilisation", type=float, metavar="U", help="what you assume to reach of the speed at best: 0.2")
  parser.add_argument("--price_per_chip_hour", type=float, metavar="P", help="what you pay; then the cost is told too")
  parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
  short.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  import os

  if args.topology:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a TPU is planned for, not looked for
  from ddpm_jax.cli import environment

  environment.prepare()
  import json

  import jax

  from ddpm_jax import build
  from ddpm_jax import config as configs
  from ddpm_jax.config import nearest
  from ddpm_jax.devices.chips import chip_of, memory_of
  from ddpm_jax.errors import UserError
  from ddpm_jax.files import atomic
  from ddpm_jax.jobs import plan

  if args.topology:  # the cache takes programs for chips that are not there, and cannot give them back
    jax.config.update("jax_enable_compilation_cache", False)
  kinds = {"train": plan.training, "sample": plan.sampling}
  if args.utilisation is not None and not 0 < args.utilisation <= 1:
    raise UserError(f"--utilisation {args.utilisation:g} is no share of the speed at best: give more than 0, at most 1.")
  if args.price_per_chip_hour is not None and not args.price_per_chip_hour > 0:
    raise UserError(f"--price_per_chip_hour {args.price_per_chip_hour:g} is no price: give more than 0, or leave it out.")
  wanted = args.programs.split(",")
  for name in wanted:
    if name not in kinds:
      raise UserError(f"Program {name!r} is unknown; {nearest(name, kinds)}")
  if args.json:
    atomic.check(args.json)
  config = build.configure(configs.load(args.config), args.overrides, build.Request(**short.of(args)))
  devices = plan.devices(args.topology)
  chip, memory = chip_of(devices[0]), memory_of(devices[0])
  where = f"{args.topology}: {len(devices)} chips" if args.topology else f"{len(devices)} x {devices[0].device_kind}"
  print(f"{args.config} on {where}" + (f" of {memory / 2**30:.0f} GiB" if memory else ""))
  print(f"{plan.parameters(config):,} parameters, mesh.fsdp = {config.mesh.fsdp}")
  figures = {"config": args.config, "topology": args.topology, "changes": args.overrides, "exact": args.exact}
  for name in wanted:
    try:
      fit = kinds[name](config, devices, search=not args.as_configured, exact=args.exact)
    except plan.TooLarge as error:
      print(f"\n{name}: does not fit. {error}{REMEDY[name]}")
      figures[name] = None
      continue
    figures[name] = dataclasses.asdict(fit)
    print(describe(name, config, fit, memory))
    if chip is None:
      print(f"  time         no published figures of {devices[0].device_kind!r} are known here, so no roofline")
      continue
    print(roofline(name, config, fit.program, chip, args.utilisation, args.price_per_chip_hour))
    figures[name] |= {"seconds": fit.program.seconds(chip), "images_per_second": fit.program.images_per_second(chip)}
  if args.json:
    with atomic.writing(args.json) as temporary:
      temporary.write_text(json.dumps(figures, indent=2))
  return 0


REMEDY = {
  "train": " Share the state by a larger mesh.fsdp, set network.remat=blocks, or take more or larger chips.",
  "sample": " Every chip holds all weights of a sampler: take larger chips.",
}


def describe(name: str, config, fit, memory: int | None) -> str:
  """What the program of a Fit needs, in lines."""
  program, gib = fit.program, 2**30
  shared = program.images // program.devices // fit.per_device
  size = f"{name}: {program.images} images = {program.devices} devices x {fit.per_device}"
  size += f" x {shared} microbatches" if shared > 1 else ""
  if fit.searched:
    size += ", the largest power of two that fits"
  if program.remat:
    size += f", with remat={program.remat}"
  peak = f"{program.peak / gib:.2f} GiB" + (f" of {memory / gib:.0f}" if memory else "")
  collectives = ", ".join(f"{count} {kind} ({size / 1e9:.3g} GB)" for kind, (count, size) in program.collectives.items())
  return f"""
{size}
  arithmetic   {program.flops / 1e9:,.4g} GFLOP per image
  memory       {peak} per device: {program.arguments / gib:.2f} arguments, {program.temporaries / gib:.2f} temporaries
  traffic      {program.moved / 1e9:,.3g} GB of memory per device and call
  collectives  {collectives or "none"}
  compiled in  {program.compile_seconds:.0f} s"""


def roofline(name: str, config, program, chip, utilisation: float | None, price: float | None) -> str:
  """How long it takes at best, and at the utilisation that is assumed, in lines."""
  bounds = program.seconds(chip)
  longest = max(bounds, key=bounds.get)
  rate = program.images_per_second(chip)
  lines = [
    f"  at best      {bounds[longest]:.4g} s per call, bound by {longest} ("
    + ", ".join(f"{bound} {seconds:.3g}" for bound, seconds in bounds.items())
    + f"): {rate:,.0f} images/s"
  ]

  def whole_run(share: float) -> str:
    hours = config.train.total_steps * bounds[longest] / share / 3600
    cost = f", {hours * program.devices * price:,.0f} at {price:g} per chip hour" if price else ""
    return f"{config.train.total_steps:,} steps in {hours:,.1f} h, {hours * program.devices:,.0f} chip hours{cost}"

  if name == "train":
    lines.append(f"  whole run    at least {whole_run(1.0)}")
  if utilisation:
    lines.append(f"  assumed      {utilisation * rate:,.0f} images/s, at {utilisation:.0%} of that")
    if name == "train":
      lines.append(f"  whole run    {whole_run(utilisation)}, as assumed")
  return "\n".join(lines)
