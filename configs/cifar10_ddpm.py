"""DDPM on CIFAR-10 (Ho et al. 2020, table 1, L_simple): FID 3.17, Inception score 9.46 +- 0.11, <= 3.75 bits/dim with 1000
steps and the large variance; FID 13.51 with the bound as loss. With DDIM's 10 / 20 / 50 / 100 steps the same weights give
13.36 / 6.84 / 4.67 / 4.16. 35.7 M parameters, 800,000 steps of batch 128: 10.6 hours on a TPU v3-8, at 21 steps a second.

    ddpm-jax train    --config cifar10_ddpm --workdir runs/cifar10
    ddpm-jax sample   --weights cifar10-ddpm --seeds 0-63
    ddpm-jax evaluate --weights cifar10-ddpm

Ho clips the gradient of each of eight cores to norm 1 before averaging, here the average is clipped; his learning rate
rises from 0 over 5000 steps.
"""

from ddpm_jax.config import default
from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants


def get_config(variant: str = ""):
  """The config; "smoke" is a variant that runs in seconds, for tests."""
  _, smoke = variants(variant)
  config = default()
  config.data.update(name="cifar10", image_size=32, flip=True)
  config.network = dict(
    name="unet_ddpm", channels=128, channel_mult=(1, 2, 2, 2), num_res_blocks=2, attention_resolutions=(16,), dropout=0.1
  )
  config.optimizer.update(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0)
  config.ema.warmup = False
  config.train.update(total_steps=800_000, batch_size=128, checkpoint_every=5000)
  config.sampling.covariance = "marginal"
  return shrink(config) if smoke else config
