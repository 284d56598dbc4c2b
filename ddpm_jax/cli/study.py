"""The tables of Analytic-DPM and Extended-Analytic-DPM for the network in --workdir: methods by numbers of steps.

  ddpm-jax moments --workdir runs/mnist
  ddpm-jax study   --workdir runs/mnist --npr runs/mnist_npr --sn runs/mnist_sn --steps 10,25,50

Each entry is kept as it is measured, in WORKDIR/study; the same call goes on where the last one stopped, and one with more
steps or methods measures only what is new. Writes study.md and study.png there. Distances are Fréchet distances in the
features of a small classifier of the data set (ddpm-jax evaluate). Optimal trajectories are for bits/dim, as in the papers.
"""

import argparse

import ddpm_jax


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--workdir", required=True, help="a training run, or a converted checkpoint")
  parser.add_argument("--npr", metavar="DIR", help="a run of --config npr on it")
  parser.add_argument("--sn", metavar="DIR", help="a run of --config sn on it")
  parser.add_argument("--steps", default="10,25,50,100,200,400,1000", help="numbers of steps K (default %(default)s)")
  parser.add_argument("--methods", help="such as DDPM-small,Analytic-DDPM (default: all that the networks allow)")
  parser.add_argument("--trajectories", default="even", help="of steps: even, optimal or even,optimal (default %(default)s)")
  parser.add_argument("--samples", type=int, default=1000, help="images per distance; 0: none (default %(default)s)")
  parser.add_argument("--likelihood", type=int, default=128, help="test images per bits/dim; 0: none (default %(default)s)")
  parser.add_argument(
    "--cap",
    type=float,
    help="grey levels of noise that DDPM may have in the last but one step (default: "
    "2, and 1 on cosine schedules, as in the papers)",
  )
  parser.add_argument("--moments", metavar="FILE", help="of ddpm-jax moments (default: WORKDIR/evaluation/moments.npz)")
  parser.add_argument("--costs", metavar="FILE", help="of ddpm-jax moments --costs marginal: for DDPM-large's best grids")
  parser.add_argument("--out", metavar="DIR", help="where entries, tables and picture are kept (default: WORKDIR/study)")
  parser.add_argument("--ema", help="which average of the weights: a rate, or raw (default: the slowest)")


def run(args: argparse.Namespace) -> int:
  from ddpm_jax.cli import environment

  environment.prepare_alone("study")
  import pathlib

  from ddpm_jax.cli.numbers import integers
  from ddpm_jax.errors import UserError
  from ddpm_jax.files.atomic import writing
  from ddpm_jax.jobs import analytic, study
  from ddpm_jax.jobs import measure as scores

  for name in ("samples", "likelihood"):
    if getattr(args, name) < 0:
      raise UserError(f"--{name} {getattr(args, name)} is too few: give at least 0, which measures none.")
  if not (args.samples or args.likelihood):
    raise UserError("Without --samples and --likelihood there is nothing to measure: leave one of them above 0.")
  workdir = pathlib.Path(args.workdir)
  out = pathlib.Path(args.out or workdir / "study")
  moments = pathlib.Path(args.moments or workdir / "evaluation" / "moments.npz")
  if not moments.exists() and not args.moments and args.methods and "Analytic" not in args.methods:
    moments = None  # nobody asks for them
  elif not moments.exists():
    raise UserError(f"There are no moments in {moments}: measure them first with ddpm-jax moments --workdir {workdir}.")
  where = {"plain": args.workdir, "npr": args.npr, "sn": args.sn}
  networks = {name: ddpm_jax.load(path, ema=args.ema, overrides=args.overrides) for name, path in where.items() if path}
  for name, trained in networks.items():
    print(f"{where[name]}, step {trained.step}, {trained.weights}")
  judge = scores.yardstick(networks["plain"], workdir / "evaluation", args.samples) if args.samples else None
  cap = args.cap
  if cap is None:
    cap = 1.0 if networks["plain"].config.schedule.name == "cosine" else 2.0
  results = analytic.study(
    networks,
    out,
    Ks=integers(args.steps, "--steps"),
    moments_path=moments,
    costs_path=args.costs,
    names=args.methods and args.methods.split(","),
    trajectories=args.trajectories.split(","),
    distance=judge and (lambda images: _kept(judge(images))),
    samples=args.samples,
    likelihood=args.likelihood,
    ddpm_cap=cap,
  )
  panels = {}
  if args.samples:
    panels["distance"] = ("samples", f"Fréchet distance of {args.samples} samples")
  if args.likelihood:
    panels["bits_per_dim"] = ("mean", "bits/dim")
  tables = [f"{label}\n\n{study.table(results, measure, value)}\n" for measure, (value, label) in panels.items()]
  with writing(out / "study.md") as temporary:
    temporary.write_text("\n".join(tables))
  study.plot(results, panels, out / "study.png", str(workdir))
  print("\n" + "\n".join(tables))
  print(f"Wrote {out / 'study.md'} and .png")
  return 0


def _kept(found) -> dict:
  """What a cell keeps of quality.Distances."""
  return {"samples": found.samples, "real": found.real, "count": found.count, "features": found.features["sha256"]}
