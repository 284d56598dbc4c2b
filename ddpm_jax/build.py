"""From a config to objects: the only module in the package that reads a config.

Everything here is small and checked before anything is traced; config.py says what the fields mean.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import models
from ddpm_jax.config import default, nearest
from ddpm_jax.diffusion import (
  covariance,
  dpm_solver,
  guidance,
  losses,
  prediction,
  time_sampling,
  trajectory,
  transforms,
)
from ddpm_jax.diffusion import grid as grids
from ddpm_jax.diffusion import schedule as schedules
from ddpm_jax.diffusion import steps as tables
from ddpm_jax.diffusion.heun import heun
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.samplers import GaussianSampler
from ddpm_jax.diffusion.sde import VpSde, euler_maruyama
from ddpm_jax.diffusion.solvers import Solver
from ddpm_jax.diffusion.unipc import unipc
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import measurements
from ddpm_jax.models.patches import Patches

# ---------------------------------------------------------------- the process


def schedule(config: ConfigDict) -> schedules.Schedule:
  """The noise levels of `config.schedule`."""
  T = config.schedule.get("T", 1000)
  if not isinstance(T, int) or T < 2:
    raise UserError(f"schedule.T = {T}: a chain needs at least two levels, 1000 in most papers.")
  return _make(schedules.SCHEDULES, config.schedule, "schedule")


def chain(config: ConfigDict) -> tables.GaussianSteps:
  """The rows of the full ancestral chain T ... 0, which losses and bounds read."""
  levels = schedule(config)
  return tables.gaussian(levels, grids.full(levels.T))


def grid(config: ConfigDict, section: ConfigDict) -> np.ndarray:
  """The levels that `section` (sampling, evaluation) visits: a named grid, or OpenAI's section strings."""
  levels, name, K = schedule(config), section.grid, section.steps
  if name == "full":
    return grids.full(levels.T)
  if name not in (*GRIDS, *BEST_GRIDS):
    return grids.sections(levels.T, name)
  if K is None:
    raise UserError(f'The grid "{name}" needs a number of steps: set sampling.steps.')
  if name in BEST_GRIDS:
    return BEST_GRIDS[name](config, levels, K)
  return GRIDS[name](levels, K)


GRIDS: dict[str, Callable[[schedules.Schedule, int], np.ndarray]] = {
  "uniform": lambda levels, K: grids.uniform(levels.T, K),
  "ddim": lambda levels, K: grids.ddim_uniform(levels.T, K),
  "quadratic": lambda levels, K: grids.quadratic(levels.T, K),
  "power2": lambda levels, K: grids.power(levels.T, K, 2),
  "power3": lambda levels, K: grids.power(levels.T, K, 3),
  "log_snr": grids.log_snr,
  "karras": grids.karras,
}


def moments(config: ConfigDict) -> np.ndarray | None:
  """Gamma [T+1] of the file sampling.moments."""
  section = config.sampling
  if section.moments is None:
    return None
  return measurements.gamma(section.moments, schedule(config), residual=section.residual)


def _dp_seg(config: ConfigDict, levels: schedules.Schedule, K: int) -> np.ndarray:
  gamma = moments(config)
  if gamma is None:
    raise UserError('The grid "dp_seg" follows from moments: measure them with ddpm-jax moments, set sampling.moments.')
  return trajectory.dp_seg(levels, gamma, K)


def _dp_vb(config: ConfigDict, levels: schedules.Schedule, K: int) -> np.ndarray:
  if config.sampling.costs is None:
    raise UserError('The grid "dp_vb" follows from costs: measure them with ddpm-jax moments --costs, set sampling.costs.')
  return trajectory.dp_vb(measurements.load_costs(config.sampling.costs, levels), K)


BEST_GRIDS = {"dp_seg": _dp_seg, "dp_vb": _dp_vb}  # by dynamic programming


# ---------------------------------------------------------------- the network


