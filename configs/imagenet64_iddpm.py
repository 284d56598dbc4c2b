"""Improved DDPM on ImageNet, 64x64 pixels (Nichol & Dhariwal 2021, tables 1 and 4), 4000 cosine steps.

Unconditional, 1.5 M training steps of batch 128, 121 M parameters: L_hybrid FID 19.2 and 3.57 bits/dim, L_vlb ("vlb") 40.1
and 3.53. By class ("cond"), 250,000 steps of batch 2048, 273 M parameters: FID 2.92 with 250 steps.

    ddpm-jax train    --config imagenet64_iddpm --workdir runs/imagenet64_iddpm
    ddpm-jax sample   --weights imagenet64-cond-iddpm --seeds 0-63
    ddpm-jax evaluate --weights imagenet64-iddpm

Sampling takes 250 steps by default; --config.sampling.grid=full is all of them.
"""

from ddpm_jax.configs import cifar10_iddpm
from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants


def get_config(variant: str = ""):
  """L_hybrid, "vlb" or "cond", each also with "-smoke"."""
  which, smoke = variants(variant, ("hybrid", "vlb", "cond"))
  config = cifar10_iddpm.get_config(which if which == "vlb" else "")
  config.data.update(name="imagenet64_adm", image_size=64)
  config.network.update(channel_mult=(1, 2, 3, 4), dropout=0.0)
  config.train.total_steps = 1_500_000
  if which == "cond":
    config.network.channels = 192
    config.prediction.time_scale = 1.0  # trained with --rescale_timesteps False, --rescale_learned_sigmas False
    config.loss.weight = 1.0
    config.optimizer.learning_rate = 3e-4
    config.train.update(total_steps=250_000, batch_size=2048, class_conditional=True)
  return shrink(config) if smoke else config
