"""ADM's noisy classifiers for ImageNet (Dhariwal & Nichol 2021, section 4 and appendix): "64", "128", "256", "512" pixels.

They guide the diffusion model of their size, at scales 1.0, 0.5, 1.0 (10.0 the unconditional one) and 4.0, and have 65.4,
42.6, 54.1 and 54.4 M parameters. AdamW with weight decay 0.05 (64: 0.2), learning rate 3e-4 (64: 6e-4) falling linearly to
0 over 300,000 steps (256 and 512: 500,000) of batch 256 (64: 1024); random crops and flips; no averages.

    ddpm-jax train --config imagenet_classifier:128 --workdir runs/imagenet128_classifier
"""

from ddpm_jax.config import default
from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants

CHANNEL_MULT = {"64": (1, 2, 3, 4), "128": (1, 1, 2, 3, 4), "256": (1, 1, 2, 2, 4, 4), "512": (0.5, 1, 1, 2, 2, 4, 4)}


def get_config(variant: str = ""):
  """The variant "64", "128", "256" or "512", each also with "-smoke"."""
  size, smoke = variants(variant, ("128", "64", "256", "512"))
  config = default()
  config.data.update(name=f"imagenet{size}_adm", crop="random", flip=True, image_size=int(size))
  config.schedule.name = "cosine" if size == "64" else "linear"  # of the model that it guides
  config.network = dict(
    name="classifier",
    channels=128,
    channel_mult=CHANNEL_MULT[size],
    num_res_blocks=4 if size == "64" else 2,
    attention_resolutions=(32, 16, 8),
    head_channels=64,
    resblock_updown=True,
    dtype="bfloat16",
  )
  config.loss.name = "classifier"
  config.optimizer.update(learning_rate=3e-4, weight_decay=0.05, decay="linear")
  config.ema.rates = ()
  config.train.update(total_steps=300_000, batch_size=256, checkpoint_every=10_000)
  if size == "64":
    config.optimizer.update(learning_rate=6e-4, weight_decay=0.2)
    config.train.batch_size = 1024
  if size in ("256", "512"):
    config.train.total_steps = 500_000
  return shrink(config) if smoke else config
