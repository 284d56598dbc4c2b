"""Tables and figures of methods by numbers of steps, for the network in --workdir.

  ddpm-jax study --workdir runs/mnist --steps 10,25,50                             the tables of Analytic-DPM
  ddpm-jax study --workdir runs/mnist --npr runs/mnist_npr --sn runs/mnist_sn      with the heads of its extension
  ddpm-jax study --workdir runs/mnist --methods ddim,dpm++2m,unipc --steps 5,10    fast solvers
  ddpm-jax study --workdir runs/mnist --methods DDIM --eta 0,0.2,0.5,1             table 1 of DDIM
  ddpm-jax study --workdir runs/mnist --methods DDPM-small --guidance 0,1,2,4,8 --guide runs/mnist_classifier

Every entry is kept in WORKDIR/study as soon as it is measured. The same command continues an interrupted study, and one
with more steps, methods, or axes measures only what is new. Tables (study.md, study.csv, study.tex) are written after every
entry, and the figure study.png at the end. Distances are Fréchet distances in the features of a small classifier of the
data set; see `ddpm-jax evaluate`.
"""

import argparse

import ddpm_jax

UNMEASURED = "unmeasured"  # stands for a file of moments
AXES = ("eta", "grid", "skip", "guidance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--workdir", "--weights", required=True, help="a training run, or a converted checkpoint")
  parser.add_argument("--npr", metavar="DIR", help="a run of --config npr on it")
  parser.add_argument("--sn", metavar="DIR", help="a run of --config sn on it")
  parser.add_argument("--networks", metavar="NAME=DIR,...", help="further networks to compare, in the same tables")
  parser.add_argument("--steps", default="10,25,50,100,200,400,1000", help="numbers of steps K (default %(default)s)")
  parser.add_argument("--methods", help="such as DDPM-small,Analytic-DDPM, or samplers such as ddim (default: the papers')")
  parser.add_argument(
    "--add",
    action="append",
    default=[],
    metavar='"NAME: CHANGES"',
    help='a method of your own, such as "mine: sampling.solver=dpm++2m sampling.grid=log_snr"; may be repeated',
  )
  parser.add_argument("--trajectories", default="even", help="even, optimal, or even,optimal (default %(default)s)")
  group = parser.add_argument_group("axes, each a comma-separated list of values that every method is measured with")
  group.add_argument("--eta", help="0 is DDIM, 1 is DDPM")
  group.add_argument("--grid", help="which levels are visited, such as uniform,quadratic")
  group.add_argument("--skip", help="the share of the reverse process that is left out at its start")
  group.add_argument("--guidance", help="guidance scales")
  parser.add_argument("--guide", metavar="DIR", help="the noisy classifier that --guidance uses (default: classifier-free)")
  parser.add_argument(
    "--measures", help="of distance, bits_per_dim, inception_score, precision, recall (default: the first two)"
  )
  parser.add_argument(
    "--samples", type=int, help="images per distance; 0: none (default: 1000, or half of the training images if fewer)"
  )
  parser.add_argument("--repeats", type=int, default=1, help="how often samples are drawn, for the spread (default 1)")
  parser.add_argument("--likelihood", type=int, default=128, help="test images per bits/dim; 0: none (default %(default)s)")
  parser.add_argument(
    "--cap",
    type=float,
    help="grey levels of noise that DDPM may add in the last but one step (default: 2, and 1 on cosine schedules, as in the "
    "papers)",
  )
  parser.add_argument(
    "--moments", metavar="FILE", help="of ddpm-jax moments (default: those of the run, measured now if there are none)"
  )
  parser.add_argument("--costs", metavar="FILE", help="of ddpm-jax moments --costs marginal: for DDPM-large's best grids")
  parser.add_argument("--out", metavar="DIR", help="where results, tables, and figure go (default: WORKDIR/study)")
  parser.add_argument("--ema", help="which average of the weights: a rate, or raw (default: the slowest)")


