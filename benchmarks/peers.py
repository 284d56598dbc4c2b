"""The networks that the speed benchmarks compare: ours, and diffusers' `UNet2DModel` with the same weights under PyTorch.

cifar    DDPM's for CIFAR-10, google/ddpm-cifar10-32: 35.7 M parameters
small    the same on 28x28x1 with 32 channels, widths 1, 2, 2 and attention at 14x14: 1.6 M parameters
adm64    ADM's for ImageNet 64x64, without its labels: 295 M parameters
tiny     to try the scripts
"""

import functools
import itertools

import numpy as np
import side_by_side

HO = {  # what diffusers' network needs to be Ho's, and ADM's
  "norm_eps": 1e-6,
  "downsample_padding": 0,
  "flip_sin_to_cos": False,
  "freq_shift": 1,
  "attention_head_dim": None,
}
ADM = {
  "resnet_time_scale_shift": "scale_shift",
  "attn_norm_num_groups": 32,
  "downsample_type": "resnet",
  "upsample_type": "resnet",
  "attention_head_dim": 64,
}
ADM64 = dict(channels=192, channel_mult=(1, 2, 3, 4), num_res_blocks=3, attention_resolutions=(32, 16, 8))
NETWORKS = {  # network section of a config, image size, image channels
  "cifar": (dict(channels=128, channel_mult=(1, 2, 2, 2), num_res_blocks=2, attention_resolutions=(16,)), 32, 3),
  "small": (dict(channels=32, channel_mult=(1, 2, 2), num_res_blocks=2, attention_resolutions=(14,)), 28, 1),
  "adm64": (dict(name="unet_adm", head_channels=64, resblock_updown=True, **ADM64), 64, 3),
  "tiny": (dict(channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,)), 8, 1),
}
CLIP = 1.0  # of training steps
RATE = 2e-4
DROPOUT = 0.1


def config(name: str):
  """Our config: the training recipe of cifar10_ddpm; of ADM's network the mean alone."""
  from ddpm_jax.config import default

  network, size, channels = NETWORKS[name]
  made = default()
  with made.ignore_type():
    made.data.update(image_size=size, channels=channels)
  made.network = {"name": "unet_ddpm", "dropout": DROPOUT, **network}
  made.optimizer.update(learning_rate=RATE, clip_norm=CLIP)
  made.ema.update(rates=(0.9999,), warmup=False)
  made.train.update(total_steps=1000)
  return made


def weights(name: str):
  """Random weights, the same in every process; none is zero, so that an error anywhere shows.

  The last layer's are a hundredth: larger ones make sampling chaotic, and rounding grows to other images.
  """
  import jax

  from ddpm_jax.convert.convert import parameter_shapes

  random = np.random.default_rng(0)
  shapes = parameter_shapes(module(name), config(name))
  draw = lambda leaf: np.float32(random.standard_normal(leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5)
  scale = lambda path, leaf: draw(leaf) if len(leaf.shape) > 1 else np.full(leaf.shape, path[-1].key == "scale", np.float32)
  drawn = jax.tree_util.tree_map_with_path(scale, shapes)
  drawn["out"]["conv"]["kernel"] /= 100
  return drawn


def module(name: str):
  from ddpm_jax import build

  return build.model(config(name), NETWORKS[name][2], None)


def inputs(name: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
  """(x [B,H,W,C], time [B])."""
  _, size, channels = NETWORKS[name]
  random = np.random.default_rng(batch)
  x = random.standard_normal((batch, size, size, channels)).astype(np.float32)
  return x, random.integers(0, 1000, batch).astype(np.float32)


def torch_network(name: str):
  """diffusers' network with `weights(name)`; channels-last or not is the caller's choice."""
  import torch
  from diffusers import UNet2DModel

  from ddpm_jax.convert import names

  fields, size, channels = NETWORKS[name]
  adm = fields.get("name") == "unet_adm"
  attends = [size >> level in fields["attention_resolutions"] for level in range(len(fields["channel_mult"]))]
  blocks = lambda way, plain, levels: [f"Attn{way}Block2D" if attend else f"{plain}Block2D" for attend in levels]
  network = UNet2DModel(
    sample_size=size,
    in_channels=channels,
    out_channels=channels,
    block_out_channels=[fields["channels"] * mult for mult in fields["channel_mult"]],
    layers_per_block=fields["num_res_blocks"],
    down_block_types=blocks("Down", "ResnetDownsample" if adm else "Down", attends),
    up_block_types=blocks("Up", "ResnetUpsample" if adm else "Up", attends[::-1]),
    dropout=DROPOUT,
    **(ADM if adm else HO),
  )
  params = weights(name)
  tensors = names.to_tensors(names.entries(module(name), params, "diffusers"), params)
  network.load_state_dict({key: torch.from_numpy(tensor) for key, tensor in tensors.items()})
  return network.eval()


def to_torch(x: np.ndarray, layout: str):
  """[B,H,W,C] as PyTorch's [B,C,H,W]; "channels_last" keeps the order in memory."""
  import torch

  memory = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}[layout]
  return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=memory)


def tune(forward, cores: int) -> dict:
  """The fastest of PyTorch's layouts and numbers of threads for forward(layout), and what each took.

  Both stay set: the caller's network is converted by `forward`.
  """
  import torch

  tried = {}
  for layout, threads in itertools.product(("channels_last", "contiguous"), sorted({cores, max(cores // 2, 1), 1})):
    torch.set_num_threads(threads)
    once = functools.partial(forward, layout)
    once()
    tried[layout, threads] = min(side_by_side.timed(once) for _ in range(2))
  layout, threads = min(tried, key=tried.get)
  torch.set_num_threads(threads)
  seconds = {f"{layout}, {threads} threads": round(t, 4) for (layout, threads), t in tried.items()}
  return {"layout": layout, "threads": threads, "tried": seconds}
