"""Configs: their defaults, how they are loaded, and how fields are changed.

A config is an `ml_collections.ConfigDict` with the fields of fields.py. `configs/*.py` fill one in per published result.
Sections are the keyword arguments of what build/ makes of them. An unknown field is refused, with the nearest known one.
"""

import ast
import difflib
import importlib.util
import logging
import pathlib
import re
from collections.abc import Collection, Sequence
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import fields, importable
from ddpm_jax.errors import UserError
from ddpm_jax.fields import FIELDS, kind_name

log = logging.getLogger(__name__)

OPEN_SECTIONS = ("schedule", "network", "loss", "time_sampler")  # arguments of whatever their `name` names


def default() -> ConfigDict:
  """A config with every field at its default; a run still has to choose data, network and total_steps."""
  values: dict[str, Any] = {}
  for path, field in FIELDS.items():
    *sections, name = path.split(".")
    node = values
    for section in sections:
      node = node.setdefault(section, {})
    node[name] = field.default
  return ConfigDict(values).lock()


def load(spec: str) -> ConfigDict:
  """The config of "name", "name:variant", "path/file.py" or "path/file.py:variant"."""
  path, _, variant = spec.partition(":")
  file = pathlib.Path(path)
  if file.suffix != ".py":
    known = available()
    if path not in known:
      raise UserError(f"Config {path!r} is unknown; {nearest(path, known)} Or give the path of a .py file.")
    file = known[path]
  if not file.is_file():
    raise UserError(f"Config file {path} does not exist.")
  module_spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
  assert module_spec and module_spec.loader  # as for every .py file
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
    config = module.get_config(variant) if hasattr(module, "get_config") else None
  except UserError:
    raise
  except Exception as error:  # the user's own code
    what = f"{type(error).__name__}: {error}"
    raise UserError(f"Config file {path} cannot be read ({what}): correct it, or choose another.") from error
  if not isinstance(config, ConfigDict):
    raise UserError(f"Config file {path} has no function get_config(variant) that returns a config.")
  importable.trust(config)
  return config


def available() -> dict[str, pathlib.Path]:
  """The files of the configs that come with the package, by name."""
  from ddpm_jax import configs

  return {path.stem: path for path in sorted(pathlib.Path(configs.__file__).parent.glob("[a-z]*.py"))}


def about(file: pathlib.Path) -> str:
  """The first sentence of a config file's docstring, as one line of at most 120 characters."""
  paragraph = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n\n")[0].replace("\n", " ")
  sentence = re.split(r"(?<! al)[.:;](?= |$)", paragraph)[0]
  return sentence if len(sentence) <= 120 else sentence[:117].rsplit(" ", 1)[0] + " ..."


def from_dict(values: dict) -> ConfigDict:
  """The config that a checkpoint stores, with defaults for fields that are newer than it.

  Raises:
    UserError: if it names code that the user did not give; see importable.py.
  """
  importable.check(values)
  config = default()
  for section, content in values.items():
    if section not in config:
      raise UserError(f"The checkpoint's config has a section {section!r}, which this version of ddpm_jax does not know.")
    if not isinstance(config[section], ConfigDict):
      config[section] = content
      continue
    if not isinstance(content, dict):
      raise UserError(f"The checkpoint's config is damaged: its section {section!r} is {content!r}.")
    if section in OPEN_SECTIONS:  # arguments that a default has are not those of another name
      config[section] = ConfigDict()
    with config[section].unlocked(), config[section].ignore_type():
      config[section].update({k: tuple(v) if isinstance(v, list) else v for k, v in content.items()})
  try:
    fields.check(config)
  except UserError as error:
    raise UserError(f"The checkpoint's config cannot be used: {error}") from None
  return config


