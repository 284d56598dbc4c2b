"""DDPM on LSUN, 256x256 pixels (Ho et al. 2020, appendix B): bedroom FID 6.36, cat 19.75, church 7.89, with 1000 steps.

114 M parameters, 2.4 / 1.8 / 4.4 million steps of batch 64 for bedroom / cat / church, as the published checkpoints; on a
TPU v3-8 at 2.2 steps a second. The variance is the small one, the posterior's.

    ddpm-jax train  --config lsun_ddpm:church --workdir runs/lsun_church
    ddpm-jax sample --weights lsun-church-ddpm --seeds 0-63
"""

from ddpm_jax.config import default
from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants

STEPS = {"bedroom": 2_388_000, "cat": 1_761_000, "church": 4_432_000}


def get_config(variant: str = ""):
  """The variant "bedroom", "cat" or "church", and any of them with "-smoke"."""
  category, smoke = variants(variant, tuple(STEPS))
  config = default()
  config.data.update(name=f"lsun_{category}256", flip=category != "cat")  # cat was trained without flips
  config.data.image_size = 256
  config.network = dict(name="unet_ddpm", channels=128, channel_mult=(1, 1, 2, 2, 4, 4), attention_resolutions=(16,))
  config.optimizer.update(learning_rate=2e-5, warmup_steps=5000, clip_norm=1.0)
  config.ema.warmup = False
  config.train.update(total_steps=STEPS[category], batch_size=64, checkpoint_every=5000)
  config.sampling.batch_size = 16
  return shrink(config) if smoke else config
