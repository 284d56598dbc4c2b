"""DDPM on MNIST with T = 500: the experiment of the DDIM notes, 500 ancestral steps beside 50 DDIM steps.

A small UNet on blocks of 2x2 pixels (Ho's `block_size`), sized for CPUs: 7,000 steps take about an hour on two
cores, minutes on an accelerator.

    ddpm-jax train    --config mnist --workdir runs/mnist
    ddpm-jax sample   --workdir runs/mnist --seeds 0-63
    ddpm-jax sample   --workdir runs/mnist --seeds 0-63 --sampler ddim --steps 50
    ddpm-jax evaluate --workdir runs/mnist --likelihood 256 --distance 1000
"""

from ddpm_jax.config import default
from ddpm_jax.configs._variants import variants


def get_config(variant: str = ""):
  """The run; "smoke" is the same in a minute, on the embedded digits where MNIST is absent."""
  _, smoke = variants(variant)
  config = default()
  config.data.name = "mnist"
  config.prediction.mean = "v"  # balances the levels: global shapes are learnt sooner than by eps (Salimans & Ho 2022)
  config.schedule = dict(name="linear", T=500)
  config.network = dict(
    name="unet_ddpm",
    block_size=2,
    channels=48,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(7,),
    groups=8,
  )
  config.time_sampler.name = "stratified"
  config.optimizer.update(learning_rate=1e-3, warmup_steps=200, decay="cosine", clip_norm=1.0)
  config.ema.rates = (0.999,)
  config.train.update(total_steps=7000, batch_size=64, checkpoint_every=500, preview_every=0)
  config.sampling.batch_size = 128
  config.evaluation.covariance = "marginal"  # the tighter bound of the two fixed ones
  if smoke:
    config.data.name = "digits"
    config.network.update(channels=16, attention_resolutions=(2,))
    config.schedule = dict(name="linear", T=20, start=1e-4, end=0.4)  # scaled to 20 levels it would end in pure noise
    config.optimizer.warmup_steps = 0
    config.train.update(total_steps=4, batch_size=16, checkpoint_every=2, log_every=2, preview_images=4)
  return config