def model(config: ConfigDict, channels: int, num_classes: int | None) -> nn.Module:
  """The Flax module for images of `channels` channels: the network section plus what data and prediction imply."""
  fields = config.network.to_dict()
  unet = fields.get("backbone", fields)
  block_size = unet.pop("block_size", 1)
  if num_classes is None and "label" in conditions(config):
    raise UserError(f"This network needs labels, but data set {config.data.name!r} has none.")
  heads = 2 if config.prediction.second else 1
  out = num_classes if is_classifier(config) else channels * heads * block_size**2
  if unet is fields and fields.setdefault("out_channels", out) != out:
    raise UserError(
      f"network.out_channels is {fields['out_channels']}, but {channels} image channels with "
      f"prediction.second = {config.prediction.second!r} need {out}. Leave the field out."
    )
  if config.data.low_res_size is not None:
    if unet["name"] != "unet_adm":
      raise UserError('data.low_res_size is for super-resolution, which only network.name = "unet_adm" can do.')
    unet["low_res"] = True
  if config.train.class_conditional:
    unet.update(num_classes=num_classes, null_label=config.train.label_dropout > 0)
  network = models.make(fields.pop("name"), **fields)
  return network if block_size == 1 else Patches(network, block_size)


def is_classifier(config: ConfigDict) -> bool:
  """Whether the run is that of a noisy classifier, for guidance."""
  return config.loss.name == "classifier"


def conditions(config: ConfigDict) -> tuple[str, ...]:
  """What a batch has to hold beside its images."""
  labels = config.train.class_conditional or is_classifier(config)
  return ("label",) * labels + ("low_res",) * (config.data.low_res_size is not None)


def on_backbone(config: ConfigDict, of: ConfigDict) -> ConfigDict:
  """The config of a second head on a network that was trained with the config `of`.

  The head has data, levels, network and prediction of its backbone; of the data its config may change details.

  Raises:
    UserError: if the config has no second head of NPR-DPM or SN-DPM, or does not say how to train one.
  """
  if config.prediction.second not in OPTIMAL_HEADS or config.loss.name != "second_head":
    raise UserError(
      f"train.backbone is for a second head: set prediction.second to {' or '.join(map(repr, OPTIMAL_HEADS))} "
      'and loss.name to "second_head", as the configs npr and sn do.'
    )
  second, changed, usual = config.prediction.second, config.data.to_dict(), default().data
  backbone = of.network.to_dict()
  heads = 2 if of.prediction.second else 1
  backbone["out_channels"] = of.data.channels * heads * backbone.get("block_size", 1) ** 2
  head = dict(name="two_headed", initialization=HEAD_INITIALIZATIONS[backbone["name"]]) | config.network.to_dict()
  with config.unlocked(), config.ignore_type():
    config.data = {k: v if v != usual[k] else of.data[k] for k, v in changed.items()}
    config.schedule = of.schedule.to_dict()
    config.network = head | {"backbone": backbone}
    config.prediction = of.prediction.to_dict() | {"second": second}
    config.train.class_conditional, config.train.label_dropout = of.train.class_conditional, of.train.label_dropout
  return config


HEAD_INITIALIZATIONS = {"unet_ddpm": "torch", "unet_adm": "openai", "ncsnpp": "ho"}  # as Extended-Analytic-DPM's heads


@dataclasses.dataclass(frozen=True)
class Apply:
  """A Flax module as `apply(params, x, time, cond)`; equal modules compare equal, so that nothing is traced twice."""

  module: nn.Module

  def __call__(self, params: Any, x: jax.Array, time: jax.Array, cond: Any = None) -> jax.Array:
    return self.module.apply({"params": params}, x, time, cond)


def initial_params(module: nn.Module, key: jax.Array, image_size: int, channels: int) -> Any:
  """Random weights, with one compilation."""
  x = jnp.zeros((1, image_size, image_size, channels))
  return jax.jit(module.init)(key, x, jnp.zeros(1), {"label": jnp.zeros(1, jnp.int32), "low_res": x})["params"]


