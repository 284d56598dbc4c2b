"""Consistency models, and the EDM networks that they were distilled from (Song et al. 2023, tables 1, 2). FID with one and
two evaluations: ImageNet 64x64 CD 6.20 and 4.70, CT 13.0 and 11.1; LSUN 256x256 bedroom CD 7.80 and 5.22, CT 16.0 and 7.85;
cat CD 11.0 and 8.84, CT 20.7 and 11.7. EDM: ImageNet 2.44 (79 evaluations), bedroom 3.57, cat 6.69.

    ddpm-jax sample --weights imagenet64-cd-lpips --seeds 0-63
    ddpm-jax sample --weights imagenet64-cd-lpips --seeds 0-63 --config.sampling.steps=2
    ddpm-jax sample --weights imagenet64-edm --seeds 0-63
    ddpm-jax train  --config consistency:imagenet64_edm --workdir runs/imagenet64_edm

Consistency models are sampled here, not trained. The EDM networks train with prediction.mean="edm".
"""

from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants
from ddpm_jax.configs.imagenet64_adm import adm


def get_config(variant: str = ""):
  """The variant "imagenet64", "lsun", "imagenet64_edm" or "lsun_edm", each also with "-smoke"."""
  which, smoke = variants(variant, ("imagenet64", "lsun", "imagenet64_edm", "lsun_edm"))
  imagenet = which.startswith("imagenet64")
  config = adm(64, channel_mult=(1, 2, 3, 4)) if imagenet else adm(256, channel_mult=(1, 1, 2, 2, 4, 4))
  if imagenet:
    config.network.update(channels=192, num_res_blocks=3)
  else:
    config.data.name = "lsun_bedroom256"
    config.network.scale_shift = False
    config.train.class_conditional = False
  config.network.dropout = 0.1 if which.endswith("edm") else 0.0
  config.schedule = dict(name="karras", T=40, sigma_min=0.002, sigma_max=80.0)
  config.loss = dict(name="simple")
  with config.ignore_type():
    config.prediction.second = None
  config.prediction.mean = "consistency"
  if which.endswith("edm"):
    config.prediction.update(mean="edm", time_scale=1000.0)
  config.train.total_steps = 600_000
  config.sampling.update(solver="heun", grid="full")
  if not which.endswith("edm"):
    config.sampling.update(solver="consistency", grid="trailing")
    with config.ignore_type():
      config.sampling.steps = 1
  return shrink(config) if smoke else config
