"""The published networks under PyTorch, written for these tests: functions of a state dict.

    ho, openai, ncsnpp: (tensors, x [B,C,H,W], time [B], …) -> [B,out,H,W];    classifier: … -> logits [B,classes]

`tensors` has a codebase's own names, and its precision is that of the computation: float64 is what float32 should have
given. Nothing is shared with the package. tests/parity/test_torch_networks.py holds them against the outputs that the
authors' code gave, which is what makes them stand for it.
"""

import math

import torch
import torch.nn.functional as F

torch.set_num_threads(1)  # for images as small as these threads cost more than they bring

# ---------------------------------------------------------------- layers


def under(tensors, name):
  """The tensors of a submodule, under their names there; empty if there is none."""
  return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def linear(p, x):
  return F.linear(x, p["weight"], p["bias"])


def conv(p, x, stride=1):
  """Zeros all around keep the size."""
  return F.conv2d(x, p["weight"], p["bias"], stride, p["weight"].shape[-1] // 2)


def norm(p, x, eps, groups=32):
  return F.group_norm(x, groups, p["weight"], p["bias"], eps)


def twice(x):
  return F.interpolate(x, scale_factor=2, mode="nearest")


def half(x):
  return F.avg_pool2d(x, 2)


def same(x):
  return x


def attend(q, k, v):
  """Over the last axis: [..., C, N], [..., C, M], [..., C, M] -> [..., C, N]."""
  logits = torch.einsum("...cn,...cm->...nm", q, k) / math.sqrt(q.shape[-2])
  return torch.einsum("...nm,...cm->...cn", logits.softmax(-1), v)


def phases(time, half, denominator):
  """time 10000^(-k / denominator) in float32, as all codebases compute it."""
  return time.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / denominator)


