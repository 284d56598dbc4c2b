"""ADM's upsampler for ImageNet, 128x128 to 512x512 pixels, by class (Dhariwal & Nichol 2021, table 5), 250 steps: FID 9.96
on samples of imagenet128_adm, 3.85 on guided ones. 308.8 M parameters, batch 256; 500,000 steps here.

    ddpm-jax train  --config imagenet512_adm_upsampler --workdir runs/imagenet512_adm_up
    ddpm-jax sample --weights imagenet128-adm --upsampler imagenet512-upsampler-adm --seeds 0-15
"""

from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants
from ddpm_jax.configs.imagenet64_adm import adm


def get_config(variant: str = ""):
  """The config; "smoke" is a variant that runs in seconds, for tests."""
  _, smoke = variants(variant)
  config = adm(512, channel_mult=(1, 1, 2, 2, 4, 4))
  config.data.low_res_size = 128
  config.network.update(channels=192, attention_resolutions=(32, 16))
  config.train.total_steps = 500_000
  config.sampling.batch_size = 4
  return shrink(config) if smoke else config
