"""The published checkpoints of the six codebases: files, contents, sources and expected results.

A model's config is in configs/; this module describes its file.
"""

import dataclasses
import difflib
import pathlib

from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax import config as configs
from ddpm_jax.convert import weight_files
from ddpm_jax.errors import UserError
from ddpm_jax.files import download as fetch

_MARCH = "https://openaipublic.blob.core.windows.net/diffusion/march-2021/"
_JULY = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"
_CONSISTENCY = "https://openaipublic.blob.core.windows.net/consistency/"
_HEIBOX = "https://heibox.uni-heidelberg.de/f/"
_DRIVE = "https://drive.google.com/file/d/"


@dataclasses.dataclass(frozen=True)
class Published:
  """One published file.

  Attributes:
    name: our name, for --like and --weights.
    file: as published, with the folder where the file's own name is not unique; None where no name is published.
    data: what it was trained on.
    config_name: in configs/, "name:variant".
    expected: published results, FID unless said otherwise.
    url: URL of the file, or of a page where it can be downloaded by hand.
    md5: MD5 of the file, where published.
    step: training steps.
    averaged: whether the weights are averages (of rate 0.9999 unless the config says otherwise).
    attention_order: of its qkv tensors.
    backbone: for a second head (config npr or sn), the config of its backbone.
    fingerprint: fingerprint of a forward pass (fingerprint.py), where measured.
  """

  name: str
  file: str | None
  data: str
  config_name: str
  expected: str
  url: str
  md5: str | None = None
  step: int = 0
  averaged: bool = True
  attention_order: str = "legacy"
  backbone: str | None = None
  complex_head: bool = False
  fingerprint: tuple[float, ...] | None = None

  @property
  def download(self) -> fetch.File:
    """What to fetch; of a TensorFlow checkpoint, whose name is a prefix, the index, beside which its data belong."""
    file = self.file or f"{self.name}.pt"
    name = f"files/{file}.index" if ".ckpt-" in file else f"files/{file}"
    page = self.url.startswith((_DRIVE, "https://www.dropbox.com", "https://github.com"))
    return fetch.File(name, self.url, self.md5 and f"md5:{self.md5}", by_hand=page)

  def config(self) -> ConfigDict:
    """Its complete config."""
    config = configs.load(self.config_name)
    if self.backbone is None:
      return config
    below = configs.load(self.backbone)
    with below.unlocked(), below.ignore_type():
      below.data.channels = 3
    config.network.complex = self.complex_head
    if below.schedule.name == "cosine":
      config.sampling.cap_pixels = 1.0  # Analytic-DPM's appendix: 2 grey levels on linear schedules, 1 on cosine ones
    return build.on_backbone(config, below)


def _ho() -> list[Published]:
  """Ho's networks: TensorFlow's checkpoints, and their conversions by pesser/pytorch_diffusion."""
  models = {
    "cifar10": (790_000, "CIFAR-10", "cifar10_ddpm", "3.17, IS 9.46, <= 3.75 bits/dim"),
    "lsun_bedroom": (2_388_000, "LSUN bedroom 256", "lsun_ddpm:bedroom", "6.36 (4.90 with a larger model)"),
    "lsun_cat": (1_761_000, "LSUN cat 256", "lsun_ddpm:cat", "19.75"),
    "lsun_church": (4_432_000, "LSUN church 256", "lsun_ddpm:church", "7.89"),
  }
  ports = {
    "cifar10": ("869980b53bf5416c8a28", "82ed3067fd1002f5cf4c339fb80c4669"),
    "ema_cifar10": ("2e4f01e2d9ee49bab1d5", "1fa350b952534ae442b1d5235cce5cd3"),
    "lsun_bedroom": ("f179d4f21ebc4d43bbfe", "f70280ac0e08b8e696f42cb8e948ff1c"),
    "ema_lsun_bedroom": ("b95206528f384185889b", "1921fa46b66a3665e450e42f36c2720f"),
    "lsun_cat": ("fac870bd988348eab88e", "bbee0e7c3d7abfb6e2539eaf2fb9987b"),
    "ema_lsun_cat": ("0701aac3aa69457bbe34", "646f23f4821f2459b8bafc57fd824558"),
    "lsun_church": ("2711a6f712e34b06b9d8", "eb619b8a5ab95ef80f94ce8a5488dae3"),
    "ema_lsun_church": ("44ccb50ef3c6436db52e", "fdc68a23938c2397caba4a260bc2445f"),
  }
  entries = []
  for key, (link, md5) in ports.items():
    averaged = key.startswith("ema_")
    model = key.removeprefix("ema_")
    step, data, config, expected = models[model]
    name = f"{model.replace('_', '-')}-ddpm" + ("" if averaged else "-raw")
    file = f"{'ema_' if averaged else ''}diffusion_{model}_model/model-{step}.ckpt"
    expected = expected if averaged else "worse than the averages: about 12 on CIFAR-10"
    entries.append(Published(name, file, data, config, expected, f"{_HEIBOX}{link}/?dl=1", md5, step, averaged))
  page = "https://www.dropbox.com/sh/pm6tn31da21yrx4/AABWKZnBzIROmDjGxpB6vn6Ja"
  for model, (step, data, config, expected) in models.items():
    name = f"{model.replace('_', '-')}-ddpm-tf"
    file = f"diffusion_{model}_model/model.ckpt-{step}"
    entries.append(Published(name, file, data, config, expected, page, step=step))
  return entries


