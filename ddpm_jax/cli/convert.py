"""Converts published weights to checkpoints that sample, evaluate and train read, and back.

  ddpm-jax convert --list                                                      the published models known here
  ddpm-jax convert cifar10_uncond_50M_500K.pt --out runs/cifar10               known by its file name
  ddpm-jax convert my.pt --out runs/my --like imagenet64_iddpm                 like a config (or published model)
  ddpm-jax convert my.pt --out runs/my --config.data.image_size=64 --config.network.num_heads=4 \\
                   --config.schedule.name=cosine --config.schedule.T=4000      or with what tensors do not determine
  ddpm-jax convert ./ddpm-cifar10-32 --out runs/hf                             a folder of diffusers
  ddpm-jax convert --export my.safetensors --workdir runs/my                   back, bit by bit

Reads PyTorch's .pt, .pth, .ckpt, .safetensors, diffusers' folders and TensorFlow's checkpoints, without those libraries.
Averaged weights are preferred. Nothing is written before everything fits.
"""

import argparse

USES: dict[str, set[str]] = {  # arguments of each job
  "--list": set(),
  "--export": {"export", "workdir", "ema", "family", "attention_order"},
  "a conversion": {"source", "out", "like", "weights", "family", "attention_order", "overrides"},
}
FAMILIES = ("pesser", "ho_tf", "openai", "consistency", "ncsnpp", "diffusers", "edm_adm", "edm_song", "lucidrains")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("source", nargs="?", help="the file, folder or TensorFlow prefix to convert")
  parser.add_argument("--out", help="directory of the new checkpoint")
  parser.add_argument("--list", action="store_true", help="the published models: name, file, config, results")
  parser.add_argument("--like", help="a published model or a config similar to the file")
  parser.add_argument("--weights", help="which set of weights, if the file has several")
  parser.add_argument(
    "--family", choices=FAMILIES, help="the codebase of the tensors' names (default: detected; checked if given)"
  )
  parser.add_argument(
    "--attention_order", choices=("legacy", "new"), help="order of OpenAI's q, k, v (default: as published)"
  )
  parser.add_argument(
    "--export",
    metavar="FILE",
    help="write the checkpoint of --workdir as a .safetensors, .pt, .pth or .ckpt file, or a folder for diffusers",
  )
  parser.add_argument("--workdir", help="the run to export")
  parser.add_argument("--ema", help="which average to export: a rate, or raw (default: the slowest)")


def run(args: argparse.Namespace) -> int:
  from ddpm_jax.cli import environment

  environment.prepare()
  from ddpm_jax.convert import convert, export, registry
  from ddpm_jax.errors import UserError
  from ddpm_jax.files import lock
  from ddpm_jax.jobs.train import parameter_count

  job = "--list" if args.list else "--export" if args.export else "a conversion"
  for name in sorted(set().union(*USES.values()) - USES[job]):
    if getattr(args, name):
      flag = "config." + args.overrides[0] if name == "overrides" else name
      raise UserError(f"{'source' if name == 'source' else '--' + flag} has no effect on {job}: leave it out.")
  if args.list:
    print(listing(registry.PUBLISHED.values()))
    return 0
  if args.export:
    if not args.workdir:
      raise UserError("--export needs --workdir, the directory of the checkpoint.")
    export.export(args.workdir, args.export, family=args.family, attention_order=args.attention_order, ema=args.ema)
    print(f"Wrote {args.export}")
    return 0
  if not args.source or not args.out:
    raise UserError("Say what to convert and where to: ddpm-jax convert FILE --out DIR (or --list, or --export).")

  made = convert.convert(
    args.source,
    like=args.like,
    overrides=args.overrides,
    weights=args.weights,
    family=args.family,
    attention_order=args.attention_order,
  )
  with lock.alone(args.out, "converting"):
    convert.save(made, args.out, args.source)
  averaged = f"averages of rate {made.rate}" if made.rate else "raw weights"
  print(f"{made.which}: {averaged}, {parameter_count(made.params):,} parameters, step {made.step}, names of {made.dialect}")
  for note in (*made.notes, *(f"Left out {name}, which is not a parameter." for name in made.buffers)):
    print(note)
  print(f"Wrote {args.out}; try: ddpm-jax sample --workdir {args.out} --seeds 0-15")
  return 0


def listing(published) -> str:
  """One paragraph per model."""
  lines = []
  for entry in published:
    config = f"config {entry.config_name}" + (f" on {entry.backbone}" if entry.backbone else "")
    lines.append(f"{entry.name}: {entry.data}, {config}")
    lines.append(f"    {entry.file or '(any file name)'}  {entry.url}" + (f"  MD5 {entry.md5}" if entry.md5 else ""))
    if entry.expected:
      lines.append(f"    published: {entry.expected}")
  return "\n".join(lines)
