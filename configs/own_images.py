"""Your own images at 32 or 64 pixels, with or without classes, on a network that suits two CPU cores.

A UNet on blocks of pixels (Ho's `block_size`). It is conditional on classes if the images have any, as in photos/cat/0.jpg
and photos/dog/1.jpg. A tenth of the images is held out as the test split, unless there is a folder photos/test.

    ddpm-jax data show ./photos --image_size 32 --out photos.png       what is read, and how
    ddpm-jax train    --config own_images --config.data.name=./photos --workdir runs/photos
    ddpm-jax sample   --workdir runs/photos --seeds 0-63
    ddpm-jax evaluate --workdir runs/photos --likelihood 256           bits/dim of the held-out tenth

`own_images:64` is the same for 64 pixels. For better images train longer, with more channels:
--config.train.total_steps=20000 --config.network.channels=96.
"""

from ddpm_jax.config import default
from ddpm_jax.configs._variants import variants


def get_config(variant: str = ""):
  """The run; "smoke" is the same in seconds, on the embedded digits."""
  size, smoke = variants(variant, ("32", "64"))
  config = default()
  config.data.update(name="./photos", flip=True, holdout=0.1)
  with config.ignore_type():
    config.data.image_size = int(size)
    config.train.class_conditional = "auto"
  config.prediction.mean = "v"  # balances the levels: global shapes are learned sooner than by eps (Salimans & Ho 2022)
  config.schedule = dict(name="linear", T=500)
  config.network = dict(
    name="unet_ddpm",
    block_size=int(size) // 16,  # the UNet sees 16x16 blocks
    channels=48,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    groups=8,
  )
  config.time_sampler.name = "stratified"
  config.optimizer.update(learning_rate=1e-3, warmup_steps=100, decay="cosine", clip_norm=1.0)
  config.ema.rates = (0.999,)
  config.train.update(total_steps=1500, batch_size=32, label_dropout=0.1, checkpoint_every=250, preview_images=16)
  config.sampling.update(grid="uniform", steps=50, eta=0.0)  # DDIM: previews take seconds
  config.evaluation.covariance = "marginal"
  if smoke:
    config.data.update(name="digits", holdout=0.0)
    with config.ignore_type():
      config.data.image_size = None
    config.network.update(channels=16, block_size=1, attention_resolutions=(4,))
    config.schedule = dict(name="linear", T=20, start=1e-4, end=0.4)
    config.sampling.steps = 5
    config.optimizer.warmup_steps = 0
    config.train.update(total_steps=4, batch_size=16, checkpoint_every=2, log_every=2, preview_images=4)
  return config
