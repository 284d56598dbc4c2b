"""The shape of a config: every field, what it means, and its default.

A config is an `ml_collections.ConfigDict`; `configs/*.py` fill one in per published result. Sections are the keyword
arguments of what build/ makes of them. Fields that are not here are refused, with the nearest one that is.
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

from ddpm_jax import importable
from ddpm_jax.errors import UserError

log = logging.getLogger(__name__)

NULLABLE = {  # what a field holds that is None by default
  **dict.fromkeys(("data.data_dir", "prediction.second", "train.backbone"), str),
  **dict.fromkeys(("data.image_size", "data.low_res_size"), (int, tuple)),
  **dict.fromkeys(("data.channels", "data.num_classes"), int),
  **dict.fromkeys(("data.class_names", "data.value_range"), tuple),
  **dict.fromkeys(("train.per_device_batch", "train.keep_every", "sampling.steps", "evaluation.steps"), int),
  **dict.fromkeys(("optimizer.clip_norm", "sampling.cap_pixels"), float),
  **dict.fromkeys(
    ("sampling.covariance", "sampling.moments", "sampling.costs", "sampling.flow", "evaluation.covariance"), str
  ),
  **{f"sampling.guidance.{field}": str for field in ("kind", "form", "model", "ema")},
  "sampling.guidance.interval": tuple,
  "sampling.guidance.step": int,
}
OPEN_SECTIONS = ("schedule", "network", "loss", "time_sampler")  # arguments of whatever their `name` names


def default() -> ConfigDict:
  """A config with every field at its default; a run still has to choose data, network and total_steps."""
  config = ConfigDict()
  config.seed = 0  # root of all randomness of a training run

  config.data = ConfigDict(
    dict(
      name="digits",  # "digits", a TFDS data set ("mnist", "cifar10:3.0.2"), an image folder or zip ("./path/to/images")
      data_dir=None,  # where prepared data sets are; None: $DDPM_JAX_DATA, $TFDS_DATA_DIR or ~/tensorflow_datasets
      train_split="train",
      test_split="test",
      image_size=None,  # N or (height, width); None: as stored. A run records what it found, here and in the next three
      channels=None,  # 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA, or the channels of .npy arrays; None: by the images
      num_classes=None,
      class_names=None,
      crop="adm",  # how images of another size are fitted: "adm", "random", "lsun", "ddim", "celeba"
      background="white",  # the color that transparent pixels are laid over
      value_range=None,  # (low, high) of .npy arrays and 16-bit images, which become 0 and 255; None: the type's range
      labels="auto",  # of folders: from a table in the folder, else from the names of folders
      holdout=0.0,  # of folders without a test split: the share of images that is held out as one
      low_res_size=None,  # super-resolution: the network is also given the image reduced to this size
      corrupt="error",  # or "skip": leave out images that cannot be decoded, and count them
      flip=False,  # mirror half of the training images
    )
  )
  config.schedule = ConfigDict(dict(name="linear", T=1000))
  config.network = ConfigDict(dict(name="unet_ddpm"))  # out_channels and num_classes follow from data and prediction
  config.prediction = ConfigDict(
    dict(
      mean="eps",  # "eps", "x0", "v" or "x_prev"
      second=None,  # second head: "range", "log_var", "residual", "second_moment", "hessian" or "log_residual"
      time_scale=1.0,  # the network is told time_scale (n - time_shift) of level n
      time_shift=1,
    )
  )
  config.loss = ConfigDict(dict(name="simple"))
  config.time_sampler = ConfigDict(dict(name="uniform"))
  config.optimizer = ConfigDict(
    dict(
      learning_rate=2e-4,
      warmup_steps=0,
      decay="constant",  # or "linear", "cosine", to 0 at total_steps
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=0.0,
      clip_norm=None,  # largest global norm of the gradient; losses are means over pixels
    )
  )
  config.ema = ConfigDict(dict(rates=(0.9999,), warmup=True))  # sampling takes the slowest
  config.train = ConfigDict(
    dict(
      total_steps=0,
      batch_size=128,  # of the whole machine park, whatever its size
      per_device_batch=None,  # at most so many images at once on a device; the rest is accumulated
      class_conditional=False,
      backbone=None,  # a finished run, frozen: only a second head is trained on it (NPR-DPM, SN-DPM)
      label_dropout=0.0,  # share of labels replaced by the null label, for classifier-free guidance
      low_res_noise=0.0,  # deviation of noise on the reduced images, so that a cascade forgives its first stage
      log_every=100,
      preview_every=0,  # steps between preview grids; 0: only at the end
      preview_images=16,
      # Steps between checkpoints, and the most that any death of the process costs: halfway between two a further one is
      # written, which does not stay.
      checkpoint_every=1000,
      keep=2,  # newest whole ones kept, and the newest two of all ...
      keep_every=None,  # ... and every one whose step is a multiple of this
      max_skipped=20,  # updates in a row that may be skipped for NaN before the run stops
    )
  )
  config.sampling = ConfigDict(
    dict(
      # "gaussian" (DDPM, DDIM, Analytic-DPM, ...); without eta and covariance "dpm++1", "dpm++2m", "dpm++3m", "dpm++2s",
      # "dpm++2m_sde", "heun", "unipc2", "unipc3" (variant bh2; "unipc2_bh1" and "unipc3_bh1" for the other); for the
      # levels of vp_sde "euler_maruyama" and "euler_ode"
      solver="gaussian",
      # "full"; "uniform", "ddim", "quadratic", "power2", "power3", "log_snr", "karras"; the best by `moments` or by `costs`,
      # "dp_seg", "dp_vb"; or OpenAI's section strings "250", "ddim50", "10,15,20"
      grid="full",
      steps=None,  # of the named grids but "full"
      eta=1.0,  # 0 is DDIM, 1 is DDPM
      # "posterior", "marginal", "learned_range", "learned_diagonal", "optimal", "optimal_average",
      # "optimal_diagonal", "jacobian", "full"; None: by the network
      covariance=None,
      moments=None,  # file of ddpm-jax moments or of Analytic-DPM's authors: for "optimal" without an NPR or SN head
      jacobian=dict(
        probes=4,  # of "jacobian": products with the Jacobian per step; 0: one per pixel, which is exact
        products=8,  # of "full": products with the Jacobian per step
        floor=0.33,  # of both: least variance, as a share of what the moments give for the level
      ),
      residual=False,  # take from it how far eps_hat is from eps, instead of how long it is
      flow=None,  # file of ddpm-jax moments --flow: for the solver "dpm_v3" and the grid "gits"
      skip=0.0,  # share of the reverse process to skip at its noisy end (IDDPM figure 4)
      costs=None,  # file of ddpm-jax moments --costs: for the grid "dp_vb"
      clip="x0",  # "x0", "dynamic" or "none"
      keep_eps=False,  # leave eps as predicted when x0 is clipped (Analytic-DPM's DDIM)
      cap_pixels=None,  # at most so many grey levels of noise ...
      cap_steps=1,  # ... in so many steps before the last one
      rounding="truncate",  # of pixels to 8 bits: "truncate" (OpenAI) or "round" (DDIM)
      batch_size=64,
      guidance=dict(
        kind=None,  # "classifier", "classifier_free" or "autoguidance"
        scale=1.0,  # 1 is p(x | y) by a perfect classifier, or the network as it is
        interval=None,  # (low, high): guide at levels low <= n <= high alone
        form=None,  # of a classifier: "mean" (ADM algorithm 1), "score" (2: DDIM, solvers); None: "mean" where eta = 1
        model=None,  # the run of the noisy classifier, or of the weaker network
        ema=None,  # which of its averages: a rate, or "raw"; None: the slowest
        step=None,  # which of its checkpoints; None: the latest
      ),
    )
  )
  config.evaluation = ConfigDict(
    dict(
      grid="full",  # of the chain whose bits/dim is measured
      steps=None,
      covariance=None,  # None: the one that samples; assigning sampling.covariance resets this to None
      last_row="chain",  # decoder variance: that of the chain (OpenAI), or of the "full_chain" (Analytic-DPM)
      batch_size=64,
    )
  )
  config.mesh = ConfigDict(dict(data=-1, fsdp=1))
  return config.lock()


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
  except (SyntaxError, ImportError) as error:
    raise UserError(f"Config file {path} cannot be read ({error}): correct it, or choose another.") from error
  if not hasattr(module, "get_config"):
    raise UserError(f"Config file {path} has no function get_config(variant) that returns a config.")
  config = module.get_config(variant)
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
  for section, fields in values.items():
    if not isinstance(fields, dict):
      config[section] = fields
      continue
    if section in OPEN_SECTIONS:  # arguments that a default has are not those of another name
      config[section] = ConfigDict()
    with config[section].unlocked(), config[section].ignore_type():
      config[section].update({k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
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
  kind = NULLABLE.get(path, type(old))
  may_be_none = path in NULLABLE or old is None
  if kind is str and not isinstance(value, (str, bool)) and (value is not None or not (may_be_none or text == "None")):
    value = text  # sampling.clip=none, sampling.grid=250, sampling.grid=10,15,20
  if kind is float and type(value) is int:
    value = float(value)
  kinds = kind if isinstance(kind, tuple) else (kind,)
  if not (value is None and may_be_none) and type(value) not in kinds and kind is not type(None):
    like = "or None" if path in NULLABLE else f"like {old!r}"
    wanted = " or ".join(map(kind_name, kinds))
    raise UserError(f"--config.{path}={text} should be {wanted} {like}, not {kind_name(type(value))}.")
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
  """Whether a grid says itself how many steps it has: "full", "250", "ddim50", "10,15,20"."""
  return re.fullmatch(r"full|ddim\d+|[\d,]+", grid) is not None


def check_sampling(config: ConfigDict, assignments: Sequence[str]) -> None:
  """Raises UserError if one of the `assignments` that made `config` changes nothing in what it draws."""
  sampling = config.sampling
  assigned = {assignment.partition("=")[0] for assignment in assignments}
  if "sampling.eta" in assigned and sampling.eta and sampling.solver != "gaussian":
    raise UserError(f'sampling.eta={sampling.eta:g} means nothing to the solver "{sampling.solver}": leave it out.')
  guiding = sorted(name for name in assigned if name.startswith("sampling.guidance."))
  if guiding and sampling.guidance.kind is None and "sampling.guidance.kind" not in guiding:
    raise UserError(
      f"--config.{guiding[0]} means nothing without guidance: add --config.sampling.guidance.kind=classifier, "
      "classifier_free or autoguidance."
    )


def nearest(name: str, known: Any) -> str:
  """The remedy for an unknown name: "did you mean 'x'?" or the list of what there is."""
  near = difflib.get_close_matches(name, known, n=1)
  return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(sorted(known))}."


def _sections(node: ConfigDict) -> list[str]:
  return [key for key, value in node.items() if isinstance(value, ConfigDict)]


def value_of(text: str) -> Any:
  """The value that a text on the command line stands for: a Python literal, or else the text itself."""
  lowered = {"true": True, "false": False, "none": None}
  if text.lower() in lowered:
    return lowered[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def kind_name(kind: Any) -> str:
  """A type, for people who do not program."""
  names = {int: "an integer", float: "a number", str: "a text", bool: "True or False", tuple: "a tuple", type(None): "None"}
  return names.get(kind, f"a {getattr(kind, '__name__', kind)}")