def check_weights(config: ConfigDict, module: nn.Module, params: Any) -> None:
  """Raises UserError, naming the first difference, unless `params` are weights of this network."""
  data = config.data
  wanted = jax.eval_shape(lambda: initial_params(module, jax.random.key(0), data.image_size, data.channels))
  name_of = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  wanted, found = ({name_of(path): x.shape for path, x in jax.tree.leaves_with_path(tree)} for tree in (wanted, params))
  for name in [*wanted, *found]:
    if wanted.get(name) != found.get(name):
      raise UserError(
        f"The weights are of another network: {name} is {found.get(name, 'missing')} there and "
        f"{wanted.get(name, 'unknown')} in network {config.network.name!r}. Leave the network as the checkpoint has it."
      )


def network(config: ConfigDict, module: nn.Module, params: Any) -> prediction.Network | guidance.Classifier:
  """The network with its weights: a denoiser, or a noisy classifier."""
  return _network(config)(params, Apply(module))


def training_network(config: ConfigDict, module: nn.Module) -> Callable[[Any, jax.Array], Any]:
  """(params, dropout key) -> the network in training mode."""
  make = _network(config)

  def network_of(params, key):
    def apply(params, x, time, cond=None):
      return module.apply({"params": params}, x, time, cond, train=True, rngs={"dropout": key})

    return make(params, apply)

  return network_of


def _network(config: ConfigDict) -> Callable[[Any, Callable], Any]:
  """(params, apply) -> the network."""
  if is_classifier(config):
    return functools.partial(guidance.Classifier, time=time_scale(config))
  return functools.partial(prediction.Network, parameterization=parameterization(config), time=time_scale(config))


def time_scale(config: ConfigDict) -> prediction.TimeScale:
  """What the network is told of a level."""
  return prediction.TimeScale(config.prediction.time_scale, config.prediction.time_shift)


def parameterization(config: ConfigDict, steps: tables.GaussianSteps | None = None) -> Any:
  """What the network's output means; x_prev is tied to the chain `steps` (default: the full one)."""
  mean, second = config.prediction.mean, config.prediction.second
  if mean == "x_prev":
    heads = prediction.x_prev(chain(config) if steps is None else steps)
  elif mean in prediction.MEANS:
    heads = prediction.MEANS[mean]()
  else:
    raise UserError(f"prediction.mean {mean!r} is unknown; {nearest(mean, [*prediction.MEANS, 'x_prev'])}")
  if second is None:
    return heads
  if second not in prediction.SECOND_HEADS:
    raise UserError(f"prediction.second {second!r} is unknown; {nearest(second, prediction.SECOND_HEADS)}")
  return prediction.TwoHeads(heads, second)


# ---------------------------------------------------------------- training


def loss(config: ConfigDict) -> Callable:
  """The training loss of `config.loss` on the full chain."""
  fields = dict(config.loss)
  if fields["name"] in ("vlb", "hybrid"):
    which = fields.pop("covariance", None)
    fields["kernel"] = ReverseKernel(covariance_of(config, which, eta=1.0))
  if fields["name"] == "hybrid" and config.prediction.second is None:
    raise UserError('loss.name = "hybrid" trains a variance: set prediction.second = "range", or use "simple".')
  made = _make(LOSSES, fields, "loss", steps=chain(config))
  if not config.train.low_res_noise:
    return made
  if config.data.low_res_size is None:
    raise UserError("train.low_res_noise is for super-resolution: set data.low_res_size, or leave it out.")
  return losses.NoisyLowRes(made, config.train.low_res_noise)


LOSSES: dict[str, Callable] = {
  "simple": losses.Simple,
  "vlb": losses.Vlb,
  "hybrid": losses.Hybrid,
  "second_head": losses.SecondHead,
  "classifier": losses.NoisyClassifier,
}


