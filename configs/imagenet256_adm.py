"""ADM on ImageNet, 256x256 pixels (Dhariwal & Nichol 2021, tables 4 and 5), 250 steps.

By class, 553.8 M parameters: FID 10.94; guided by the classifier at scale 1.0 FID 4.59, precision 0.82, recall 0.52.
Without classes ("uncond"): FID 26.21; guided at scale 10.0 FID 12.00. 1.98 M steps of batch 256.

    ddpm-jax train  --config imagenet256_adm --workdir runs/imagenet256_adm
    ddpm-jax sample --weights imagenet256-adm --seeds 0-15 --config.sampling.guidance.kind=classifier \\
                    --config.sampling.guidance.model=imagenet256-classifier --config.sampling.guidance.scale=1
"""

from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants
from ddpm_jax.configs.imagenet64_adm import adm


def get_config(variant: str = ""):
  """The variant "cond" or "uncond", each also with "-smoke"."""
  which, smoke = variants(variant, ("cond", "uncond"))
  config = adm(256, channel_mult=(1, 1, 2, 2, 4, 4))
  config.train.update(total_steps=1_980_000, class_conditional=which == "cond")
  return shrink(config) if smoke else config