def _openai() -> list[Published]:
  """Improved DDPM (March 2021) and ADM (July 2021)."""
  march = [
    ("imagenet64-iddpm", "imagenet64_uncond_100M_1500K", "ImageNet-64", "imagenet64_iddpm", "19.2, 3.57 bits/dim"),
    (
      "imagenet64-iddpm-vlb",
      "imagenet64_uncond_vlb_100M_1500K",
      "ImageNet-64",
      "imagenet64_iddpm:vlb",
      "40.1, 3.53 bits/dim",
    ),
    ("imagenet64-cond-iddpm", "imagenet64_cond_270M_250K", "ImageNet-64", "imagenet64_iddpm:cond", "2.92 (250 steps)"),
    ("cifar10-iddpm", "cifar10_uncond_50M_500K", "CIFAR-10", "cifar10_iddpm", "3.19, 3.17 bits/dim"),
    ("cifar10-iddpm-vlb", "cifar10_uncond_vlb_50M_500K", "CIFAR-10", "cifar10_iddpm:vlb", "11.47, 2.94 bits/dim"),
    (
      "imagenet256-upsampler-iddpm",
      "upsample_cond_500K",
      "ImageNet 64 to 256",
      "imagenet256_iddpm_upsampler",
      "12.26 on samples of imagenet64-cond-iddpm",
    ),
    ("lsun-bedroom-iddpm", "lsun_uncond_100M_1200K_bs128", "LSUN bedroom 256", "lsun_iddpm", "4.24 (1000 steps)"),
    ("lsun-bedroom-iddpm-bs64", "lsun_uncond_100M_2400K_bs64", "LSUN bedroom 256", "lsun_iddpm:bs64", ""),
  ]
  entries = []
  for name, file, data, config, expected in march:
    thousands = next(part for part in file.split("_") if part.endswith("K"))
    step = 1000 * int(thousands.removesuffix("K"))
    entries.append(Published(name, f"{file}.pt", data, config, expected, f"{_MARCH}{file}.pt", step=step))
  july = [
    ("imagenet64-adm", "64x64_diffusion", "ImageNet-64", "imagenet64_adm", "2.07 (250 steps)"),
    ("imagenet128-adm", "128x128_diffusion", "ImageNet-128", "imagenet128_adm", "5.91; guided at 0.5: 2.97 (250 steps)"),
    ("imagenet256-adm", "256x256_diffusion", "ImageNet-256", "imagenet256_adm", "10.94; guided at 1.0: 4.59 (250 steps)"),
    (
      "imagenet256-adm-uncond",
      "256x256_diffusion_uncond",
      "ImageNet-256",
      "imagenet256_adm:uncond",
      "26.21; guided at 10.0: 12.00 (250 steps)",
    ),
    ("imagenet512-adm", "512x512_diffusion", "ImageNet-512", "imagenet512_adm", "23.24; guided at 4.0: 7.72 (250 steps)"),
    (
      "imagenet256-upsampler-adm",
      "64_256_upsampler",
      "ImageNet 64 to 256",
      "imagenet256_adm_upsampler",
      "7.49; on guided samples: 3.94 (250 steps)",
    ),
    (
      "imagenet512-upsampler-adm",
      "128_512_upsampler",
      "ImageNet 128 to 512",
      "imagenet512_adm_upsampler",
      "9.96; on guided samples: 3.85 (250 steps)",
    ),
    ("lsun-bedroom-adm", "lsun_bedroom", "LSUN bedroom 256", "lsun_adm:bedroom", "1.90 (1000 steps)"),
    ("lsun-cat-adm", "lsun_cat", "LSUN cat 256", "lsun_adm:cat", "5.57 (1000 steps)"),
    ("lsun-horse-adm", "lsun_horse", "LSUN horse 256", "lsun_adm:horse", "2.57 (1000 steps)"),
    ("lsun-horse-adm-nodropout", "lsun_horse_nodropout", "LSUN horse 256", "lsun_adm:horse_nodropout", "2.95 (1000 steps)"),
    *(
      (
        f"imagenet{size}-classifier",
        f"{size}x{size}_classifier",
        f"ImageNet-{size}",
        f"imagenet_classifier:{size}",
        "guides the ADM of its size",
      )
      for size in (64, 128, 256, 512)
    ),
  ]
  for name, file, data, config, expected in july:
    order = "new" if name == "imagenet64-adm" else "legacy"
    averaged = not name.endswith("classifier")  # classifiers were trained without averages
    url = f"{_JULY}{file}.pt"
    entries.append(Published(name, f"{file}.pt", data, config, expected, url, averaged=averaged, attention_order=order))
  return entries