def put_on(backbone: Any, params: Any) -> Any:
  """The parameters of a two-headed network, with the weights of this backbone (both inside blocks of pixels, or neither)."""
  if "backbone" not in params:
    return {"network": put_on(backbone["network"], params["network"])}
  return params | {"backbone": backbone}


def is_of_head(path: str) -> bool:
  """Whether a parameter belongs to the second head, and so learns on a frozen backbone."""
  return path.removeprefix("network/").startswith("head/")


def time_sampler(config: ConfigDict) -> Any:
  """Which levels a batch trains on."""
  return _make(time_sampling.TIME_SAMPLERS, config.time_sampler, "time_sampler", T=schedule(config).T)


# ---------------------------------------------------------------- sampling


def sampler(config: ConfigDict, guide: Any = None, strength: float = 1.0) -> Any:
  """The sampler of `config.sampling`.

  Args:
    guide: the classifier, if one guides the mean of steps.
    strength: below 1, only the steps from that part of the way up to noise are left.
  """
  levels, section = schedule(config), config.sampling
  visited = grids.below(grid(config, section), strength)
  if section.solver in SOLVERS:
    return Solver(SOLVERS[section.solver](levels, visited))
  if section.solver in EULER:
    if section.keep_eps and section.clip != "none":
      raise UserError(f'sampling.solver = "{section.solver}" needs an eps that agrees with x0: set sampling.keep_eps=False.')
    return GaussianSampler(EULER[section.solver](levels, visited))
  if section.solver != "gaussian":
    known = ["gaussian", *SOLVERS, *EULER]
    raise UserError(f"sampling.solver {section.solver!r} is unknown; {nearest(section.solver, known)}")
  steps = tables.gaussian(levels, visited, section.eta)
  which = covariance_of(config, section.covariance, section.eta)
  if section.cap_pixels is not None:
    which = covariance.CapLast(which, section.cap_steps, section.cap_pixels)
  kernel = ReverseKernel(which)
  if section.guidance.kind == "classifier" and _form(section) == "mean":
    kernel = guidance.ShiftMean(kernel, guide, **_strength(section.guidance))
  return GaussianSampler(steps, kernel)


SOLVERS: dict[str, Callable] = {
  "dpm++1": functools.partial(dpm_solver.multistep, order=1),
  "dpm++2m": functools.partial(dpm_solver.multistep, order=2),
  "dpm++3m": functools.partial(dpm_solver.multistep, order=3),
  "dpm++2s": dpm_solver.singlestep,
  "dpm++2m_sde": functools.partial(dpm_solver.multistep, order=2, sde=True),
  "heun": heun,
  "unipc2": functools.partial(unipc, order=2),
  "unipc3": functools.partial(unipc, order=3),
  "unipc2_bh1": functools.partial(unipc, order=2, variant="bh1"),
  "unipc3_bh1": functools.partial(unipc, order=3, variant="bh1"),
}


EULER: dict[str, Callable] = {  # of the SDE that the levels are points of
  "euler_maruyama": euler_maruyama,
  "euler_ode": functools.partial(euler_maruyama, ode=True),
}


def denoiser(config: ConfigDict, net: Any) -> Any:
  """`net`, with the moments of sampling.moments unless a head knows better, clipped as `config.sampling` says."""
  gamma = moments(config)
  if gamma is not None and config.prediction.second not in OPTIMAL_HEADS:
    net = transforms.AnalyticMoments(net, jnp.asarray(gamma, jnp.float32))
  clip, keep_eps = config.sampling.clip, config.sampling.keep_eps
  match clip:
    case "x0":
      return transforms.ClipX0(net, keep_eps=keep_eps)
    case "dynamic":
      return transforms.DynamicThreshold(net, keep_eps=keep_eps)
    case "none":
      return net
  raise UserError(f'sampling.clip must be "x0", "dynamic" or "none", not {clip!r}.')


