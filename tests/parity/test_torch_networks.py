"""The PyTorch networks of tests/helpers/torch_networks.py against the outputs of the authors' code."""

import numpy as np
import pytest
from networks import filled, filler, shapes

from ddpm_jax import models
from ddpm_jax.convert import names

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
torch_networks = pytest.importorskip("torch_networks")

STORED = [
  (file, group)
  for file, groups in {
    "unet_ddim": "model0 model1",
    "unet_improved": "unet_scaleshift_learnsigma_class unet_plain superres",
    "unet_guided": "unet_updown_legacyattn unet_updown_newattn unet_halfmult_avgpool unet_convresample superres",
    "encoder_guided": "encoder_attention",
    "unet_extended": "UNetModel4Pretrained_simple UNetModel4Pretrained_complex Model4Pretrained_simple "
    "Model4Pretrained_complex",
  }.items()
  for group in groups.split()
]


@pytest.mark.parametrize("file, group", STORED)
def test_outputs_of_the_authors_code(golden, file, group):
  stored = golden(file)
  args = stored.args(group)
  has = lambda name: f"{group}/{name}" in stored.arrays.files
  tensor = lambda array: torch.tensor(array.astype(np.float32))
  tensors = stored.state_dict(group) or stored.state_dict("unet_updown_legacyattn")  # "same weights as group ..."
  tensors = {key: tensor(value) for key, value in tensors.items()}
  x = tensor(stored[f"{group}/x"])
  time = torch.tensor(stored[f"{group}/t"]).expand(len(stored[f"{group}/x"]))
  given = {"label": torch.tensor(stored[f"{group}/y"])} if has("y") else {}
  given |= {"low_res": tensor(stored[f"{group}/low_res"])} if has("low_res") else {}
  if "pool" in args:
    out = torch_networks.classifier(tensors, x, time, **args)
  elif "model_channels" in args:
    out = torch_networks.openai(tensors, x, time, **given, **args)
  else:
    out = torch_networks.ho(tensors, x, time)
  want = stored[f"{group}/out"]
  # float32 through some 40 layers; measured: 1.2e-6, and 0 for ADM's networks
  np.testing.assert_allclose(out, want, rtol=0, atol=5e-6 * np.abs(want).max())


def test_ddpmpp_filled_with_known_numbers():
  """As in tests/parity/test_networks.py, N1: moments and samples that the authors' code gave for these weights."""
  backbone = dict(name="ncsnpp", channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,))
  network = models.make("two_headed", backbone=backbone)
  x = filler("x", 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
  table = names.entries(network, shapes(network, np.zeros((2, 16, 16, 3)), np.zeros(2)), "ncsnpp")
  tensors = {key: torch.tensor(np.float64(value)) for key, value in filled(table).items()}
  out = torch_networks.ncsnpp(tensors, torch.tensor(x), torch.tensor([37, 512]), levels=2, num_res_blocks=1).numpy()
  np.testing.assert_allclose([out.mean(), out.std()], [0.103151, 0.585256], rtol=0, atol=2e-6)
  samples = [-0.35081, -0.48937, -0.18309, -0.0944, -0.62156, -0.81369, -0.07439]
  np.testing.assert_allclose([*out.flat[:6], out.flat[-1]], samples, rtol=0, atol=1.2e-5)
