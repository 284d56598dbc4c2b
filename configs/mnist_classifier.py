"""A noisy classifier for MNIST, trained on the levels of the `mnist` config, which it guides (ADM, section 4).

The encoder half of ADM's UNet with its attention pool; AdamW with weight decay 0.05 and the learning rate falling linearly
to 0, as ADM's classifiers. Reports accuracy by quarters of the noise level: the least noisy (_q0) should be near 99 %.

    ddpm-jax train    --config mnist_classifier --workdir runs/mnist_classifier
    ddpm-jax evaluate --workdir runs/mnist_classifier
    ddpm-jax sample   --workdir runs/mnist --seeds 0-99 --guidance 3 --classifier runs/mnist_classifier
"""

from ddpm_jax.configs import mnist


def get_config(variant: str = ""):
  """The run; "smoke" is the same in a minute, on the embedded digits."""
  config = mnist.get_config(variant)
  config.network = dict(
    name="classifier",
    channels=32,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    attention_resolutions=(7,),
    head_channels=32,
    resblock_updown=True,
    groups=8,
  )
  config.loss.name = "classifier"
  config.optimizer.update(learning_rate=1e-3, weight_decay=0.05, warmup_steps=0, decay="linear", clip_norm=None)
  config.ema.rates = ()
  config.train.update(total_steps=4000, preview_every=0)
  if variant == "smoke":
    config.network.update(channels=16, channel_mult=(1, 2), attention_resolutions=(4,), head_channels=16)
    config.train.total_steps = 4
  return config
