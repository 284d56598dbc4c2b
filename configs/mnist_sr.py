"""A cascade on MNIST: 14x14 pixels, then 14x14 to 28x28 (super-resolution of Improved DDPM and ADM, with CDM's noise).

The second network also sees the small image, enlarged bilinearly. In training that is the mean over blocks of 2x2 pixels,
with a little noise, so that the mistakes of the first stage do not matter (Ho et al. 2021, conditioning augmentation).

    ddpm-jax train  --config mnist_sr:base --workdir runs/mnist_14
    ddpm-jax train  --config mnist_sr --workdir runs/mnist_sr
    ddpm-jax sample --workdir runs/mnist_14 --upsampler runs/mnist_sr --seeds 0-63
"""

from ddpm_jax.configs import mnist
from ddpm_jax.configs._variants import variants


def get_config(variant: str = ""):
  """The upsampler, or "base", the first stage; "smoke" and "base-smoke" are the same in a minute, on the embedded digits."""
  stage, smoke = variants(variant, ("", "base"))
  config = mnist.get_config("smoke" if smoke else "")
  size = 4 if smoke else 14
  if not smoke:
    config.train.total_steps = 1000
  if stage == "base":
    config.data.image_size = size
    config.network.update(block_size=1, attention_resolutions=(size // 2,))
    return config
  config.data.low_res_size = size
  config.train.low_res_noise = 0.1
  config.network.update(name="unet_adm", num_heads=2)
  return config
