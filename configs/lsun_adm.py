"""ADM on LSUN, 256x256 pixels (Dhariwal & Nichol 2021, table 5), 1000 steps: bedroom FID 1.90, cat 5.57, horse 2.57, and
2.95 without dropout ("horse_nodropout"). 552.8 M parameters; 500,000 / 200,000 / 250,000 steps of batch 256.

    ddpm-jax train  --config lsun_adm:horse --workdir runs/lsun_horse_adm
    ddpm-jax sample --weights lsun-horse-adm --seeds 0-15
"""

from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants
from ddpm_jax.configs.imagenet64_adm import adm

STEPS = {"bedroom": 500_000, "cat": 200_000, "horse": 250_000, "horse_nodropout": 250_000}


def get_config(variant: str = ""):
  """The variant "bedroom", "cat", "horse" or "horse_nodropout", each also with "-smoke"."""
  which, smoke = variants(variant, tuple(STEPS))
  config = adm(256, channel_mult=(1, 1, 2, 2, 4, 4))
  config.data.name = f"lsun_{which.removesuffix('_nodropout')}256"
  config.network.dropout = 0.0 if which.endswith("nodropout") else 0.1
  config.train.update(total_steps=STEPS[which], class_conditional=False)
  config.sampling.grid = "full"
  return shrink(config) if smoke else config
