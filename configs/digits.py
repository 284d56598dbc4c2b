"""DDPM on scikit-learn's 1,437 + 360 handwritten digits, 8x8 pixels of 17 grey levels.

No paper has this row: it is the quickstart, a whole run in minutes on two CPU cores.

    ddpm-jax train --config digits --workdir runs/digits
    ddpm-jax train --config digits:cosine_hybrid --workdir runs/digits_cosine_hybrid

Variants are an objective, after "cosine_" if the schedule is not linear, as in the tables of two papers:

    hybrid, vlb, vlb_uniform                                  Improved DDPM, tables 1 and 2 (vlb: importance sampling)
    eps_bound, eps_learned, mu_bound, mu_learned, mu_simple   DDPM, table 2: fixed or learned variance, or L_simple
"""

from ddpm_jax.config import default
from ddpm_jax.configs._variants import variants

OBJECTIVES = {  # name: (mean, second head, loss, time sampler)
  "": ("eps", None, "simple", "stratified"),
  "hybrid": ("eps", "range", "hybrid", "stratified"),
  "vlb": ("eps", "range", "vlb", "loss_second_moment"),
  "vlb_uniform": ("eps", "range", "vlb", "uniform"),
  "eps_bound": ("eps", None, "vlb", "stratified"),
  "eps_learned": ("eps", "log_var", "vlb", "stratified"),
  "mu_bound": ("x_prev", None, "vlb", "stratified"),
  "mu_learned": ("x_prev", "log_var", "vlb", "stratified"),
  "mu_simple": ("x_prev", None, "simple", "stratified"),
}
VARIANTS = tuple(OBJECTIVES) + tuple(f"cosine_{name}".removesuffix("_") for name in OBJECTIVES)


def get_config(variant: str = ""):
  """The config of a variant; "smoke", alone or after "-", runs in seconds, for tests."""
  which, smoke = variants(variant, VARIANTS)
  config = default()
  config.data.name = "digits"
  # As DDPM's, with a quarter of the levels and the same first step and end: the last, decoded step stays fine.
  config.schedule = dict(name="linear", T=250, start=1e-4, end=0.08)
  config.network = dict(
    name="unet_ddpm", channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), groups=8
  )
  mean, second, loss, times = OBJECTIVES[which.removeprefix("cosine").removeprefix("_")]
  if which.startswith("cosine"):
    config.schedule = dict(name="cosine", T=250)
  config.prediction.mean = mean
  config.prediction.second = second
  config.loss = dict(name=loss)
  if loss == "vlb":
    config.loss = dict(name="vlb", scale=float(config.schedule.T))  # an estimate of the whole bound
  config.time_sampler.name = times
  config.optimizer.update(learning_rate=2e-3, warmup_steps=100, decay="cosine", clip_norm=1.0)
  config.ema.rates = (0.999,)
  config.train.update(total_steps=1200, batch_size=64, checkpoint_every=400)
  if second is None:
    config.evaluation.covariance = "marginal"  # the tighter bound of the two fixed ones
  if smoke:
    config.network.channels = 16
    config.schedule.T = 20
    config.optimizer.warmup_steps = 0
    config.train.update(total_steps=4, batch_size=16, checkpoint_every=2, log_every=2, preview_images=4)
  return config
