"""ADM on ImageNet, 64x64 pixels, by class (Dhariwal & Nichol 2021, table 5): FID 2.07, sFID 4.29, precision 0.74, recall
0.63 with 250 steps and dropout 0.1. 295.9 M parameters, 540,000 steps of batch 2048, 1000 cosine steps.

    ddpm-jax train  --config imagenet64_adm --workdir runs/imagenet64_adm
    ddpm-jax sample --weights imagenet64-adm --seeds 0-63

Trained in half precision there, bfloat16 here.
"""

from ddpm_jax.config import default
from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants


def get_config(variant: str = ""):
  """The config; "smoke" is a variant that runs in seconds, for tests."""
  _, smoke = variants(variant)
  config = adm(64, channel_mult=(1, 2, 3, 4))
  config.schedule.name = "cosine"
  config.network.update(channels=192, num_res_blocks=3, dropout=0.1)
  config.optimizer.learning_rate = 3e-4
  config.train.update(total_steps=540_000, batch_size=2048)
  config.sampling.batch_size = 64
  return shrink(config) if smoke else config


def adm(image_size: int, channel_mult: tuple):
  """What all of ADM's diffusion models share: 1000 linear steps, a learned range, blocks that resample, labels."""
  config = default()
  config.data.update(name=f"imagenet{image_size}_adm", flip=True, image_size=image_size)
  config.network = dict(
    name="unet_adm",
    channels=256,
    channel_mult=channel_mult,
    num_res_blocks=2,
    attention_resolutions=(32, 16, 8),
    dropout=0.0,
    head_channels=64,
    resblock_updown=True,
    dtype="bfloat16",
    remat="blocks",  # the least memory; what is faster where: benchmarks/README.md, and "auto"
  )
  config.prediction.second = "range"
  config.loss = dict(name="hybrid", weight=1.0)
  config.optimizer.learning_rate = 1e-4
  config.ema.warmup = False
  config.train.update(batch_size=256, class_conditional=True, checkpoint_every=10_000)
  config.sampling.update(grid="250", batch_size=16)
  return config