def override(config: ConfigDict, assignments: Sequence[str], *, asked: Collection[str] = ()) -> ConfigDict:
  """`config` with assignments such as "sampling.eta=0.5" or "network.channel_mult=(1,2,2)", in place.

  Values are Python literals. Anything else is a string. Choices that the config made for another method give way to what
  is assigned here (see `_settle`), and each of them is logged.

  Args:
    asked: fields that the user has chosen already, and that do not give way.

  Raises:
    UserError: for a field that does not exist, a value of another type than the field's, or a number of steps where the
      grid takes none.
  """
  importable.trust([assignment.partition("=")[2] for assignment in assignments])
  for assignment in assignments:
    if assignment.startswith(tuple(f"{section}.name=" for section in _RENAMED)):
      section, _, name = assignment.partition(".name=")
      _drop_arguments(config, section, name)
  for assignment in assignments:
    _assign(config, assignment)
  if assignments:
    fields.check(config)
  _settle(config, {*asked, *(assignment.partition("=")[0] for assignment in assignments)})
  return config


def _assign(config: ConfigDict, assignment: str) -> None:
  path, equals, text = assignment.partition("=")
  if not equals:
    raise UserError(f"--config.{assignment} has no value; write --config.{assignment}=VALUE.")
  *sections, field = path.split(".")
  node = config
  for section in sections:
    if not isinstance(node.get(section), ConfigDict):
      raise UserError(f"The config has no section {section!r}; {nearest(section, _sections(node))}")
    node = node[section]
  if field not in node and not (sections and sections[0] in OPEN_SECTIONS):
    where = ".".join(sections) or "the config"
    raise UserError(f"{where} has no field {field!r}; {nearest(field, list(node))}")
  old = node.get(field)
  value = value_of(text)
  if isinstance(old, ConfigDict):
    raise UserError(f"{path} is a section: assign one of its fields, such as --config.{path}.{next(iter(old))}={text}.")
  declared = FIELDS.get(path)  # arguments in open sections are not: what the section's name stands for declares them
  kinds = declared.types if declared else (type(old),)
  may_be_none = declared is None or declared.nullable
  if kinds == (str,) and not isinstance(value, (str, bool)) and (value is not None or not (may_be_none or text == "None")):
    value = text  # sampling.clip=none, sampling.grid=250, sampling.grid=10,15,20
  if kinds == (float,) and type(value) is int:
    value = float(value)
  if declared and not (value is None and may_be_none) and type(value) not in kinds:
    like = "or None" if may_be_none else f"like {old!r}"
    raise UserError(f"--config.{path}={text} should be {declared.kinds} {like}, not {kind_name(type(value))}.")
  with node.unlocked(), node.ignore_type():
    node[field] = value


_RENAMED = {"schedule": ("T",), "loss": (), "time_sampler": ()}  # sections, and what another name keeps of their arguments
ANCESTRAL = ("marginal", "learned_range", "learned_diagonal")  # covariances that exist at eta = 1 only


def _drop_arguments(config: ConfigDict, section: str, name: str) -> None:
  """Makes room for another name in a section: arguments of the old one mean something else, or nothing, to the new one."""
  node = config[section]
  if name == node.name:
    return
  dropped = {field: node[field] for field in node if field not in ("name", *_RENAMED[section])}
  if dropped:
    listed = ", ".join(f"{field}={value}" for field, value in dropped.items())
    log.info("%s.name=%s: dropped %s, which belonged to %s.", section, name, listed, node.name)
  config[section] = {"name": node.name} | {field: node[field] for field in _RENAMED[section] if field in node}


