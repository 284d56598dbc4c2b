"""ADM's upsampler for ImageNet, 64x64 to 256x256 pixels, by class (Dhariwal & Nichol 2021, table 5), 250 steps: FID 7.49 on
samples of imagenet64_adm, 3.94 on guided ones. 311.8 M parameters, 500,000 steps of batch 256.

    ddpm-jax train  --config imagenet256_adm_upsampler --workdir runs/imagenet256_adm_up
    ddpm-jax sample --weights imagenet64-adm --upsampler imagenet256-upsampler-adm --seeds 0-15

The small images in training are means over blocks of pixels, without noise.
"""

from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants
from ddpm_jax.configs.imagenet64_adm import adm


def get_config(variant: str = ""):
  """The config; "smoke" is a variant that runs in seconds, for tests."""
  _, smoke = variants(variant)
  config = adm(256, channel_mult=(1, 1, 2, 2, 4, 4))
  config.data.low_res_size = 64
  del config.network.head_channels
  config.network.update(channels=192, num_heads=4)
  config.train.total_steps = 500_000
  return shrink(config) if smoke else config
