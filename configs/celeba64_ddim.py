"""DDIM's network for CelebA, 64x64 pixels (Song et al. 2020, table 1).

FID with 10 / 20 / 50 / 100 / 1000 steps: 17.33 / 13.73 / 9.17 / 6.53 / 3.51 by DDIM (eta = 0), 33.12 / 26.03 / 18.48 /
13.93 / 5.98 with eta = 1, and 3.26 by DDPM with the large variance and 1000 steps. 78.7 M parameters, batch 128.
As the DDIM code trains: losses summed over pixels (so that the gradient is almost always clipped), levels in antithetic
pairs, PyTorch's initial weights. It does not say how many steps; 500,000 here.

    ddpm-jax train    --config celeba64_ddim --workdir runs/celeba64
    ddpm-jax sample   --weights celeba64-ddim --seeds 0-63 --config.sampling.steps=50

Images are never clipped on the way, and the grid stops short of the last level, as theirs.
"""

from ddpm_jax.config import default
from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants


def get_config(variant: str = ""):
  """The config; "smoke" is a variant that runs in seconds, for tests."""
  _, smoke = variants(variant)
  config = default()
  config.data.update(name="celeba64_ddim", crop="celeba", flip=True, image_size=64)
  config.network = dict(
    name="unet_ddpm",
    channels=128,
    channel_mult=(1, 2, 2, 2, 4),
    attention_resolutions=(16,),
    dropout=0.1,
    initialization="torch",
  )
  config.loss = dict(name="simple", reduce="sum")
  config.time_sampler.name = "antithetic"
  config.optimizer.clip_norm = 1.0
  config.ema.warmup = False
  config.train.update(total_steps=500_000, batch_size=128, checkpoint_every=5000)
  config.sampling.update(grid="ddim", steps=100, eta=0.0, clip="none", rounding="round")
  return shrink(config) if smoke else config