def sin_cos(time, dim):
  arguments = phases(time, dim // 2, dim // 2 - 1)
  return torch.cat([arguments.sin(), arguments.cos()], 1)


def cos_sin(time, dim):
  arguments = phases(time, dim // 2, dim // 2)
  return torch.cat([arguments.cos(), arguments.sin()], 1)


def embed(first, second, sinusoids):
  return linear(second, F.silu(linear(first, sinusoids.to(first["weight"].dtype))))


def count(tensors, name):
  """How many i have tensors under name.format(i)."""
  n = 0
  while any(key.startswith(name.format(n)) for key in tensors):
    n += 1
  return n


# ---------------------------------------------------------------- Ho's: DDPM, DDIM, Extended-Analytic-DPM on CelebA and LSUN


def ho(tensors, x, time):
  """Ho's UNet as ermongroup/ddim has it; with Extended-Analytic-DPM's second head after it, if the tensors have one."""
  at = lambda name: under(tensors, name)
  emb = embed(at("temb.dense.0"), at("temb.dense.1"), sin_cos(time, tensors["temb.dense.0.weight"].shape[1]))
  levels = count(tensors, "down.{}.block.0.")
  blocks = count(tensors, "down.0.block.{}.")

  def block(name, h):
    return _ho_attention(at(name.replace("block", "attn")), _ho_block(at(name), h, emb))

  skips = [h := conv(at("conv_in"), x)]
  for level in range(levels):
    for i in range(blocks):
      skips.append(h := block(f"down.{level}.block.{i}", h))
    if level < levels - 1:
      p = at(f"down.{level}.downsample.conv")
      skips.append(h := F.conv2d(F.pad(h, (0, 1, 0, 1)), p["weight"], p["bias"], stride=2) if p else half(h))
  h = _ho_attention(at("mid.attn_1"), _ho_block(at("mid.block_1"), h, emb))
  h = _ho_block(at("mid.block_2"), h, emb)
  for level in reversed(range(levels)):
    for i in range(blocks + 1):
      h = block(f"up.{level}.block.{i}", torch.cat([h, skips.pop()], 1))
    if level:
      p = at(f"up.{level}.upsample.conv")
      h = conv(p, twice(h)) if p else twice(h)
  out = conv(at("conv_out"), F.silu(norm(at("norm_out"), h, 1e-6)))
  if not at("conv_out2"):
    return out
  h = _ho_block(at("before_out"), h, emb) if at("before_out") else h
  return torch.cat([out, conv(at("conv_out2"), F.silu(norm(at("norm_out2"), h, 1e-6)))], 1)


def _ho_block(p, x, emb):
  h = conv(under(p, "conv1"), F.silu(norm(under(p, "norm1"), x, 1e-6)))
  h = h + linear(under(p, "temb_proj"), F.silu(emb))[:, :, None, None]
  h = conv(under(p, "conv2"), F.silu(norm(under(p, "norm2"), h, 1e-6)))
  return h + (conv(under(p, "nin_shortcut"), x) if under(p, "nin_shortcut") else x)


def _ho_attention(p, x):
  if not p:
    return x
  h = norm(under(p, "norm"), x, 1e-6)
  q, k, v = (conv(under(p, name), h).flatten(2) for name in "qkv")
  return x + conv(under(p, "proj_out"), attend(q, k, v).view(x.shape))


# ---------------------------------------------------------------- OpenAI's: Improved DDPM, ADM, Analytic-DPM on CIFAR-10


def openai(tensors, x, time, label=None, low_res=None, **options):
  """OpenAI's UNet, class-conditional or super-resolving; with Extended-Analytic-DPM's second head if there is one.

  options: of the authors' constructor, as far as the tensors do not tell: num_res_blocks, num_heads, num_heads_upsample,
    num_head_channels, use_new_attention_order; others are ignored.
  """
  at = lambda name: under(tensors, name)
  if low_res is not None:
    x = torch.cat([x, F.interpolate(low_res, x.shape[2:], mode="bilinear")], 1)
  emb = _openai_embedding(tensors, time)
  if label is not None:
    emb = emb + tensors["label_emb.weight"][label]
  h, skips = _openai_encoder(tensors, x, emb, options)
  for k in range(entries := len(skips)):
    p = at(f"output_blocks.{k}")
    h = _openai_block(under(p, "0"), torch.cat([h, skips.pop()], 1), emb)
    if attends := "1.qkv.weight" in p:
      h = _openai_attention(under(p, "1"), h, options, up=True)
    if (k + 1) % (options["num_res_blocks"] + 1) == 0 and k + 1 < entries:
      h = _openai_resample(under(p, "2" if attends else "1"), h, emb, twice)
  out = conv(at("out.2"), F.silu(norm(at("out.0"), h, 1e-5)))
  head = at("out2")
  if not head:
    return out
  complex = under(head, "0.in_layers")
  h = _openai_block(under(head, "0"), h, emb) if complex else h
  h = norm(under(head, "1" if complex else "0"), h, 1e-5)
  return torch.cat([out[:, : x.shape[1]], conv(under(head, "3" if complex else "2"), F.silu(h))], 1)


def classifier(tensors, x, time, **options):
  """ADM's classifier with attention pooling."""
  h, _ = _openai_encoder(tensors, x, _openai_embedding(tensors, time), options)
  p = under(tensors, "out.2")
  h = F.silu(norm(under(tensors, "out.0"), h, 1e-5)).flatten(2)
  h = torch.cat([h.mean(2, keepdim=True), h], 2) + p["positional_embedding"]
  qkv = F.conv1d(h, p["qkv_proj.weight"], p["qkv_proj.bias"])
  q, k, v = qkv.unflatten(1, (3, -1, options["num_head_channels"])).unbind(1)
  h = attend(q[..., :1], k, v).flatten(1, 2)
  return F.conv1d(h, p["c_proj.weight"], p["c_proj.bias"])[:, :, 0]


def _openai_embedding(tensors, time):
  first = under(tensors, "time_embed.0")
  second = under(tensors, "time_embed.2")
  return embed(first, second, cos_sin(time, first["weight"].shape[1]))


def _openai_encoder(tensors, x, emb, options):
  """(feature map of the middle, skips)."""
  at = lambda name: under(tensors, name)
  skips = [h := conv(at("input_blocks.0.0"), x)]
  entries = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("input_blocks."))
  for k in range(1, entries):
    p = at(f"input_blocks.{k}")
    if k % (options["num_res_blocks"] + 1) == 0:
      h = _openai_resample(under(p, "0"), h, emb, half)
    else:
      h = _openai_block(under(p, "0"), h, emb)
      h = _openai_attention(under(p, "1"), h, options) if under(p, "1") else h
    skips.append(h)
  h = _openai_block(at("middle_block.0"), h, emb)
  h = _openai_attention(at("middle_block.1"), h, options)
  return _openai_block(at("middle_block.2"), h, emb), skips


def _openai_block(p, x, emb, resample=same):
  h = conv(under(p, "in_layers.2"), resample(F.silu(norm(under(p, "in_layers.0"), x, 1e-5))))
  x = resample(x)
  shift = linear(under(p, "emb_layers.1"), F.silu(emb))[:, :, None, None]
  if shift.shape[1] == 2 * h.shape[1]:
    scale, shift = shift.chunk(2, 1)
    h = norm(under(p, "out_layers.0"), h, 1e-5) * (1 + scale) + shift
  else:
    h = norm(under(p, "out_layers.0"), h + shift, 1e-5)
  h = conv(under(p, "out_layers.3"), F.silu(h))
  return h + (conv(under(p, "skip_connection"), x) if under(p, "skip_connection") else x)


def _openai_resample(p, h, emb, resample):
  """By a residual block, a convolution, or without weights."""
  if under(p, "in_layers"):
    return _openai_block(p, h, emb, resample)
  if resample is half:
    return conv(under(p, "op"), h, stride=2) if p else half(h)
  return conv(under(p, "conv"), twice(h)) if p else twice(h)


def _openai_attention(p, x, options, up=False):
  channels = x.shape[1]
  head_channels = options.get("num_head_channels", -1)
  heads = options.get("num_heads", 1)
  heads_up = options.get("num_heads_upsample", -1)
  heads = heads_up if up and heads_up != -1 else heads
  heads = heads if head_channels == -1 else channels // head_channels
  qkv = F.conv1d(norm(under(p, "norm"), x, 1e-5).flatten(2), p["qkv.weight"], p["qkv.bias"])
  if options.get("use_new_attention_order"):
    q, k, v = qkv.unflatten(1, (3, heads, -1)).unbind(1)
  else:
    q, k, v = qkv.unflatten(1, (heads, 3, -1)).unbind(2)
  h = attend(q, k, v).flatten(1, 2)
  return x + F.conv1d(h, p["proj_out.weight"], p["proj_out.bias"]).view(x.shape)


# ---------------------------------------------------------------- score_sde's: DDPM++ under VP-SDE


def ncsnpp(tensors, x, time, *, levels, num_res_blocks):
  """DDPM++ as score_sde names it (NCSN++ without FIR filters or pyramids); `time` is 999 t; with a second head if there."""
  queue = [under(tensors, f"all_modules.{k}") for k in range(count(tensors, "all_modules.{}."))]
  emb = embed(queue.pop(0), queue.pop(0), sin_cos(time, tensors["all_modules.0.weight"].shape[1]))
  block = lambda h, resample=same: _ncsnpp_block(queue.pop(0), h, emb, resample)
  attention = lambda h: _ncsnpp_attention(queue.pop(0), h) if "NIN_0.W" in queue[0] else h

  skips = [h := conv(queue.pop(0), x)]
  for level in range(levels):
    for _ in range(num_res_blocks):
      skips.append(h := attention(block(h)))
    if level < levels - 1:
      skips.append(h := block(h, half))
  h = block(attention(block(h)))
  for level in reversed(range(levels)):
    for _ in range(num_res_blocks + 1):
      h = block(torch.cat([h, skips.pop()], 1))
    h = attention(h)
    if level:
      h = block(h, twice)
  out = conv(queue.pop(1), F.silu(_ncsnpp_norm(queue.pop(0), h)))
  if "conv_out2.weight" not in tensors:
    return out
  return torch.cat([out, conv(under(tensors, "conv_out2"), F.silu(_ncsnpp_norm(under(tensors, "gn_out2"), h)))], 1)


def _ncsnpp_norm(p, x):
  return norm(p, x, 1e-6, min(x.shape[1] // 4, 32))


def _ncsnpp_block(p, x, emb, resample=same):
  h = conv(under(p, "Conv_0"), resample(F.silu(_ncsnpp_norm(under(p, "GroupNorm_0"), x))))
  h = h + linear(under(p, "Dense_0"), F.silu(emb))[:, :, None, None]
  h = conv(under(p, "Conv_1"), F.silu(_ncsnpp_norm(under(p, "GroupNorm_1"), h)))
  x = resample(x)
  return (h + (conv(under(p, "Conv_2"), x) if under(p, "Conv_2") else x)) / math.sqrt(2)


def _ncsnpp_attention(p, x):
  dense = lambda i, h: torch.einsum("bcn,cd->bdn", h, p[f"NIN_{i}.W"]) + p[f"NIN_{i}.b"][:, None]
  h = _ncsnpp_norm(under(p, "GroupNorm_0"), x).flatten(2)
  h = attend(dense(0, h), dense(1, h), dense(2, h))
  return (x + dense(3, h).view(x.shape)) / math.sqrt(2)
