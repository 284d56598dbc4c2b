"""Every field of a config, declared once: its default, its type, what it allows, and what it means.

`config.default` makes a config of this table, `config.override` reads types from it, and `check` compares values with it.
Arguments of a schedule, network, loss, or time sampler are declared by what `name` names, and only limited here.
"""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

from ddpm_jax.errors import UserError
from ddpm_jax.sizes import LARGEST


@dataclasses.dataclass(frozen=True)
class Field:
  """One field.

  Attributes:
    default: its value unless a config says otherwise.
    about: what it means.
    kind: its type, or several. None: that of the default.
    least, most: the range of a number, or of every number of a tuple, both ends included.
    above, below: the range of a number, both ends excluded.
    longest: how many entries a tuple may have.
    choices: all values that are allowed beside None. Empty: any.
  """

  default: Any
  about: str
  kind: type | tuple[type, ...] | None = None
  least: float | None = None
  most: float | None = None
  above: float | None = None
  below: float | None = None
  longest: int | None = None
  choices: tuple = ()

  @property
  def types(self) -> tuple[type, ...]:
    """The types of its values, apart from None."""
    if isinstance(self.kind, tuple):
      return self.kind
    return (self.kind or type(self.default),)

  @property
  def nullable(self) -> bool:
    """Whether None is allowed: where it is the default."""
    return self.default is None

  def check(self, path: str, value: Any) -> None:
    """Raises UserError unless `value` may stand in the field `path`."""
    if value is None and self.nullable:
      return
    if not any(_is(value, kind) for kind in self.types):
      like = ", such as (1, 2)" if not self.nullable and set(self.types) <= {tuple, list} else ""
      raise UserError(f"{path} = {value!r} should be {self.kinds}{like}{' or None' if self.nullable else ''}.")
    if self.choices and value not in self.choices:
      raise UserError(f"{path} = {value!r} should be one of {', '.join(map(str, self.choices))}.")
    if self.longest is not None and isinstance(value, (tuple, list)) and len(value) > self.longest:
      raise UserError(f"{path} has {len(value):,} entries and should have at most {self.longest}.")
    for number in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(number, numbers.Real) and not self._allows(number):
        raise UserError(f"{path} = {value!r} should be {self.range}.")

  @property
  def kinds(self) -> str:
    """Its types in plain words."""
    return " or ".join(map(kind_name, self.types))

  def _allows(self, value: float) -> bool:
    return (
      value == value
      and (self.least is None or value >= self.least)
      and (self.most is None or value <= self.most)
      and (self.above is None or value > self.above)
      and (self.below is None or value < self.below)
    )

  @property
  def range(self) -> str:
    """What a number may be, in words."""
    words = [
      self.least is not None and f"at least {self.least:,}",
      self.above is not None and f"above {self.above:,}",
      self.most is not None and f"at most {self.most:,}",
      self.below is not None and f"below {self.below:,}",
    ]
    return " and ".join(word for word in words if word) or "a number"


def _is(value: Any, kind: type) -> bool:
  numeric = {int: numbers.Integral, float: numbers.Real}
  if kind in numeric:
    return isinstance(value, numeric[kind]) and not isinstance(value, bool)
  return isinstance(value, kind)


def kind_name(kind: Any) -> str:
  """A type in plain words."""
  names = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "True or False",
    tuple: "a tuple",
    list: "a list",
    type(None): "None",
  }
  return names.get(kind, f"a {getattr(kind, '__name__', kind)}")


_GRIDS = '"full"; "uniform", "log_snr", ... with steps (see build.GRIDS); or OpenAI\'s sections: "250", "ddim50", "10,15,20"'
_COVARIANCES = "a name of build.COVARIANCES, such as posterior, marginal, learned_range, optimal"