def sde(config: ConfigDict) -> VpSde:
  """The SDE of config.schedule, whose networks know continuous time."""
  fields = config.schedule.to_dict()
  if fields.pop("name") != "vp_sde":
    raise UserError(f"The ODE of a network needs the schedule vp_sde, but this one was trained on {config.schedule.name!r}.")
  return VpSde(**{"T": 1000} | fields)


# ---------------------------------------------------------------- guidance


def guided(config: ConfigDict, net: Any, guide: Any = None) -> Any:
  """The denoiser of `net`, guided as `config.sampling.guidance` says.

  Two beliefs are mixed before clipping, a classifier shifts what was clipped, as in ADM.

  Args:
    guide: the classifier, or the weaker network; one that passes `check_guide`.
  """
  section = config.sampling.guidance
  match section.kind:
    case None:
      return denoiser(config, net)
    case "classifier_free":
      if not (config.train.class_conditional and config.train.label_dropout):
        raise UserError(
          "Classifier-free guidance needs a network that knows the null label: train one with "
          "train.class_conditional=True and train.label_dropout=0.1."
        )
      null = {"label": np.int32(config.data.num_classes)}
      return denoiser(config, guidance.ClassifierFree(net, null=null, **_strength(section)))
    case "autoguidance":
      return denoiser(config, guidance.Autoguidance(net, guide, **_strength(section)))
    case "classifier" if _form(config.sampling) == "mean":
      return denoiser(config, net)
    case "classifier":
      return guidance.ClassifierScore(denoiser(config, net), guide, **_strength(section))
  raise UserError(
    f'sampling.guidance.kind must be "classifier", "classifier_free", "autoguidance" or None, not {section.kind!r}.'
  )


def check_guide(config: ConfigDict, guide: ConfigDict) -> None:
  """Raises UserError unless a run with the config `guide` can guide one of `config`."""
  kind, model = config.sampling.guidance.kind, config.sampling.guidance.model
  if is_classifier(guide) != (kind == "classifier"):
    raise UserError(f"{model} is {'' if is_classifier(guide) else 'not '}a noisy classifier: no guide of the kind {kind!r}.")
  if not np.array_equal(schedule(config).alpha_bar, schedule(guide).alpha_bar):
    raise UserError(
      f"{model} was trained on the schedule {guide.schedule.to_dict()}, but this network on {config.schedule.to_dict()}: "
      "the same level is other noise to them. Train one of them on the other's schedule."
    )
  for field in ("image_size", "channels", "num_classes"):
    if guide.data[field] != config.data[field]:
      raise UserError(
        f"{model} was trained with data.{field} = {guide.data[field]}, but this network with {config.data[field]}. "
        "Both have to see the same images."
      )


def _strength(section: ConfigDict) -> dict[str, Any]:
  """Scale and interval, as leaves."""
  low, high = guidance.EVERYWHERE if section.interval is None else section.interval
  if low > high:
    raise UserError(f"sampling.guidance.interval = {section.interval} is empty: the lower level comes first.")
  return dict(scale=np.float32(section.scale), interval=(np.int32(low), np.int32(high)))


def _form(section: ConfigDict) -> str:
  """By which of ADM's algorithms a classifier guides the sampler of `section`."""
  form, noisy = section.guidance.form, section.solver == "gaussian" and section.eta > 0
  if form is None:
    return "mean" if noisy and section.eta == 1 else "score"
  if form not in ("mean", "score"):
    raise UserError(f'sampling.guidance.form must be "mean", "score" or None, not {form!r}.')
  if form == "mean" and not noisy:
    raise UserError('sampling.guidance.form = "mean" shifts by the variance of a step, but these have none: use "score".')
  return form


# ---------------------------------------------------------------- likelihood


