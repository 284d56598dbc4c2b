"""ADM on ImageNet, 512x512 pixels, by class (Dhariwal & Nichol 2021, table 5), 250 steps: FID 23.24; guided by the
classifier at scale 4.0 FID 7.72, precision 0.87, recall 0.42. 559.0 M parameters, 1.94 M steps of batch 256.

    ddpm-jax train  --config imagenet512_adm --workdir runs/imagenet512_adm
    ddpm-jax sample --weights imagenet512-adm --seeds 0-15 --config.sampling.guidance.kind=classifier \\
                    --config.sampling.guidance.model=imagenet512-classifier --config.sampling.guidance.scale=4
"""

from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants
from ddpm_jax.configs.imagenet64_adm import adm


def get_config(variant: str = ""):
  """The config; "smoke" is a variant that runs in seconds, for tests."""
  _, smoke = variants(variant)
  config = adm(512, channel_mult=(0.5, 1, 1, 2, 2, 4, 4))
  config.train.total_steps = 1_940_000
  config.sampling.batch_size = 4
  return shrink(config) if smoke else config