def run(args: argparse.Namespace) -> int:
  from ddpm_jax.cli import environment

  print(f"Studying {args.workdir}", flush=True)
  environment.prepare_alone("study")
  import pathlib

  from ddpm_jax.cli.numbers import integers
  from ddpm_jax.errors import UserError
  from ddpm_jax.evaluation import study_tables
  from ddpm_jax.jobs import measure, study

  for name, least in (("samples", 0), ("likelihood", 0), ("repeats", 1)):
    if (value := getattr(args, name)) is not None and value < least:
      raise UserError(f"--{name} {value} is too few: give at least {least}.")
  measures = _measures(args)
  workdir = pathlib.Path(args.workdir)
  out = pathlib.Path(args.out or workdir / "study")
  where = {"plain": args.workdir, "npr": args.npr, "sn": args.sn} | _named(args.networks)
  where = {name: path for name, path in where.items() if path}
  overrides = [*_guide(args), *args.overrides]
  networks = {name: ddpm_jax.load(path, ema=args.ema, overrides=overrides) for name, path in where.items()}
  for name, trained in networks.items():
    print(f"{where[name]}, step {trained.step}, {trained.weights}")
  plain = networks["plain"]
  if args.samples is None:
    args.samples = min(1000, len(plain.dataset(plain.config.data.train_split)) // 2)
  if args.cap is None:
    args.cap = 1.0 if plain.config.schedule.name == "cosine" else 2.0
  spec = study.Study(
    networks,
    out,
    integers(args.steps, "--steps"),
    names=args.methods and args.methods.split(","),
    extra=[_method(text) for text in args.add],
    trajectories=args.trajectories.split(","),
    axes=_axes(args),
    measures=measures,
    moments=_moments(args, where),
    costs=args.costs,
    samples=args.samples,
    repeats=args.repeats,
    likelihood=args.likelihood,
    ddpm_cap=args.cap,
  )
  spec.check()
  print(f"{len(spec.cells)} entries, kept in {out}")
  sampled = any(panel.measure != "bits_per_dim" for panel in spec.panels)
  judge = measure.yardstick(plain, workdir / "evaluation", args.samples) if sampled else None
  spec = _measured(spec) if args.moments is None else spec
  results = study.run(spec, judge)
  study_tables.plot(results, spec.panels, out / "study.png", str(workdir), x=_x_axis(spec))
  print("\n" + (out / "study.md").read_text())
  print(f"Wrote {out / 'study.md'}, .csv, .tex and .png")
  return 0


def _measures(args: argparse.Namespace) -> list[str]:
  """The names of the measures.

  Raises:
    UserError: for an unknown one, or if nothing would be measured.
  """
  from ddpm_jax.config import nearest
  from ddpm_jax.errors import UserError
  from ddpm_jax.evaluation.study_tables import PANELS

  names = args.measures.split(",") if args.measures else ["distance", "bits_per_dim"]
  for name in names:
    if name not in PANELS:
      raise UserError(f"Measure {name!r} is unknown; {nearest(name, PANELS)}")
  kept = [name for name in names if (args.likelihood if name == "bits_per_dim" else args.samples != 0)]
  if not kept:
    raise UserError("Without --samples and --likelihood there is nothing to measure: leave one of them above 0.")
  return kept


def _named(text: str | None) -> dict[str, str]:
  """{"a": "runs/a"} of "a=runs/a"."""
  from ddpm_jax.errors import UserError

  found = {}
  for part in text.split(",") if text else []:
    name, equals, path = part.partition("=")
    if not (equals and name and path):
      raise UserError(f"--networks {part!r} should name a run, such as cosine=runs/cosine.")
    found[name] = path
  return found


def _guide(args: argparse.Namespace) -> list[str]:
  """Changes of the config for the axis of guidance scales."""
  from ddpm_jax.errors import UserError

  if args.guide and not args.guidance:
    raise UserError("--guide needs scales to guide with: add --guidance, such as --guidance 0,1,2,4.")
  if not args.guidance:
    return []
  if args.guide:
    return ["sampling.guidance.kind=classifier", f"sampling.guidance.model={args.guide}"]
  return ["sampling.guidance.kind=classifier_free"]


def _axes(args: argparse.Namespace) -> dict[str, list]:
  """Values by axis."""
  from ddpm_jax.errors import UserError
  from ddpm_jax.jobs.methods import AXES as known

  found = {}
  for name in AXES:
    text = getattr(args, name)
    if text is None:
      continue
    try:
      found[name] = [known[name].parse(value) for value in text.split(",")]
    except ValueError:
      raise UserError(f"--{name} {text} should be numbers, such as --{name} 0,0.5,1.") from None
  return found


def _method(text: str):
  """The method of "NAME: CHANGES"."""
  from ddpm_jax import config as configs
  from ddpm_jax.errors import UserError
  from ddpm_jax.jobs.methods import Method

  name, colon, changes = text.partition(":")
  odd = [change for change in changes.split() if not change.startswith("sampling.")]
  if not (colon and changes.strip()) or odd:
    raise UserError(f'--add {text!r} should be a name and changes of sampling, such as "mine: sampling.solver=dpm++2m".')
  assigned = {change.partition("=")[0].removeprefix("sampling.") for change in changes.split()}
  sampling = configs.override(configs.default(), changes.split()).sampling
  return Method(name.strip(), {field: sampling[field] for field in assigned})


def _moments(args: argparse.Namespace, where: dict[str, str]) -> dict:
  """Files of moments by network, as far as they exist; the first network's may still have to be measured.

  Raises:
    UserError: if the requested moments do not exist.
  """
  import pathlib

  from ddpm_jax.errors import UserError

  if args.moments and not pathlib.Path(args.moments).exists():
    raise UserError(f"--moments {args.moments} does not exist: write it with ddpm-jax moments, or leave the flag out.")
  found = {name: pathlib.Path(path) / "evaluation" / "moments.npz" for name, path in where.items()}
  found = {name: path for name, path in found.items() if path.exists() and name not in ("npr", "sn")}
  return {"plain": UNMEASURED} | found | ({"plain": pathlib.Path(args.moments)} if args.moments else {})


def _measured(spec):
  """The study with moments of its first network, which are measured now if a method needs them and there are none."""
  import dataclasses

  from ddpm_jax.jobs import analytic

  moments = dict(spec.moments)
  if any(cell.method.needs_moments and cell.network == "plain" for cell in spec.cells):
    moments["plain"] = analytic.own_moments(spec.plain)
  elif moments["plain"] == UNMEASURED:
    del moments["plain"]
  return dataclasses.replace(spec, moments=moments)


def _x_axis(spec) -> str:
  """The x axis of the figure: K, or the first numeric axis if there is only one K."""
  if len(spec.Ks) > 1:
    return "K"
  numbers = [name for name, values in spec.axes.items() if len(values) > 1 and not isinstance(values[0], str)]
  return numbers[0] if numbers else "K"