FIELDS: dict[str, Field] = {
  "seed": Field(0, "root of all randomness of a training run", least=0, most=2**32 - 1),
  # ---------------------------------------------------------------- data
  "data.name": Field("digits", 'digits, a TFDS data set ("mnist", "cifar10:3.0.2"), or a folder or zip ("./photos")'),
  "data.data_dir": Field(
    None, "folder of prepared data sets; None: $DDPM_JAX_DATA, $TFDS_DATA_DIR or ~/tensorflow_datasets", str
  ),
  "data.train_split": Field("train", "the images to train on"),
  "data.test_split": Field("test", "the images to evaluate on"),
  "data.image_size": Field(
    None, "N or (height, width); None: as stored. A run records what it found", (int, tuple), least=1, most=LARGEST
  ),
  "data.channels": Field(
    None, "1 grey, 2 grey and alpha, 3 RGB, 4 RGBA, or those of .npy arrays; None: by the images", int, least=1, most=1024
  ),
  "data.num_classes": Field(None, "number of classes; None: by the images", int, least=1, most=1_000_000),
  "data.class_names": Field(None, "their names; None: by the images", tuple),
  "data.crop": Field("adm", "how images of another size are fitted: adm, random, lsun, ddim, celeba"),
  "data.background": Field("white", "the color that transparent pixels are laid over"),
  "data.value_range": Field(
    None, "(low, high) of .npy arrays and 16-bit images, which become 0 and 255; None: the type's range", tuple
  ),
  "data.labels": Field("auto", "labels of folders: from a table in the folder, else from the names of folders"),
  "data.holdout": Field(0.0, "share of a folder's images held out as its test split, if it has none", least=0, below=1),
  "data.low_res_size": Field(
    None, "super-resolution: the network is also given the image reduced to this size", (int, tuple), least=1, most=LARGEST
  ),
  "data.corrupt": Field(
    "error", "what to do with images that cannot be decoded: skip leaves them out", choices=("error", "skip")
  ),
  "data.flip": Field(False, "mirror half of the training images"),
  # ---------------------------------------------------------------- process, network, loss
  "schedule.name": Field("linear", "the noise schedule"),
  "schedule.T": Field(1000, "the number of noise levels", least=2, most=1_000_000),
  "network.name": Field("unet_ddpm", "the network; its channels and classes follow from data and prediction"),
  "prediction.mean": Field("eps", "what the network predicts: eps, x0, v, x_prev; edm, vp, ve, consistency"),
  "prediction.second": Field(None, "the second head: range, log_var, residual, second_moment, hessian, log_residual", str),
  "prediction.sigma_data": Field(0.5, "of edm and consistency: standard deviation of the images", above=0),
  "prediction.time_scale": Field(1.0, "the network is told time_scale (n - time_shift) of level n", above=0),
  "prediction.time_shift": Field(1, "see time_scale", least=0, most=1),
  "loss.name": Field("simple", "the training loss"),
  "time_sampler.name": Field("uniform", "which levels a batch trains on"),
  # ---------------------------------------------------------------- training
  "optimizer.learning_rate": Field(2e-4, "peak learning rate"),
  "optimizer.warmup_steps": Field(0, "steps of linear warm-up", least=0),
  "optimizer.decay": Field("constant", "constant, or linear or cosine decay to 0 at total_steps"),
  "optimizer.b1": Field(0.9, "Adam's decay of the first moment"),
  "optimizer.b2": Field(0.999, "Adam's decay of the second moment"),
  "optimizer.eps": Field(1e-8, "Adam's epsilon"),
  "optimizer.weight_decay": Field(0.0, "AdamW's weight decay"),
  "optimizer.clip_norm": Field(None, "largest global norm of the gradient; losses are means over pixels", float),
  "ema.rates": Field((0.9999,), "decay rates of the averages; sampling uses the slowest"),
  "ema.widths": Field(
    (), "two relative widths of averages, as (0.05, 0.1): with train.keep_every, --ema 0.07 reconstructs any width", above=0
  ),
  "ema.warmup": Field(True, "start the averages faster than their rates"),
  "train.total_steps": Field(0, "number of batches; every run has to choose it", least=0, most=10**10),
  "train.batch_size": Field(128, "global batch size", least=1, most=10**7),
  "train.per_device_batch": Field(
    None, "largest microbatch per device; gradients are accumulated over the rest", int, least=1
  ),
  "train.class_conditional": Field(
    False, 'the network is told the label; "auto": if the images have classes', (bool, str), choices=(True, False, "auto")
  ),
  "train.backbone": Field(None, "a finished run that is frozen; only a second head is trained on it (NPR-DPM, SN-DPM)", str),
  "train.init": Field(None, "a run or published weights to start from, instead of random weights (fine-tuning)", str),
  "train.label_dropout": Field(
    0.0, "share of labels replaced by the null label, for classifier-free guidance", least=0, below=1
  ),
  "train.low_res_noise": Field(
    0.0, "standard deviation of noise on the low-resolution images, for cascades", least=0, most=10
  ),
  "train.log_every": Field(100, "steps between rows of metrics", least=1),
  "train.preview_every": Field(0, "steps between preview grids; 0: only at the end", least=0),
  "train.preview_images": Field(16, "images of a preview", least=1, most=10_000),
  "train.preview_steps": Field(50, "most steps of a preview; DDIM replaces a sampler that takes more", least=1),
  "train.checkpoint_every": Field(1000, "steps between checkpoints; an interrupted run loses at most this many", least=1),
  "train.keep": Field(2, "newest checkpoints kept, besides the newest two of all", least=1),
  "train.keep_every": Field(None, "also keep every checkpoint whose step is a multiple of this", int, least=1),
  "train.max_skipped": Field(20, "updates in a row that may be skipped for NaN before the run stops", least=1),
  # ---------------------------------------------------------------- sampling
  "sampling.solver": Field("gaussian", "gaussian (DDPM, DDIM, Analytic-DPM, ...) or a name of build.SOLVERS"),
  "sampling.grid": Field("full", _GRIDS),
  "sampling.steps": Field(None, "number of steps of a named grid", int, least=1, most=10**6),
  "sampling.eta": Field(1.0, "0 is DDIM, 1 is DDPM"),
  "sampling.covariance": Field(None, f"{_COVARIANCES}; None: by the network", str),
  "sampling.moments": Field(None, 'file of ddpm-jax moments or of Analytic-DPM\'s authors, for "optimal"', str),
  "sampling.jacobian.probes": Field(
    4,
    "products with the Jacobian per step, for the covariance jacobian; 0: one per pixel, which is exact",
    least=0,
    most=10**6,
  ),
  "sampling.jacobian.products": Field(
    8, "products with the Jacobian per step, for the covariance full", least=1, most=10**6
  ),
  "sampling.jacobian.floor": Field(
    0.33, "least variance, as a share of what the moments give for the level", least=0, most=1
  ),
  "sampling.residual": Field(False, "use how far eps_hat is from eps, instead of how long it is"),
  "sampling.flow": Field(None, 'file of ddpm-jax moments --flow: for the solver "dpm_v3" and the grid "gits"', str),
  "sampling.skip": Field(0.0, "share of the reverse process to skip at its noisy end (IDDPM figure 4)", least=0, below=1),
  "sampling.costs": Field(None, 'file of ddpm-jax moments --costs, for the grid "dp_vb"', str),
  "sampling.clip": Field(
    "x0", "clip x0 at the range of images, by Imagen's dynamic threshold, or not", choices=("x0", "dynamic", "none")
  ),
  "sampling.clip_range": Field(1.0, "with clip = x0: x0 stays within this distance of 0", above=0),
  "sampling.clip_quantile": Field(0.995, "with clip = dynamic: the threshold is this quantile of |x0| ...", above=0, most=1),
  "sampling.clip_max": Field(None, "... but at least 1 and at most this", float, least=1),
  "sampling.keep_eps": Field(False, "leave eps as predicted when x0 is clipped (Analytic-DPM's DDIM)"),
  "sampling.cap_pixels": Field(None, "at most this many grey levels of noise ...", float, above=0, most=1000),
  "sampling.cap_steps": Field(1, "... in this many steps before the last one", least=1),
  "sampling.churn": Field(
    0.0, "noise that heun adds, in all steps together (EDM's S_churn); needs dense levels, such as T = 1000", least=0
  ),
  "sampling.churn_min": Field(0.0, "smallest sigma / alpha at which it is added (S_tmin)", least=0),
  "sampling.churn_max": Field(None, "largest sigma / alpha at which it is added (S_tmax); None: any", float, least=0),
  "sampling.churn_noise": Field(
    1.0, "standard deviation of this noise, relative to what the levels require (S_noise)", above=0, most=2
  ),
  "sampling.rounding": Field("truncate", "of pixels to 8 bits: as OpenAI, or as DDIM", choices=("truncate", "round")),
  "sampling.batch_size": Field(64, "images drawn at a time, over all devices", least=1, most=10**6),
  "sampling.guidance.kind": Field(
    None, "what guides", str, choices=("classifier", "classifier_free", "autoguidance", "perturbed_attention")
  ),
  "sampling.guidance.scale": Field(
    1.0, "1 is p(x | y) by a perfect classifier, or the network as it is", least=-10_000, most=10_000
  ),
  "sampling.guidance.interval": Field(None, "(low, high): guide at levels low <= n <= high only", tuple),
  "sampling.guidance.sigma_interval": Field(
    None, "the same in sigma / alpha, as papers quote it: (0.28, 5.42)", tuple, least=0
  ),
  "sampling.guidance.rule": Field(
    "linear",
    "how strong and weak predictions combine: linear, apg (projected), cfg++, rescaled (in standard deviation)",
    choices=("linear", "apg", "cfg++", "rescaled"),
  ),
  "sampling.guidance.parallel": Field(0.0, "of apg: factor of the part of the difference that is parallel to x0", least=0),
  "sampling.guidance.norm": Field(None, "of apg: largest norm of the difference of an image", float, above=0),
  "sampling.guidance.rescale": Field(0.7, "of rescaled: share of the way to the strong prediction's", least=0, most=1),
  "sampling.guidance.perturbed": Field(0.0, "of classifier_free: scale of perturbed attention beside it", least=0),
  "sampling.guidance.fade": Field(0.0, "of perturbed: its scale falls by this per thousandth of the chain", least=0),
  "sampling.guidance.blocks": Field(("mid",), "of perturbed_attention: parts of the names of the attention layers"),
  "sampling.guidance.form": Field(
    None, 'of a classifier: ADM\'s algorithm 1 or 2; None: "mean" where eta = 1', str, choices=("mean", "score")
  ),
  "sampling.guidance.model": Field(None, "the run of the noisy classifier, or of the weaker network", str),
  "sampling.guidance.ema": Field(None, "which of its averages: a rate, or raw; None: the slowest", str),
  "sampling.guidance.step": Field(None, "which of its checkpoints; None: the latest", int, least=0),
  # ---------------------------------------------------------------- evaluation, devices
  "evaluation.grid": Field("full", f"of the chain whose bits/dim is measured: {_GRIDS}"),
  "evaluation.steps": Field(None, "number of steps of a named grid", int, least=1, most=10**6),
  "evaluation.covariance": Field(None, f"{_COVARIANCES}; None: the one that samples", str),
  "evaluation.last_row": Field(
    "chain", "decoder variance: the chain's (OpenAI), or the full chain's (Analytic-DPM)", choices=("chain", "full_chain")
  ),
  "evaluation.batch_size": Field(64, "images measured at a time, over all devices", least=1, most=10**6),
  "mesh.data": Field(-1, "devices that share a batch; -1: all that are left"),
  "mesh.fsdp": Field(1, "devices that share the parameters"),
}

