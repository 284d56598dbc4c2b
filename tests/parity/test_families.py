"""Further families of checkpoints: their networks against their authors' code, from their files and back.

What is sampled with them is compared in test_lucidrains.py, test_edm.py and test_consistency.py.
"""

import pickle
import sys
import types

import families
import numpy as np
import pytest
from families import GROUPS, close, weights
from reference import nhwc

from ddpm_jax import build
from ddpm_jax.convert import architecture, convert, export, lucidrains, weight_files
from ddpm_jax.diffusion import grid
from ddpm_jax.errors import UserError

NETWORKS = [group for group in families.groups("") if "state_dict_group" not in GROUPS[group]]


# ---------------------------------------------------------------- networks


def test_every_group_is_compared():
  """Each kind has a test over all groups of that kind."""
  kinds = ("schedule/", "p_sample/", "ddim/", "learned_variance/", "precond/", "edm_sampler/", "denoise/", "sample/")
  alone = {"trainer", "scalings", "sigmas_n5", "sigmas_n18", "sigmas_n40"}
  assert {group for group in GROUPS if not group.startswith(kinds)} - alone == set(families.groups(""))
  assert families.ANSWERS.keys() == set(NETWORKS)


@pytest.mark.parametrize("group", families.groups(""))
def test_networks(group):
  of = GROUPS[group].get("state_dict_group", group)
  x = families.stored(f"{group}/x")
  cond = families.condition(group)
  if group == "attn_first_timestepclass":  # its labels are real numbers
    cond = {"label": families.stored(f"{group}/class_labels")}
  time = families.stored(f"{group}/{'noise_labels' if families.has(f'{group}/noise_labels') else 't'}")
  tolerance = 5e-2 if group.endswith("_fp16attention") else 2e-4  # families_index.json: their attention is in float16
  close(families.output(of, x, time, cond), nhwc(families.stored(f"{group}/out")), tolerance)
  if families.has(f"{group}/out_augment"):
    told = (cond or {}) | {"augment": families.stored(f"{group}/augment_labels")}
    close(families.output(of, x, time, told), nhwc(families.stored(f"{group}/out_augment")))
  if families.has(f"{group}/out_t_float"):
    time = families.stored(f"{group}/t_float")
    close(families.output(of, x, time, cond), nhwc(families.stored(f"{group}/out_t_float")))


@pytest.mark.parametrize("group", NETWORKS)
def test_exports_are_bitwise(tmp_path, group):
  conversion = families.conversion(group)
  convert.save(conversion, tmp_path / "run", "weights.pt")
  export.export(tmp_path / "run", tmp_path / "back.safetensors")
  back = weight_files.read(tmp_path / "back.safetensors").tensors
  theirs = {key.removeprefix("model."): tensor for key, tensor in weights(group).items()}
  theirs.pop("u", None)  # the levels of iDDPMPrecond, not its network
  assert back.keys() == theirs.keys()
  for key, tensor in back.items():
    np.testing.assert_array_equal(tensor, theirs[key])


# ---------------------------------------------------------------- what is asked, and what is refused


def test_a_snapshot_of_edm_is_its_average(tmp_path, monkeypatch):
  """network-snapshot-*.pkl: a module that is pickled with its source, which is not run."""
  persistence = types.ModuleType("torch_utils.persistence")

  def rebuild(meta):
    raise AssertionError("the file's code ran")

  rebuild.__module__ = "torch_utils.persistence"
  rebuild.__qualname__ = "_reconstruct_persistent_obj"
  persistence._reconstruct_persistent_obj = rebuild
  monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
  monkeypatch.setitem(sys.modules, "torch_utils.persistence", persistence)

  class Module:
    def __init__(self, state):
      self.state = state

    def __reduce__(self):
      return rebuild, ({"type": "class", "module_src": "raise", "class_name": "EDMPrecond", "state": self.state},)

  tensors = {key.removeprefix("model."): tensor for key, tensor in weights("ddpmpp").items()}
  model = Module({"_parameters": tensors, "_buffers": {}, "_modules": {}})
  content = {"ema": Module({"_parameters": {}, "_modules": {"model": model}}), "loss_fn": None, "augment_pipe": None}
  (tmp_path / "network-snapshot-001000.pkl").write_bytes(pickle.dumps(content, 4))
  found = weight_files.read(tmp_path / "network-snapshot-001000.pkl")
  assert found.averaged and found.tensors.keys() == tensors.keys()
  np.testing.assert_array_equal(found.tensors["map_layer0.bias"], tensors["map_layer0.bias"])


@pytest.mark.parametrize(
  "group, answers, message",
  [
    ("ddpmpp", [], "do not determine prediction.mean"),
    ("ddpmpp", ["prediction.mean=x0"], "prediction.mean='x0' is not what such a network predicts"),
    ("unet_classcond", [], "do not determine network.num_heads, data.image_size, prediction.mean"),
    ("unet_m12", [], "do not determine data.image_size"),
  ],
)
def test_what_files_do_not_say_is_asked(tmp_path, group, answers, message):
  with pytest.raises(UserError, match=message):
    convert.convert(families.file_of(group, tmp_path), overrides=answers)


@pytest.mark.parametrize(
  "group, change, message",
  [
    ("unet_m12", lambda t: t.update({"time_mlp.0.weights": np.zeros(8)}), "learned or random sinusoids"),
    ("unet_m12", lambda t: t.update({"init_conv.weight": np.zeros((16, 6, 7, 7))}), "self-conditioning"),
    ("unet_m12", lambda t: t.update({"time_mlp.1.weight": np.zeros((16, 64))}), "are not multiples of the 64"),
    ("unet_m12", lambda t: t.pop("mid_attn.mem_kv"), "incomplete: there is no mid_attn.mem_kv"),
    ("ddpmpp", lambda t: t.update({"dec.16x16_aux_up.weight": np.zeros(3)}), "aux_up layers"),
    ("ddpmpp", lambda t: t.update({"enc.8x8_down.skip.resample_filter": np.ones((1, 1, 3, 3))}), "other filters"),
  ],
)
def test_options_without_a_network_here_are_refused(group, change, message):
  tensors = {key.removeprefix("model."): tensor for key, tensor in weights(group).items()}
  change(tensors)
  with pytest.raises(UserError, match=message):
    architecture.infer(tensors)


@pytest.mark.parametrize(
  "bias, message",
  [
    (np.zeros(16, np.int8), "the weights init_conv.bias as int8: save the model as float32"),
    (np.zeros(16, bool), "the weights init_conv.bias as bool"),
  ],
)
def test_weights_are_real_numbers(tmp_path, bias, message):
  (tmp_path / "weights.pkl").write_bytes(pickle.dumps(weights("unet_m12") | {"init_conv.bias": bias}, 2))
  with pytest.raises(UserError, match=message):
    convert.convert(tmp_path / "weights.pkl", overrides=families.ANSWERS["unet_m12"])


@pytest.mark.parametrize("betas", [np.zeros(0), np.zeros(1), np.full((2, 5), 0.1)])
def test_betas_that_are_no_schedule(betas):
  with pytest.raises(UserError, match="The buffer betas has the shape"):
    lucidrains.process({"betas": betas})


def test_a_consistency_model_is_not_trained():
  with pytest.raises(UserError, match="sampled here, not trained"):
    build.training_network(families.conversion("unet_classcond").config, None)
  assert np.array_equal(build.grid(families.conversion("unet_classcond").config), grid.trailing(40, 1))
