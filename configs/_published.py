"""A small variant of the configs of published models, which runs in seconds."""


def shrink(config):
  """Changes the config to the embedded digits, with a small network and a short schedule."""
  config.data.update(name="digits", crop="adm", image_size=None)
  if config.data.low_res_size is not None:
    config.data.low_res_size = 4
  network = config.network
  network.update(channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,))
  if network.get("head_channels"):
    network.head_channels = 16
  if "dtype" in network:
    network.dtype = "float32"
  config.schedule.T = 40
  config.optimizer.warmup_steps = 0
  config.train.per_device_batch = None
  config.train.update(total_steps=4, batch_size=16, checkpoint_every=2, log_every=2, preview_images=4)
  config.sampling.update(grid="uniform", steps=5)
  config.evaluation.update(grid="uniform", steps=5)
  return config