def _ddim_and_analytic() -> list[Published]:
  """DDIM's CelebA network, Analytic-DPM's CIFAR-10 networks, Extended-Analytic-DPM's; all on Google Drive."""
  drive = lambda link: f"{_DRIVE}{link}/view"
  celeba = "3.51 (DDIM, 1000 steps), 6.53 (100), 9.17 (50), 13.73 (20), 17.33 (10)"
  archive = drive("1WyoUFDQeJUJblAT85Tc1ntbqklvqMP3J")
  linear = "5.11, DDIM 4.13 (1000 steps)"
  cosine = "4.92, DDIM 4.89 (1000 steps)"
  entries = [
    Published("celeba64-ddim", None, "CelebA 64", "celeba64_ddim", celeba, drive("1R_H-fJYXSH79wfSKs9D-fuKQVan5L-GR")),
    Published("cifar10-adpm-linear", "400000.ckpt.pth", "CIFAR-10", "cifar10_adpm", linear, archive, step=400_000),
    Published("cifar10-adpm-cosine", "160000.ckpt.pth", "CIFAR-10", "cifar10_adpm:cosine", cosine, archive, step=160_000),
  ]
  # data, config of the backbone, (complex NPR, complex SN), (backbone, NPR, SN) on Drive, results with K = 50
  extended = {
    "cifar10-linear": (
      "CIFAR-10",
      "cifar10_adpm",
      (False, False),
      ("1rhZBWUDK3_q37Iac3sXq6WnxR_OHhPyI", "1qP1kcjz6fSzevWSEWFucJS7gDWk88-35", "1lyKwqilnIvYIBT2M7THAAQMTqMJ8-paX"),
      ("7.25 (Analytic-DDPM, 50 steps)", "6.18 (50 steps)", "4.63 (50 steps)"),
    ),
    "cifar10-cosine": (
      "CIFAR-10",
      "cifar10_adpm:cosine",
      (False, False),
      ("1ONNLpqPDLr4NesC0TfVZ3dCyaVBu7Xw0", "1Hf4keE-akBcygQIdhEBGnSYOxJPltPYj", "1DeQ2EWBwV91akURFYgcZ3ObLr0gvCnIZ"),
      ("5.50 (Analytic-DDPM, 50 steps)", "5.31 (50 steps)", "4.17 (50 steps)"),
    ),
    "cifar10-vpsde": (
      "CIFAR-10",
      "cifar10_vpsde",
      (False, False),
      ("1N82xJ7ZcPGZ45EUnxa7dOO36kJ2tMEtl", "1wcZ0U3bxr7_yUdpG49BoGPbuSbCQn3Rt", "1NEqo4H902iF_N3777sWG0TKh3UlpxUZS"),
      ("", "", ""),
    ),
    "celeba64": (
      "CelebA 64",
      "celeba64_ddim",
      (False, False),
      ("1bGQGTsFOnqQ2z3FN5rdkj1FPN1_5nYF4", "1IIIZ34FJK8tIQcj9sicaYQgJhrAaXLO-", "1ZHiC5RrW7XFeEdqeAiAXAV0Srp32BnVB"),
      ("11.23 (Analytic-DDPM, 50 steps)", "10.89 (50 steps)", "7.88 (50 steps)"),
    ),
    "imagenet64": (
      "ImageNet-64",
      "imagenet64_iddpm",
      (False, True),
      ("1evlXbMOg55y2BIjiALcD6Smbm07k7XGW", "1joSr575-TcMGXG3qmm72CBhH-QyTFalv", "1SC5_4nfIqL0cw6zbM-Ppfu8qFK-9vSoc"),
      ("22.45 (Analytic-DDPM, 50 steps)", "20.89 (50 steps)", "20.74 (50 steps)"),
    ),
    "lsun-bedroom": (
      "LSUN bedroom 256",
      "lsun_ddpm:bedroom",
      (False, True),
      ("1fVxn3C5uaXdZM4cc8WnQ6GXexS5-274k", "1JR9X-S_UN5FXWWv6fYRV8sLJpZ30fD3p", "1caFLEvCXXCDWDjWpL0wuPNCJ9wNqt5ly"),
      ("6.05 (Analytic-DDPM, 100 steps)", "", ""),
    ),
  }
  for key, (data, config, (npr_complex, sn_complex), links, (base, npr, sn)) in extended.items():
    urls = [drive(link) for link in links]
    entries += [
      Published(f"{key}-xdpm", None, data, config, base, urls[0]),
      Published(f"{key}-npr", None, data, "npr", npr, urls[1], step=500_000, backbone=config, complex_head=npr_complex),
      Published(f"{key}-sn", None, data, "sn", sn, urls[2], step=500_000, backbone=config, complex_head=sn_complex),
    ]
  return entries


