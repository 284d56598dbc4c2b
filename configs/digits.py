"""DDPM on scikit-learn's 1,437 + 360 handwritten digits, 8x8 pixels of 17 grey levels.

No paper has this row: it is the quickstart, a whole run in minutes on two CPU cores.

    ddpm-jax train --config digits --workdir runs/digits
"""

from ddpm_jax.config import default
from ddpm_jax.configs._variants import variants


def get_config(variant: str = ""):
  """The config; "smoke" is a variant that runs in seconds, for tests."""
  _, smoke = variants(variant)
  config = default()
  config.data.name = "digits"
  # As DDPM's, with a quarter of the levels and the same first step and end: the last, decoded step stays fine.
  config.schedule = dict(name="linear", T=250, start=1e-4, end=0.08)
  config.network = dict(
    name="unet_ddpm", channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), groups=8
  )
  config.time_sampler.name = "stratified"
  config.optimizer.update(learning_rate=2e-3, warmup_steps=100, decay="cosine", clip_norm=1.0)
  config.ema.rates = (0.999,)
  config.train.update(total_steps=1200, batch_size=64, checkpoint_every=400)
  config.evaluation.covariance = "marginal"  # the tighter bound of the two fixed ones
  if smoke:
    config.network.channels = 16
    config.schedule.T = 20
    config.optimizer.warmup_steps = 0
    config.train.update(total_steps=4, batch_size=16, checkpoint_every=2, log_every=2, preview_images=4)
  return config
