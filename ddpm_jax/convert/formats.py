"""What is read, as tables: containers, codebases, and diffusers' schedulers. docs/checkpoints.md is made from them."""

from ddpm_jax.convert import diffusers_scheduler
from ddpm_jax.convert.dialects import DIALECTS

CONTAINERS: dict[str, str] = {  # file -> what is done with it
  "`.pt` `.pth` `.ckpt` `.bin` of PyTorch": "read without PyTorch, and without running what it names",
  "EDM's `network-snapshot-*.pkl`": "its average is read, without its source code",
  "`.safetensors`": "read, F64 to F8; a damaged or truncated file is refused",
  "`….index.json` and its shards": "read as one model; a missing shard is refused",
  "a pipeline of diffusers": "`unet_ema/` before `unet/`, and the scheduler beside it",
  "a folder with `config.json`": "read; without a scheduler, the schedule is asked for",
  "variants (`.fp16.`, `.non_ema.`)": "left out beside the default file; `--weights fp16` takes one",
  "`PREFIX.index`, `PREFIX.data-…` of TensorFlow": "read without TensorFlow",
  "`.gz`, `.bz2`, `.xz`, `.zst`": "refused, with the command that unpacks it",
  "another pickled module": "refused, with three lines of PyTorch that save its weights alone",
}
SETS: dict[str, str] = {  # what lies in one file -> what is done with it
  "one prefix of all names (`module.`, `_orig_mod.`, `unet.`, any other)": "removed, where a known network is behind it",
  "several prefixes, or several dictionaries": "one set of weights each; `--weights NAME` chooses",
  "an average (`ema`, `ema_model`, `model_ema`, `shadow`, `averaged`, as a whole word of a key)": "taken, and reported",
  "`shadow_params`, a list": "taken under the names of the model beside it",
  "`model_ema.` without dots (Lightning)": "taken under the names of the model beside it",
  "a file called `ema_RATE_STEP.pt`": "an average of that rate; no other word in a path counts",
  "an optimizer": "left out",
  "settings: `Namespace`, paths, dates, NumPy scalars, OmegaConf": "left out",
  "tensors outside of the model": "left out and reported; lucidrains' `betas` and `loss_weight` tell the process",
}
CODEBASES: dict[str, tuple[str, str]] = {  # dialect -> (codebases, what tensors do not tell)
  "pesser": ("PyTorch ports of Ho's UNet: pytorch_diffusion, DDIM, Analytic-DPM, Extended-Analytic-DPM", "size, schedule"),
  "ho_tf": ("Ho's TensorFlow code", "size, schedule"),
  "openai": ("improved-diffusion, guided-diffusion, P2-weighting, Analytic-DPM's CIFAR networks", "size, heads, schedule"),
  "consistency": ("consistency_models: EDM, CD and CT", "size, heads, `prediction.mean` (edm or consistency)"),
  "ncsnpp": ("score_sde_pytorch's DDPM++", "size, schedule"),
  "diffusers": ("UNet2DModel", "nothing, in its folder; a lone file: size, schedule, conventions"),
  "edm_adm": ("EDM's DhariwalUNet", "`prediction.mean` (edm; eps for iDDPM)"),
  "edm_song": ("EDM's SongUNet: DDPM++ and NCSN++", "`prediction.mean` (edm, vp or ve)"),
  "lucidrains": ("denoising-diffusion-pytorch: `model-N.pt`", "size"),
}


def tables() -> str:
  """The tables in Markdown."""
  assert CODEBASES.keys() == DIALECTS.keys()
  rows = lambda head, table: [head, "|---" * (head.count("|") - 1) + "|", *(f"| {k} | {v} |" for k, v in table.items())]
  codebases = {f"`{name}`": f"{what} | {asked}" for name, (what, asked) in CODEBASES.items()}
  schedulers = ", ".join(f"`{name}`" for name in diffusers_scheduler.CLASSES)
  return "\n".join(
    [
      "## Files\n",
      *rows("| file | what is done with it |", CONTAINERS),
      "\n## Weights inside a file\n",
      *rows("| what lies in it | what is done with it |", SETS),
      "\n## Codebases\n",
      *rows("| `--family` | codebases | answers that are needed |", codebases),
      "\n## Schedulers of diffusers\n",
      f"Known are {schedulers}.\n",
      "Their fields are read by whitelist: an unknown field, or a value that changes the process and is not known here, is",
      "refused by name. Schedulers of flow matching, EDM, VE and consistency models are refused by class.",
      "",
    ]
  )