# Limits of arguments in open sections, beside what their own annotations say. Sizes are checked before they are believed.
LIMITS: dict[str, Field] = {
  "network.channels": Field(1, "width of the first level", least=1, most=65_536),
  "network.channel_mult": Field((1,), "width of each level, as a multiple", (tuple, list), above=0, longest=20),
  "network.num_res_blocks": Field(1, "residual blocks per level", least=1, most=100),
  "network.dropout": Field(0.0, "share of activations that is dropped", least=0, below=1),
  "network.groups": Field(1, "groups of GroupNorm", least=1, most=65_536),
  "network.block_size": Field(1, "pixels of a block's side; 1: no blocks", least=1, most=8192),
  "network.num_heads": Field(1, "attention heads", least=1, most=65_536),
  "network.num_heads_upsample": Field(None, "attention heads on the way up", int, least=1, most=65_536),
  "network.head_channels": Field(None, "channels per attention head", int, least=1, most=65_536),
  "network.out_channels": Field(1, "outputs per pixel", least=1, most=1_000_000),
  "network.num_classes": Field(None, "classes", int, least=1, most=1_000_000),
  "loss.weight": Field(1.0, "weight of the bound", above=0),
  "loss.reduce": Field("mean", "how the squares of an image are reduced", choices=("mean", "sum")),
  "loss.scale": Field(1.0, "factor of the bound", above=0),
}


def check(config: Mapping[str, Any]) -> None:
  """Raises UserError for the first value of a config that its field does not allow."""
  for path, field in (FIELDS | LIMITS).items():
    node = config
    *sections, name = path.split(".")
    for section in sections:
      node = node[section]
    if name in node:
      field.check(path, node[name])
    if path == "network.name" and "backbone" in node:
      _check_backbone(node["backbone"])


def _check_backbone(network: Mapping[str, Any]) -> None:
  for path, field in LIMITS.items():
    section, name = path.split(".")
    if section == "network" and name in network:
      field.check(f"network.backbone.{name}", network[name])
