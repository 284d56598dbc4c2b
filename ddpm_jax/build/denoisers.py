"""Denoisers: a network with the moments, guidance and clipping of a config."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.build.networks import check_draws, is_classifier
from ddpm_jax.build.process import schedule
from ddpm_jax.build.uncertainty import uncertain
from ddpm_jax.diffusion import guidance, transforms
from ddpm_jax.diffusion.guidance_rules import Projected, Renoised, Rescaled
from ddpm_jax.errors import UserError
from ddpm_jax.models.perturbed import IdentityAttention


def denoiser(config: ConfigDict, net: Any, which: str = "sampling") -> Any:
  """`net` with the variance that the covariance of the section `which` uses, clipped as `config.sampling` says."""
  check_draws(config)
  return clipped(config, uncertain(config, net, which))


def clipped(config: ConfigDict, net: Any) -> Any:
  """`net`, clipped as `config.sampling` says."""
  keep_eps = config.sampling.keep_eps
  match config.sampling.clip:
    case "x0":
      bound = config.sampling.clip_range
      if not bound > 0:
        raise UserError(f"sampling.clip_range = {bound:g} must be above 0; images reach from -1 to 1.")
      return transforms.ClipX0(net, lo=-bound, hi=bound, keep_eps=keep_eps)
    case "dynamic":
      quantile = config.sampling.clip_quantile
      if not 0 < quantile <= 1:
        raise UserError(f"sampling.clip_quantile = {quantile:g} must be above 0 and at most 1; Imagen's is 0.995.")
      most = np.inf if config.sampling.clip_max is None else config.sampling.clip_max
      return transforms.DynamicThreshold(net, quantile=quantile, most=most, keep_eps=keep_eps)
    case "none":
      return net
  raise UserError(f'sampling.clip must be "x0", "dynamic" or "none", not {config.sampling.clip!r}.')


def guided(config: ConfigDict, net: Any, guide: Any = None) -> Any:
  """The denoiser of `net`, guided as `config.sampling.guidance` says.

  Guidance by two predictions comes before clipping. Guidance by a classifier comes after it, as in ADM.

  Args:
    guide: the classifier, or the weaker network; one that passes `check_guide`.
  """
  section = config.sampling.guidance
  if section.perturbed and section.kind != "classifier_free":
    raise UserError(
      f'sampling.guidance.perturbed = {section.perturbed:g} adds to kind = "classifier_free". Alone, perturbed attention is '
      'kind = "perturbed_attention" with scale = 1 + the paper\'s scale.'
    )
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
      free = guidance.ClassifierFree(net, null=null, rule=_rule(config), **strength_of(config))
      return denoiser(config, _perturbed(config, net, free) if section.perturbed else free)
    case "autoguidance":
      return denoiser(config, guidance.Autoguidance(net, guide, rule=_rule(config), **strength_of(config)))
    case "perturbed_attention":
      weak = _without_attention(config, net)
      return denoiser(config, guidance.Autoguidance(net, weak, rule=_rule(config), **strength_of(config)))
    case "classifier" if form_of(config.sampling) == "mean":
      return denoiser(config, net)
    case "classifier":
      return guidance.ClassifierScore(denoiser(config, net), guide, **strength_of(config))
  raise UserError(
    'sampling.guidance.kind must be "classifier", "classifier_free", "autoguidance", "perturbed_attention" or None, '
    f"not {section.kind!r}."
  )


def check_guide(config: ConfigDict, guide: ConfigDict) -> None:
  """Raises UserError unless a run with the config `guide` can guide one of `config`."""
  kind = config.sampling.guidance.kind
  model = config.sampling.guidance.model
  if is_classifier(guide) != (kind == "classifier"):
    raise UserError(f"{model} is {'' if is_classifier(guide) else 'not '}a noisy classifier: no guide of the kind {kind!r}.")
  if not np.array_equal(schedule(config).alpha_bar, schedule(guide).alpha_bar):
    raise UserError(
      f"{model} was trained on the schedule {guide.schedule.to_dict()}, but this network on {config.schedule.to_dict()}: "
      "the same level is different noise for them. Train one of them on the other's schedule."
    )
  for field in ("image_size", "channels", "num_classes"):
    if guide.data[field] != config.data[field]:
      raise UserError(
        f"{model} was trained with data.{field} = {guide.data[field]}, but this network with {config.data[field]}. "
        "Both need the same images."
      )


def _without_attention(config: ConfigDict, net: Any) -> Any:
  return net.replace(apply=IdentityAttention(net.apply, tuple(config.sampling.guidance.blocks)))


def _perturbed(config: ConfigDict, net: Any, inner: Any) -> guidance.Perturbed:
  """Perturbed attention beside `inner`."""
  section = config.sampling.guidance
  weak = _without_attention(config, net)
  T = schedule(config).T
  return guidance.Perturbed(inner, net, weak, np.float32(section.perturbed), np.float32(section.fade), T)


def _rule(config: ConfigDict) -> Any:
  """The rule that combines a strong and a weak prediction. None is the linear one."""
  section = config.sampling.guidance
  if section.rule == "linear":
    return None
  if section.rule == "apg":
    return Projected(np.float32(section.parallel), np.float32(np.inf if section.norm is None else section.norm))
  if section.rule == "rescaled":
    return Rescaled(np.float32(section.rescale))
  sampling = config.sampling
  keeps = sampling.keep_eps or sampling.clip == "none"
  ddim = sampling.solver == "gaussian" and not sampling.eta
  if not (ddim or sampling.solver == "cfg++2m") or not keeps:
    raise UserError(
      'sampling.guidance.rule = "cfg++" continues with the weaker eps. It needs DDIM (sampling.solver = "gaussian", '
      'sampling.eta = 0) or sampling.solver = "cfg++2m", and sampling.keep_eps = True.'
    )
  return Renoised()


def strength_of(config: ConfigDict) -> dict[str, Any]:
  """Scale and interval of config.sampling.guidance, as leaves."""
  section = config.sampling.guidance
  if section.sigma_interval is not None:
    if section.interval is not None:
      raise UserError("sampling.guidance.interval (in levels) and sigma_interval exclude each other: give one of them.")
    found = guidance.levels_between(schedule(config), *section.sigma_interval)
    return dict(scale=np.float32(section.scale), interval=found)
  interval = guidance.EVERYWHERE if section.interval is None else section.interval
  if len(interval) != 2 or not all(isinstance(level, int) for level in interval):
    raise UserError(f"sampling.guidance.interval = {interval} should be two levels, such as (100, 600).")
  low, high = interval
  if low > high:
    raise UserError(f"sampling.guidance.interval = {interval} is empty: the lower level comes first.")
  if section.interval is not None and (high < 1 or low > (T := schedule(config).T)):
    raise UserError(f"sampling.guidance.interval = {interval} holds no level: they are 1 to {T}.")
  return dict(scale=np.float32(section.scale), interval=(np.int32(low), np.int32(high)))


def form_of(section: ConfigDict) -> str:
  """The form of classifier guidance for the sampler of `section`: "mean" (ADM's algorithm 1) or "score" (algorithm 2)."""
  form = section.guidance.form
  noisy = section.solver == "gaussian" and section.eta > 0
  if form is None:
    return "mean" if noisy and section.eta == 1 else "score"
  if form not in ("mean", "score"):
    raise UserError(f'sampling.guidance.form must be "mean", "score" or None, not {form!r}.')
  if form == "mean" and not noisy:
    raise UserError(
      'sampling.guidance.form = "mean" shifts by the variance of a step, but these steps have none: use "score".'
    )
  return form
