"""Plans a run: memory, shortest possible time, and the largest batch that fits.

The real training step and the real sampler are compiled for TPUs or NVIDIA GPUs, which this machine need not have, or for
its own devices. Nothing runs, and neither data nor weights are needed.

  ddpm-jax plan --config imagenet64_adm --topology v5e:4x4
  ddpm-jax plan --config cifar10_ddpm --topology h100:8 --config.network.dtype=bfloat16      8 GPUs of one host
  ddpm-jax plan --config imagenet256_adm --topology h100:4x8                                 4 hosts of 8 GPUs
  ddpm-jax plan --config imagenet256_adm --topology v5p:2x2x4 --config.mesh.fsdp=16 --price_per_chip_hour 1
  ddpm-jax plan --config imagenet64_adm --topology v5e:4x4 --config.network.remat=auto       also finds the fastest policy
  ddpm-jax plan --config digits                                                              the devices of this machine

The time at best is a bound, the roofline: no run is faster. Only a measurement shows how much of it a run reaches. Pass
--utilisation to also print time and cost at a share that you assume. One published figure: DDPM's CIFAR-10 (Ho et al. 2020,
appendix B: 21 steps per second of 128 images on a TPU v3-8) reached 100 of the 492 TFLOP/s of its chips, 0.2.
"""

import argparse
import dataclasses

from ddpm_jax.cli import short


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", required=True, metavar="NAME[:VARIANT]", help="a config of configs/, or a .py file")
  parser.add_argument(
    "--topology",
    help="TPU slice (v5e:4x4, v5p:2x2x4, v6e:8x8) or NVIDIA GPUs (a100, h100, h200, b200: h100:8, or 4 hosts of 8 as "
    "h100:4x8); default: the devices of this machine",
  )
  parser.add_argument("--programs", default="train,sample", help="programs to plan (default %(default)s)")
  parser.add_argument(
    "--as_configured",
    action="store_true",
    help="do not search for the largest batch that fits: use train.per_device_batch and sampling.batch_size",
  )
  parser.add_argument(
    "--exact",
    action="store_true",
    help="compile as the run will: slower, with exact memory instead of an upper bound (TPUs)",
  )
  parser.add_argument("--utilisation", type=float, metavar="U", help="assumed share of the speed at best, such as 0.2")
  parser.add_argument("--price_per_chip_hour", type=float, metavar="P", help="price, to also print the cost")
  parser.add_argument("--detail", action="store_true", help="list the kernels that move most (GPUs)")
  parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
  short.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  import os

  if args.topology:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the planning machine needs no accelerator
  from ddpm_jax.cli import environment

  environment.prepare()
  import json

  import jax

  from ddpm_jax import build, fields
  from ddpm_jax import config as configs
  from ddpm_jax.config import nearest
  from ddpm_jax.devices.chips import chip_of_all, memory_of
  from ddpm_jax.errors import UserError
  from ddpm_jax.files import atomic
  from ddpm_jax.jobs import plan

  if args.topology:  # the cache stores programs for absent chips but cannot load them
    jax.config.update("jax_enable_compilation_cache", False)
  kinds = {"train": plan.training, "sample": plan.sampling}
  if args.utilisation is not None and not 0 < args.utilisation <= 1:
    raise UserError(f"--utilisation {args.utilisation:g} must be a share of the speed at best: more than 0 and at most 1.")
  if args.price_per_chip_hour is not None and not args.price_per_chip_hour > 0:
    raise UserError(f"--price_per_chip_hour {args.price_per_chip_hour:g} must be more than 0.")
  wanted = args.programs.split(",")
  for name in wanted:
    if name not in kinds:
      raise UserError(f"Program {name!r} is unknown; {nearest(name, kinds)}")
  if args.json:
    atomic.check(args.json)
  config = build.configure(configs.load(args.config), args.overrides, build.Request(**short.of(args)))
  fields.check(config)
  devices = plan.devices(args.topology)
  chip = chip_of_all(devices)
  memory = memory_of(devices[0])
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
    if fit.program.kernels is not None:
      print(describe_kernels(fit.program.kernels, args.detail))
    if chip is None:
      print(f"  time         no roofline: the published figures of {devices[0].device_kind!r} are unknown")
      continue
    print(roofline(name, config, fit.program, chip, args.utilisation, args.price_per_chip_hour))
    figures[name] |= {"seconds": fit.program.seconds(chip), "images_per_second": fit.program.images_per_second(chip)}
  if args.json:
    with atomic.writing(args.json) as temporary:
      temporary.write_text(json.dumps(figures, indent=2))
  return 0


REMEDY = {
  "train": " Shard the state by a larger mesh.fsdp, set network.remat=blocks, or use more or larger chips.",
  "sample": " Every chip holds all weights of a sampler: use larger chips.",
}


def describe(name: str, config, fit, memory: int | None) -> str:
  """The needs of a Fit's program, as lines of text."""
  program = fit.program
  gib = 2**30
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


def describe_kernels(found, detail: bool) -> str:
  """The kernels of a GPU program, as lines of text; with `detail` also the largest."""
  where = "one step of the loop" if found.in_loop else "the program"
  moved = sum(found.moved.values())
  lines = [
    f"  kernels      {found.count:,} in {where}, {found.small:,} of them below 1 MB; {moved / 1e9:,.3g} GB",
    "  bytes        " + ", ".join(f"{kind} {size / 1e9:.3g} GB" for kind, size in found.moved.items()),
    "  chosen       " + (", ".join(f"{count} {name}" for name, count in found.libraries.items()) or "no library calls"),
  ]
  if detail:
    lines += [
      f"    {k.moved / 1e6:9,.1f} MB  {k.kind:12s} {k.library or k.name:40s} {k.operation[-80:]}" for k in found.largest
    ]
  return "\n".join(lines)


def roofline(name: str, config, program, chip, utilisation: float | None, price: float | None) -> str:
  """The time at best, and at the assumed utilisation, as lines of text."""
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