def bound(config: ConfigDict) -> tuple[tables.GaussianSteps, ReverseKernel]:
  """(rows, kernel) of the bits/dim that `config.evaluation` asks for."""
  levels, section = schedule(config), config.evaluation
  which = covariance_of(config, bound_covariance(config), eta=1.0)
  if section.last_row == "full_chain":
    which = covariance.fix_last_to_full_chain(which, levels)
  elif section.last_row != "chain":
    raise UserError(f'evaluation.last_row must be "chain" or "full_chain", not {section.last_row!r}.')
  return tables.gaussian(levels, grid(config, section)), ReverseKernel(which)


def bound_covariance(config: ConfigDict) -> str:
  """The name of the covariance whose bits/dim `config.evaluation` asks for."""
  return config.evaluation.covariance or config.sampling.covariance or _OF_SECOND_HEAD[config.prediction.second]


def covariances(config: ConfigDict) -> list[str]:
  """Names of all that a network of this config can tell."""
  second = config.prediction.second
  names = {"posterior", "marginal", _OF_SECOND_HEAD[second]}
  if second in OPTIMAL_HEADS:
    names.add("optimal_average")
  elif config.sampling.moments is not None:
    names.add("optimal")
  return [name for name in COVARIANCES if name in names]


COVARIANCES: dict[str, Any] = {
  "posterior": covariance.posterior,
  "marginal": covariance.marginal,
  "learned_range": covariance.learned_range,
  "learned_diagonal": covariance.learned_diagonal,
  "optimal": covariance.Optimal(),
  "optimal_average": covariance.Optimal(average=True),  # one variance per image (avg_cov of Extended-Analytic-DPM)
}

OPTIMAL_HEADS = ("residual", "second_moment")  # NPR-DPM, SN-DPM

_OF_SECOND_HEAD = {
  None: "posterior",
  "range": "learned_range",
  "log_var": "learned_diagonal",
  "residual": "optimal",
  "second_moment": "optimal",
}


def covariance_of(config: ConfigDict, name: str | None, eta: float) -> Any:
  """The covariance `name`; None: what the network's second head is for, or the posterior's."""
  if name is None:
    name = _OF_SECOND_HEAD[config.prediction.second]
    if name.startswith("learned") and eta != 1:
      name = "posterior"  # a learned variance is of the ancestral chain; OpenAI's DDIM ignores it too
  if name not in COVARIANCES:
    raise UserError(f"Covariance {name!r} is unknown; {nearest(name, COVARIANCES)}")
  if name.startswith("optimal") and config.sampling.moments is None and config.prediction.second not in OPTIMAL_HEADS:
    raise UserError(
      f'covariance = "{name}" needs to know how wrong the network is: measure it with ddpm-jax moments and set '
      "sampling.moments to the file, or train a head with --config npr or sn."
    )
  if name in ("marginal", "learned_range", "learned_diagonal") and eta != 1:
    raise UserError(
      f'covariance = "{name}" is of the ancestral chain, eta = 1, and means nothing at eta = {eta}. '
      'Use covariance = "posterior" or "optimal" there.'
    )
  return COVARIANCES[name]


def _make(table: dict[str, Callable], section: Any, what: str, **more: Any) -> Any:
  """table[section.name](**rest of section, **more), refusing unknown names and fields in a sentence."""
  fields = dict(section)
  name = fields.pop("name")
  if name not in table:
    raise UserError(f"{what}.name {name!r} is unknown; {nearest(name, table)}")
  known = inspect.signature(table[name]).parameters
  for field in fields:
    if field not in known:
      raise UserError(f"{what} {name!r} has no field {field!r}; {nearest(field, known)}")
  missing = [p for p, value in known.items() if value.default is value.empty and p not in {*fields, *more}]
  if missing:
    raise UserError(f"{what} {name!r} needs {', '.join(missing)}: set {what}.{missing[0]}.")
  return table[name](**fields, **{key: value for key, value in more.items() if key in known})