def _consistency_and_p2() -> list[Published]:
  """consistency_models' twelve files, and P2's network of faces."""
  results = {  # FID with one and two evaluations; of EDM with 79
    "imagenet64": ("ImageNet-64", "2.44 (79 evaluations)", "6.20, 4.70 with two", "13.0, 11.1 with two"),
    "bedroom256": ("LSUN bedroom 256", "3.57 (79 evaluations)", "7.80, 5.22 with two", "16.0, 7.85 with two"),
    "cat256": ("LSUN cat 256", "6.69 (79 evaluations)", "11.0, 8.84 with two", "20.7, 11.7 with two"),
  }
  entries = []
  for name, (data, edm, cd, ct) in results.items():
    variant = "imagenet64" if name == "imagenet64" else "lsun"
    files = {"edm": ("edm_{}_ema", edm), "cd-l2": ("cd_{}_l2", ""), "cd-lpips": ("cd_{}_lpips", cd), "ct": ("ct_{}", ct)}
    for kind, (file, expected) in files.items():
      file = f"{file.format(name)}.pt"
      config = f"consistency:{variant}{'_edm' if kind == 'edm' else ''}"
      entries.append(Published(f"{name}-{kind}", file, data, config, expected, f"{_CONSISTENCY}{file}"))
  page = f"{_DRIVE}1nlCPBqOqSeqAQ8F4noThbnmr4okriwTc/view"
  return [*entries, Published("ffhq-p2", "ffhq_p2.pt", "FFHQ 256", "ffhq_p2", "", page)]


_ENTRIES = (*_ho(), *_ddim_and_analytic(), *_openai(), *_consistency_and_p2())
PUBLISHED: dict[str, Published] = {entry.name: entry for entry in _ENTRIES}


def find(name: str) -> Published | None:
  """The published model of this name, or None if it is the name of a config.

  Raises:
    UserError: if it is neither, with the nearest names.
  """
  if name in PUBLISHED:
    return PUBLISHED[name]
  try:
    configs.load(name)
  except UserError:
    near = ", ".join(difflib.get_close_matches(name, PUBLISHED, n=3)) or "see ddpm-jax convert --list"
    raise UserError(f"{name!r} is not a published model or a config; nearest: {near}.") from None
  return None


def of_file(path: str | pathlib.Path) -> Published | None:
  """The published model whose file is called so (and whose folder, where that is part of the name), or None."""
  path = weight_files.prefix(pathlib.Path(path).resolve())
  for entry in PUBLISHED.values():
    if entry.file and path.parts[-len(pathlib.Path(entry.file).parts) :] == pathlib.Path(entry.file).parts:
      return entry
  return None
