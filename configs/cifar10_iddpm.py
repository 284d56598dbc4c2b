"""Improved DDPM on CIFAR-10 (Nichol & Dhariwal 2021, table 2): FID 3.19 and 3.17 bits/dim, 4000 cosine steps, 500,000
training steps of L_hybrid; with the bound L_vlb ("vlb") FID 11.47 and 2.94 bits/dim. 52.5 M parameters, batch 128.

    ddpm-jax train    --config cifar10_iddpm --workdir runs/cifar10_iddpm
    ddpm-jax sample   --weights cifar10-iddpm --seeds 0-63 --sampler ddpm
    ddpm-jax evaluate --weights cifar10-iddpm

Sampling takes 250 steps by default, which costs little quality; `--sampler ddpm` is the paper's. No flips, as theirs.
"""

from ddpm_jax.config import default
from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants


def get_config(variant: str = ""):
  """L_hybrid, or "vlb"; "smoke" and "vlb-smoke" run in seconds, for tests."""
  which, smoke = variants(variant, ("hybrid", "vlb"))
  config = default()
  config.data.update(name="cifar10", image_size=32)
  config.schedule = dict(name="cosine", T=4000)
  config.network = dict(
    name="unet_adm", channels=128, channel_mult=(1, 2, 2, 2), num_res_blocks=3, attention_resolutions=(16, 8), dropout=0.3
  )
  config.prediction.update(second="range", time_scale=1000 / 4000)  # the network is told 0 ... 999.75
  set_loss(config, which)
  config.optimizer.learning_rate = 1e-4
  config.ema.warmup = False
  config.train.update(total_steps=500_000, batch_size=128, checkpoint_every=10_000)
  config.sampling.grid = "250"
  return shrink(config) if smoke else config


def set_loss(config, which: str):
  """L_hybrid with weight T / 1000 (0.001 times the number of terms), or L_vlb by importance sampling of levels."""
  if which == "vlb":
    config.loss = dict(name="vlb", scale=float(config.schedule.T))
    config.time_sampler.name = "loss_second_moment"
  else:
    config.loss = dict(name="hybrid", weight=config.schedule.T / 1000)