def _settle(config: ConfigDict, asked: set[str]) -> None:
  """Lets choices that the config made for another method give way to the fields that the user asked for.

  Raises:
    UserError: where two of the fields that were asked for exclude each other.
  """
  sampling = config.sampling

  def give_way(path: str, value: Any, to: str) -> None:
    section, _, field = path.rpartition(".")
    node = config
    for name in section.split("."):
      node = node[name]
    if path in asked or node[field] == value:
      return
    log.info("%s: %s=%s gives way to %s.", to, path, node[field], value)
    with node.ignore_type():
      node[field] = value

  def because(path: str) -> str:
    *_, section, field = path.split(".")
    return f"{path}={config[section][field]}"

  for path in ("sampling.covariance", "prediction.second"):
    if path in asked:
      give_way("evaluation.covariance", None, because(path))
  if "sampling.eta" in asked:
    if "sampling.solver" not in asked and sampling.eta > 0:
      give_way("sampling.solver", "gaussian", because("sampling.eta"))
    if sampling.eta != 1 and sampling.covariance in ANCESTRAL:
      give_way("sampling.covariance", None, because("sampling.eta"))
  elif "sampling.covariance" in asked and sampling.covariance in ANCESTRAL:
    give_way("sampling.eta", 1.0, because("sampling.covariance"))
  if "sampling.solver" in asked and sampling.solver != "gaussian":
    give_way("sampling.keep_eps", False, because("sampling.solver"))
  if "sampling.solver" in asked and sampling.solver != "heun":
    give_way("sampling.churn", 0.0, because("sampling.solver"))
  noisy = sampling.solver == "gaussian" and sampling.eta > 0
  if sampling.guidance.form == "mean" and not noisy:
    give_way("sampling.guidance.form", None, because("sampling.solver"))
  for which in ("sampling", "evaluation"):
    steps = f"{which}.steps"
    if steps not in asked or config[which].steps is None or not fixes_steps(config[which].grid):
      continue
    if f"{which}.grid" in asked:
      raise UserError(
        f'--config.{steps}={config[which].steps} means nothing to the grid "{config[which].grid}", which fixes its '
        f"number of steps: leave one of them out, or take --config.{which}.grid=uniform."
      )
    solves = which == "sampling" and sampling.solver != "gaussian"
    give_way(f"{which}.grid", "log_snr" if solves else "uniform", because(steps))


def fixes_steps(grid: str) -> bool:
  """Whether a grid says itself how many steps it has: "full", "250", "ddim50", "10,15,20", "[250,100,1]"."""
  return re.fullmatch(r"full|ddim\d+|[\d,]+|\[.*", grid) is not None


def check_effect(config: ConfigDict, assignments: Sequence[str]) -> None:
  """Raises UserError if one of the `assignments` that made `config` would change nothing."""
  assigned = sorted({assignment.partition("=")[0] for assignment in assignments})
  for path in assigned:
    for prefix, works, why in _EFFECTS:
      if path.startswith(prefix) and path not in _HARMLESS and not works(config):
        section, _, field = path.rpartition(".")
        node = config
        for name in section.split("."):
          node = node[name]
        value = node[field]
        if value is None or value is False or (path == "sampling.eta" and value == 0):
          continue  # which says that the method is not wanted
        raise UserError(f"--config.{path}={value} means nothing {why.format(config=config)}")


def is_path(name: str) -> bool:
  """Whether the name of a data set is the path of a folder, of a zip or of a Parquet file."""
  return name.startswith(("./", "../", "~", "/")) or name.lower().endswith((".zip", ".parquet"))


def _has_variance(config: ConfigDict) -> bool:
  """Whether a Gaussian step has a variance: at eta = 0 only where the network's error is known."""
  sampling = config.sampling
  return sampling.eta > 0 or sampling.covariance not in (None, "posterior") or config.prediction.second is not None


