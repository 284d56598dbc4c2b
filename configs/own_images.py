"""A folder or zip of your own images, 32x32 pixels, on a network that suits two CPU cores.

    ddpm-jax train  --config own_images --config.data.name=./photos --workdir runs/photos
    ddpm-jax sample --workdir runs/photos

For larger images set --config.data.image_size=64. docs/own_images.md has the whole walk.
"""

from ddpm_jax.configs import mnist


def get_config(variant: str = ""):
  """The run; "smoke" is the same in seconds, on the embedded digits."""
  config = mnist.get_config(variant)
  if variant != "smoke":
    config.data.update(name="./photos", image_size=32)
    config.network.update(channels=64, channel_mult=(1, 2), attention_resolutions=(8,))
    config.train.update(total_steps=3000, batch_size=32, checkpoint_every=500)
  config.data.flip = True
  return config
