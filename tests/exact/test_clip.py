"""CLIP against an evaluation in torch, from files in OpenAI's format; its tokenizer by hand."""

import gzip

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data.sources import Arrays, Info
from ddpm_jax.errors import UserError
from ddpm_jax.features import clip, clip_tokens
from ddpm_jax.features.clip_tokens import CONTEXT, Tokenizer

MERGES = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>"), ("1", "1")]
VOCABULARY = 512 + len(MERGES) + 2


# ---------------------------------------------------------------- words to numbers


def test_merges_are_applied_in_their_order():
  tokenizer = Tokenizer(MERGES)
  parts = lambda text: [word for n in tokenizer.encode(text) for word, number in tokenizer.number.items() if number == n]
  assert parts("The  CAT") == ["the</w>", "cat</w>"]
  assert parts("cats") == ["ca", "t", "s</w>"]
  assert parts("that") == ["th", "a", "t</w>"]
  assert parts("it's") == ["i", "t</w>", "'", "s</w>"]
  assert parts("11") == ["1</w>", "1</w>"]  # digits are words of their own
  assert parts("&amp;amp;") == ["&</w>"]
  assert parts("é") == ["Ã", "©</w>"]  # two bytes of UTF-8


def test_tokens_have_a_start_and_an_end_and_are_cut_between_them():
  tokenizer = Tokenizer(MERGES)
  start = VOCABULARY - 2
  end = VOCABULARY - 1
  short, long = tokenizer(["the cat", "cat " * 200])
  assert short[:4].tolist() == [start, 512 + 1, 512 + 3, end] and not short[4:].any()
  assert long[0] == start and long[-1] == end and (long[1:-1] == 512 + 3).all()


def test_the_published_list_of_merges_begins_behind_its_title(tmp_path):
  """262,145 lines, of which CLIP uses 48,894; the numbers of start and end are 49,406 and 49,407."""
  lines = ['"title'] + [f"{chr(0x4E00 + n // 250)} {chr(0x4E00 + n % 250)}" for n in range(60_000)]
  with gzip.open(tmp_path / "merges.txt.gz", "wt", encoding="utf-8") as file:
    file.write("\n".join(lines))
  tokenizer = clip_tokens.load_tokenizer(tmp_path / "merges.txt.gz")
  assert tokenizer([""])[0][:3].tolist() == [49_406, 49_407, 0]


# ---------------------------------------------------------------- the networks


def torch_weights(torch):
  """A CLIP of two blocks of two heads each, 32-pixel images in patches of 8, under OpenAI's names, in half precision."""
  generator = torch.Generator().manual_seed(0)
  draw = lambda *shape, scale=0.05: scale * torch.randn(*shape, generator=generator)
  weights = {
    "visual.conv1.weight": draw(128, 3, 8, 8),
    "visual.class_embedding": draw(128),
    "visual.positional_embedding": draw(17, 128),
    "visual.proj": draw(128, 32, scale=0.2),
    "token_embedding.weight": draw(VOCABULARY, 128, scale=0.5),
    "positional_embedding": draw(CONTEXT, 128, scale=0.5),
    "text_projection": draw(128, 32, scale=0.2),
    "logit_scale": torch.tensor(4.6),
  }
  for norm in ("visual.ln_pre", "visual.ln_post", "ln_final"):
    weights |= {f"{norm}.weight": 1 + draw(128), f"{norm}.bias": draw(128)}
  for tower in ("visual.transformer", "transformer"):
    for block in (f"{tower}.resblocks.{index}" for index in range(2)):
      for norm in ("ln_1", "ln_2"):
        weights |= {f"{block}.{norm}.weight": 1 + draw(128), f"{block}.{norm}.bias": draw(128)}
      for name, shape in {
        "attn.in_proj_": (384, 128),
        "attn.out_proj.": (128, 128),
        "mlp.c_fc.": (512, 128),
        "mlp.c_proj.": (128, 512),
      }.items():
        weights |= {f"{block}.{name}weight": draw(*shape), f"{block}.{name}bias": draw(shape[0])}
  return {name: tensor.half() for name, tensor in weights.items()}