_GUIDES = ("classifier", "autoguidance")
_HARMLESS = ("sampling.guidance.kind",)
_EFFECTS = (  # (start of a path or of several, whether such a field has an effect, why not and what to do)
  (
    "sampling.eta",
    lambda config: config.sampling.solver == "gaussian",
    'to the solver "{config.sampling.solver}": leave it out.',
  ),
  (
    "sampling.cap_pixels",
    lambda config: config.sampling.solver == "gaussian",
    'to the solver "{config.sampling.solver}": leave it out.',
  ),
  (
    "sampling.cap_steps",
    lambda config: config.sampling.cap_pixels is not None,
    "without a cap: set sampling.cap_pixels too.",
  ),
  (
    "sampling.costs",
    lambda config: config.sampling.grid == "dp_vb",
    'to another grid than "dp_vb": set sampling.grid=dp_vb.',
  ),
  ("sampling.cap_pixels", _has_variance, "at eta = 0, where steps have no variance: set sampling.eta above 0."),
  (
    "sampling.churn",
    lambda config: config.sampling.solver == "heun",
    'to the solver "{config.sampling.solver}": set sampling.solver=heun.',
  ),
  ("sampling.churn_", lambda config: config.sampling.churn > 0, "without noise: set sampling.churn too, such as 40."),
  ("sampling.keep_eps", lambda config: config.sampling.clip != "none", "where nothing is clipped: leave it out."),
  (
    "sampling.clip_range",
    lambda config: config.sampling.clip == "x0",
    'to sampling.clip="{config.sampling.clip}": set sampling.clip=x0.',
  ),
  (
    ("sampling.clip_quantile", "sampling.clip_max"),
    lambda config: config.sampling.clip == "dynamic",
    'to sampling.clip="{config.sampling.clip}": set sampling.clip=dynamic.',
  ),
  (
    "sampling.guidance.",
    lambda config: config.sampling.guidance.kind is not None,
    "without guidance: add --config.sampling.guidance.kind=classifier, classifier_free or autoguidance.",
  ),
  (
    "sampling.guidance.form",
    lambda config: config.sampling.guidance.kind == "classifier",
    "to guidance that is not by a classifier: leave it out.",
  ),
  (
    "sampling.guidance.model",
    lambda config: config.sampling.guidance.kind in _GUIDES,
    "to guidance without a second network: leave it out.",
  ),
  (
    ("sampling.guidance.norm", "sampling.guidance.parallel"),
    lambda config: config.sampling.guidance.rule == "apg",
    'to the rule "{config.sampling.guidance.rule}": set sampling.guidance.rule=apg.',
  ),
  (
    "sampling.guidance.rescale",
    lambda config: config.sampling.guidance.rule == "rescaled",
    'to the rule "{config.sampling.guidance.rule}": set sampling.guidance.rule=rescaled.',
  ),
  (
    "sampling.guidance.fade",
    lambda config: config.sampling.guidance.perturbed,
    "without perturbed attention: set sampling.guidance.perturbed.",
  ),
  (
    "sampling.guidance.blocks",
    lambda config: config.sampling.guidance.kind == "perturbed_attention" or config.sampling.guidance.perturbed,
    "without perturbed attention: set sampling.guidance.kind=perturbed_attention.",
  ),
  (
    ("data.holdout", "data.labels"),
    lambda config: is_path(config.data.name),
    'to the data set "{config.data.name}", which is not a folder or zip: leave it out.',
  ),
  (
    "prediction.sigma_data",
    lambda config: config.prediction.mean in ("edm", "consistency"),
    'to prediction.mean="{config.prediction.mean}": set prediction.mean=edm.',
  ),
  (
    ("network.num_classes", "network.null_label"),
    lambda config: False,
    "because it follows from data and labels: leave it out, and set train.class_conditional.",
  ),
  (
    "ema.widths",
    lambda config: config.train.keep_every is not None,
    "without the checkpoints that it combines: set train.keep_every.",
  ),
  (
    "train.label_dropout",
    lambda config: config.train.class_conditional,
    "to a network that gets no labels: set train.class_conditional=True.",
  ),
  (
    "train.low_res_noise",
    lambda config: config.data.low_res_size is not None,
    "without low-resolution images: set data.low_res_size.",
  ),
)


_ROOM = 230  # characters for a list of names in a sentence
_NEAREST = 12  # names of a list that is longer


def nearest(name: str, known: Any) -> str:
  """The remedy for an unknown name: "did you mean 'x'?", or the list of what there is, or the nearest of a long list."""
  near = difflib.get_close_matches(name, known, n=1)
  if near:
    return f"did you mean {near[0]!r}?"
  names = ", ".join(sorted(known))
  if len(names) <= _ROOM:
    return f"choose from {names}."
  near = difflib.get_close_matches(name, known, n=_NEAREST, cutoff=0.0)
  return f"choose from {', '.join(sorted(near))} and {len(known) - _NEAREST} others."


def _sections(node: ConfigDict) -> list[str]:
  return [key for key, value in node.items() if isinstance(value, ConfigDict)]


def value_of(text: str) -> Any:
  """The value that a text on the command line stands for: a Python literal, or else the text itself."""
  lowered = {"true": True, "false": False, "none": None}
  if text.lower() in lowered:
    return lowered[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # the last two: nested deeply
    return text
