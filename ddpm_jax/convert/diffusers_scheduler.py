"""diffusers' schedulers: scheduler_config.json as the schedule, prediction and sampling sections of a config.

Fields are read by whitelist. A field is understood, known to change nothing that is taken over, or refused by name. No
default stands in for noise levels that the file does not state, except the defaults of the scheduler's own class.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.errors import UserError

# Schedulers whose noise levels follow from betas, with the ends that their class assumes where the file has none.
_USUAL_ENDS = (1e-4, 0.02)
_LATENT_ENDS = (0.00085, 0.012)
CLASSES = {
  **dict.fromkeys(("DDPMScheduler", "DDPMParallelScheduler", "RePaintScheduler"), _USUAL_ENDS),
  **dict.fromkeys(("DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"), _USUAL_ENDS),
  **dict.fromkeys(("PNDMScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"), _USUAL_ENDS),
  **dict.fromkeys(("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "LMSDiscreteScheduler"), _USUAL_ENDS),
  **dict.fromkeys(("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"), _USUAL_ENDS),
  **dict.fromkeys(("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"), _LATENT_ENDS),
}
_ANCESTRAL = ("DDPMScheduler", "DDPMParallelScheduler", "RePaintScheduler")
_DDIM = ("DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler")
_SCHEDULES = {"linear": "linear", "scaled_linear": "quad", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
_MEANS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_COVARIANCES = {
  None: None,
  "fixed_small": "posterior",
  "fixed_small_log": "posterior",
  "fixed_large": "marginal",
  "fixed_large_log": "marginal",
  "learned": "learned_diagonal",
  "learned_range": "learned_range",
}
_SECOND_HEADS = {"learned": "log_var", "learned_range": "range"}
_UNDERSTOOD = {
  *("_class_name", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"),
  *("variance_type", "clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
  *("rescale_betas_zero_snr", "timestep_spacing", "steps_offset"),
}
# Which solver visits the levels, and how: choices of a sampler, which is chosen here by sampling.solver and sampling.grid.
_OF_SOLVERS = {
  *("solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final", "final_sigmas_type"),
  *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "lambda_min_clipped"),
  *("predict_x0", "disable_corrector", "solver_p", "interpolation_type", "skip_prk_steps", "set_alpha_to_one", "eta"),
  *("set_alpha_to_zero", "tensor_format", "sigma_min", "sigma_max", "flow_shift", "use_dynamic_shifting", "time_shift_type"),
}
_WORDS = ("_class_name", "beta_schedule", "prediction_type", "variance_type", "timestep_spacing")
_ONLY = {  # fields that change the process: only these values are ours
  "use_flow_sigmas": (False, None),
  "invert_sigmas": (False, None),
  "timestep_type": ("discrete", None),
  "timestep_values": (None,),
}


def apply(config: ConfigDict, scheduler: Mapping[str, Any]) -> None:
  """Writes what a scheduler says into `config`: schedule, prediction, and how images are drawn.

  Raises:
    UserError: for a class or a field that the schedules and samplers here do not have, by name.
  """
  kind = scheduler.get("_class_name")
  for field in _WORDS:
    if not isinstance(scheduler.get(field), str | None):
      raise UserError(f"The scheduler has {field}={scheduler[field]!r}; it should be a text.")
  if kind not in CLASSES:
    raise UserError(
      f"The scheduler's _class_name is {kind!r}, whose noise levels are not those of DDPM's betas. If the network was "
      "trained on betas, give the scheduler_config.json of its DDPMScheduler."
    )
  for field, value in scheduler.items():
    if field in _ONLY and value not in _ONLY[field]:
      raise UserError(f"The {kind} has {field}={value!r}; only {_ONLY[field][0]!r} is supported.")
    if field not in _UNDERSTOOD | _OF_SOLVERS | _ONLY.keys() and not field.startswith("_"):
      raise UserError(f"The {kind} has the field {field}={value!r}, which is not known here: remove it if it has no effect.")
  _levels(config, scheduler, kind)
  _prediction(config, scheduler, kind)
  _clipping(config, scheduler, kind)
  config.sampling.rounding = "round"  # pipelines end in (images * 255).round()
  if kind in _DDIM:
    _visits(config, scheduler, kind)


def notes(scheduler: Mapping[str, Any]) -> list[str]:
  """What of a scheduler is not taken over, in sentences."""
  kind = scheduler.get("_class_name")
  if kind in _DDIM and scheduler.get("set_alpha_to_one") is False:
    return ["set_alpha_to_one=False is ignored: the last step reaches the image, not the first noise level."]
  if kind in (*_ANCESTRAL, *_DDIM):
    return []
  return [f"Took the noise levels of {kind}, not its solver: choose one with --config.sampling.solver and .grid."]


def _levels(config: ConfigDict, scheduler: Mapping[str, Any], kind: str) -> None:
  name = scheduler.get("beta_schedule", "linear")
  betas = scheduler.get("trained_betas")
  T = scheduler.get("num_train_timesteps", 1000)
  if type(T) is not int or T < 2:
    raise UserError(f"The {kind} has num_train_timesteps={T!r}; it should be an integer of at least 2.")
  zero = _flag(scheduler, "rescale_betas_zero_snr", kind)
  if betas is not None:
    if not isinstance(betas, list) or not all(type(beta) in (int, float) and 0 < beta <= 1 for beta in betas) or not betas:
      raise UserError(f"The {kind} has trained_betas that are not a list of numbers above 0 and at most 1.")
    if zero:
      raise UserError(f"The {kind} has trained_betas and rescale_betas_zero_snr=True; of the two, one is supported.")
    if "num_train_timesteps" in scheduler and T != len(betas):
      raise UserError(f"The {kind} has {len(betas)} trained_betas but num_train_timesteps={T}: one of them is wrong.")
    if betas[-1] == 1 and scheduler.get("prediction_type", "epsilon") == "epsilon":
      raise UserError(
        f"The {kind} ends in pure noise (the last of trained_betas is 1), where epsilon carries no information."
      )
    config.schedule = dict(name="from_betas", betas=tuple(map(float, betas)))
    return
  if name not in _SCHEDULES:
    raise UserError(f"The {kind} has beta_schedule={name!r}; supported are {', '.join(_SCHEDULES)}.")
  ends = {}
  if name != "squaredcos_cap_v2":
    first, last = CLASSES[kind]
    ends = dict(start=scheduler.get("beta_start", first), end=scheduler.get("beta_end", last))
    if not all(type(end) in (int, float) and 0 < end < 1 for end in ends.values()):
      raise UserError(
        f"The {kind} has beta_start={ends['start']!r}, beta_end={ends['end']!r}; they should be numbers between 0 and 1."
      )
  own = dict(name=_SCHEDULES[name], T=T, **ends)
  config.schedule = dict(own, name="zero_snr", base=own["name"]) if zero else own


def _prediction(config: ConfigDict, scheduler: Mapping[str, Any], kind: str) -> None:
  mean = scheduler.get("prediction_type", "epsilon")
  variance = scheduler.get("variance_type", None)
  if mean not in _MEANS:
    raise UserError(f"The {kind} has prediction_type={mean!r}; supported are {', '.join(_MEANS)}.")
  if variance not in _COVARIANCES:
    raise UserError(f"The {kind} has variance_type={variance!r}; supported are {', '.join(filter(None, _COVARIANCES))}.")
  if mean == "epsilon" and scheduler.get("rescale_betas_zero_snr"):
    raise UserError(
      f"The {kind} has rescale_betas_zero_snr=True and prediction_type='epsilon': at the last level only noise is left, "
      "and eps says nothing about the image. Set its prediction_type to what the network was trained with."
    )
  config.prediction.mean = _MEANS[mean]
  if kind in _ANCESTRAL and variance is None:
    variance = "fixed_small"
  with config.ignore_type():
    config.sampling.covariance = _COVARIANCES[variance]
    config.prediction.second = _SECOND_HEADS.get(variance)


def _clipping(config: ConfigDict, scheduler: Mapping[str, Any], kind: str) -> None:
  sampling = config.sampling
  clips = _flag(scheduler, "clip_sample", kind, default=kind in (*_ANCESTRAL, *_DDIM))
  if _flag(scheduler, "thresholding", kind):
    sampling.clip = "dynamic"
    sampling.clip_quantile = _number(scheduler, "dynamic_thresholding_ratio", kind, 0.995)
    with config.ignore_type():
      sampling.clip_max = _number(scheduler, "sample_max_value", kind, 1.0)
  elif clips:
    sampling.clip = "x0"
    sampling.clip_range = _number(scheduler, "clip_sample_range", kind, 1.0)
  else:
    sampling.clip = "none"


def _visits(config: ConfigDict, scheduler: Mapping[str, Any], kind: str) -> None:
  """The 50 steps of DDIM that a pipeline takes by default."""
  spacing = scheduler.get("timestep_spacing", "leading")
  offset = scheduler.get("steps_offset", 0)
  if type(offset) is not int:
    raise UserError(f"The {kind} has steps_offset={offset!r}; it should be an integer.")
  grids = {("leading", 0): "leading", ("leading", 1): "leading1", ("linspace", offset): "uniform"}
  grids["trailing", offset] = "trailing"
  if (spacing, offset) not in grids:
    raise UserError(
      f"The {kind} has timestep_spacing={spacing!r}, steps_offset={offset!r}; supported are leading with an offset of 0 or "
      "1, linspace and trailing."
    )
  config.sampling.update(eta=0.0, grid=grids[spacing, offset], keep_eps=True)  # DDIMScheduler clips x0 alone
  with config.ignore_type():
    config.sampling.update(steps=min(50, len(config.schedule.get("betas", ())) or config.schedule.T), covariance=None)


def _flag(scheduler: Mapping[str, Any], field: str, kind: str, default: bool = False) -> bool:
  value = scheduler.get(field, default)
  if not isinstance(value, bool | None):
    raise UserError(f"The {kind} has {field}={value!r}; it should be true or false.")
  return bool(value)


def _number(scheduler: Mapping[str, Any], field: str, kind: str, default: float) -> float:
  value = scheduler.get(field, default)
  if type(value) not in (int, float) or not value > 0:
    raise UserError(f"The {kind} has {field}={value!r}; it should be a number above 0.")
  return float(value)