def torch_features(torch, weights, images, tokens):
  """Both towers through torch's own modules."""
  w = {name: tensor.float() for name, tensor in weights.items()}
  F = torch.nn.functional
  norm = lambda x, name: F.layer_norm(x, (128,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

  def transformer(x, name, mask):
    for block in (f"{name}.resblocks.{index}" for index in range(2)):
      attention = torch.nn.MultiheadAttention(128, 2, batch_first=True)
      attention.load_state_dict(
        {key.removeprefix(f"{block}.attn."): value for key, value in w.items() if key.startswith(f"{block}.attn.")}
      )
      y = norm(x, f"{block}.ln_1")
      x = x + attention(y, y, y, need_weights=False, attn_mask=mask)[0]
      y = F.linear(norm(x, f"{block}.ln_2"), w[f"{block}.mlp.c_fc.weight"], w[f"{block}.mlp.c_fc.bias"])
      x = x + F.linear(y * torch.sigmoid(1.702 * y), w[f"{block}.mlp.c_proj.weight"], w[f"{block}.mlp.c_proj.bias"])
    return x

  with torch.no_grad():
    mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (clip.MEAN, clip.STD))
    x = (torch.tensor(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
    x = F.conv2d(x, w["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + w["visual.positional_embedding"]
    x = transformer(norm(x, "visual.ln_pre"), "visual.transformer", None)
    seen = norm(x[:, 0], "visual.ln_post") @ w["visual.proj"]
    tokens = torch.tensor(tokens).long()
    x = w["token_embedding.weight"][tokens] + w["positional_embedding"]
    x = norm(transformer(x, "transformer", torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1)), "ln_final")
    read = x[torch.arange(len(x)), tokens.argmax(-1)] @ w["text_projection"]
  return [(each / each.norm(dim=-1, keepdim=True)).numpy() for each in (seen, read)]


@pytest.mark.torch
def test_features_and_score_are_those_of_torch(tmp_path):
  import torch

  weights = torch_weights(torch)
  torch.save(weights, tmp_path / "clip.pt")
  net = clip.load_clip(tmp_path / "clip.pt")
  assert net.image_size == 32 and net.name == "clip_vit_32_8"
  images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), np.uint8)
  texts = ["the cat", "a cat", "that"]
  tokenizer = Tokenizer(MERGES)
  resized = np.stack([Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC) for image in images])
  seen, read = torch_features(torch, weights, resized, tokenizer(texts))
  found = jax.jit(lambda net, images, tokens: (net(images)["features"], net.text(tokens)))(net, resized, tokenizer(texts))
  np.testing.assert_allclose(found[0], seen, atol=1e-5)  # of length 1; float32 over two blocks
  np.testing.assert_allclose(found[1], read, atol=1e-5)

  source = Arrays(Info("images", "", 20, 3, None), images, np.zeros(3))
  score = clip.clip_score(net, tokenizer, source, texts, batch_size=2)
  expected = 100 * np.maximum((seen * read).sum(1), 0)
  np.testing.assert_allclose(score, (expected.mean(), expected.std()), atol=1e-3)
  with pytest.raises(UserError, match="3 images and 2 texts"):
    clip.clip_score(net, tokenizer, source, texts[:2])
  with pytest.raises(UserError, match="takes RGB images of 32 pixels, not 20x20x3"):
    net.check((20, 20, 3))


@pytest.mark.torch
def test_files_of_other_networks_are_refused(tmp_path):
  import torch

  torch.save({"visual.layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "RN50.pt")
  with pytest.raises(UserError, match="does not hold a CLIP with a vision transformer"):
    clip.load_clip(tmp_path / "RN50.pt")
  with pytest.raises(UserError, match="no CLIP 'RN50'; ViT-B-32, ViT-B-16"):
    clip.load_clip(name="RN50")
