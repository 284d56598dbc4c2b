"""Improved DDPM's upsampler for ImageNet, 64x64 to 256x256 pixels, by class: FID 12.26 on top of imagenet64_iddpm:cond
(Nichol & Dhariwal 2021, section 6; ADM, table 5). 279.8 M parameters, 500,000 steps of batch 256, 4000 linear steps.

    ddpm-jax train  --config imagenet256_iddpm_upsampler --workdir runs/imagenet256_up
    ddpm-jax sample --weights imagenet64-cond-iddpm --upsampler imagenet256-upsampler-iddpm --seeds 0-15
"""

from ddpm_jax.configs import imagenet64_iddpm
from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants


def get_config(variant: str = ""):
  """The config; "smoke" is a variant that runs in seconds, for tests."""
  _, smoke = variants(variant)
  config = imagenet64_iddpm.get_config("cond")
  config.data.update(name="imagenet256_adm", image_size=256, low_res_size=64)
  config.schedule.name = "linear"
  config.network.update(channel_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=2)
  config.train.update(total_steps=500_000, batch_size=256)
  config.sampling.batch_size = 16
  return shrink(config) if smoke else config
