"""Reads Inception's weights from the published files, without TensorFlow or PyTorch.

| file                                        | of                                    | form    |
|---------------------------------------------|---------------------------------------|---------|
| classify_image_graph_def.pb                 | TensorFlow 2015; OpenAI's evaluator   | "tf"    |
| inception-2015-12-05.pt, .pkl               | NVIDIA's translation of it            | "tf"    |
| pt_inception-2015-12-05-6726825d.pth        | pytorch-fid and torch-fidelity        | "torch" |

The batch normalization y = (x - mean) / sqrt(var + 0.001) * gamma + beta becomes x * scale + offset, in float64. The
graph of 2015 and NVIDIA's translation do not use gamma: the graph stores one, with scale_after_normalization = false.
"""

import os
import pathlib
from collections.abc import Callable

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.features.inception import Inception
from ddpm_jax.files import download, limits, tf_graph, torch_modules

EPSILON = 1e-3  # of the batch normalization, for files that do not store it

FILES = {
  "tf": download.File(
    "classify_image_graph_def.pb",
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/classify_image_graph_def.pb",
  ),
  "torch": download.File(
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "sha256:6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
  ),
}


def load_inception(form: str = "tf", path: str | os.PathLike | None = None, *, dtype: str = "float32") -> Inception:
  """The network of one of the published forms, with its weights.

  Args:
    form: "tf" or "torch", which determines how pixels are resized and scaled.
    path: one of the files above; None reads the file of `form` from the cache, or downloads it.
    dtype: dtype of the computation; "bfloat16" is faster on accelerators and changes FID.

  Raises:
    UserError: if the form is unknown, or the file absent, damaged, or of another network.
  """
  if form not in FILES:
    raise UserError(f"Inception has the forms tf and torch, not {form!r}.")
  path = pathlib.Path(path) if path is not None else download.fetch(FILES[form])
  if not path.exists():
    raise UserError(f"There is no file {path}; Inception's weights are published as {FILES[form].url}.")
  layers, classes = _of_graph(path) if path.suffix == ".pb" else _of_torch(path)
  return Inception(layers, classes, form=form, dtype=dtype)


def _of_graph(path: pathlib.Path):
  graph = tf_graph.read(path)

  def layer(name):
    norm = graph.nodes[f"{name}/batchnorm"]
    mean, var, beta, gamma = (graph.constant(each) for each in norm.inputs[1:5])
    scaled = norm.number("scale_after_normalization")
    kernel = graph.constant(graph.nodes[f"{name}/Conv2D"].inputs[1])
    return _layer(kernel, mean, var, beta, gamma if scaled else 1.0, norm.number("variance_epsilon"))

  return _all(path, layer, lambda: graph.constant(graph.nodes["softmax/logits/MatMul"].inputs[1]))


def _of_torch(path: pathlib.Path):
  tensors = torch_modules.tensors(path)
  hwio = lambda kernel: kernel.transpose(2, 3, 1, 0)

  def pytorch_fid(name):
    norm = f"{TORCHVISION[name]}.bn."
    return _layer(
      hwio(tensors[f"{TORCHVISION[name]}.conv.weight"]),
      tensors[norm + "running_mean"],
      tensors[norm + "running_var"],
      tensors[norm + "bias"],
      tensors[norm + "weight"],
    )

  def nvidia(name):
    block, _, rest = name.partition("/")
    rest = rest.replace("/", "_" if block in ("mixed_9", "mixed_10") else ".")
    prefix = f"layers.{block}.{rest}." if rest else f"layers.{block}."
    return _layer(hwio(tensors[prefix + "weight"]), *(tensors[prefix + part] for part in ("mean", "var", "beta")))

  if "layers.conv.weight" in tensors:
    return _all(path, nvidia, lambda: tensors["output.weight"].T)
  return _all(path, pytorch_fid, lambda: tensors["fc.weight"].T)


def _all(path: pathlib.Path, layer: Callable[[str], dict], classes: Callable[[], np.ndarray]):
  """All layers and the matrix of classes.

  Raises:
    UserError: if one is missing, has another number of dimensions, or holds values that are not finite.
  """
  with limits.damaged(path, "file of the Inception-v3 of 2015", "fetch the published one"):
    try:
      layers = {name: layer(name) for name in TORCHVISION}
      matrix = np.ascontiguousarray(classes(), np.float32)
    except KeyError as error:
      raise UserError(f"{path} does not hold the Inception-v3 of 2015: it has no {error}.") from error
    for name, parts in [*layers.items(), ("classes", {"matrix": matrix})]:
      if not all(np.isfinite(part).all() for part in parts.values()):
        raise ValueError(f"{name} has values that are not finite")
    return layers, matrix


def _layer(kernel, mean, var, beta, gamma=1.0, epsilon=EPSILON) -> dict[str, np.ndarray]:
  scale = gamma / np.sqrt(var.astype(np.float64) + epsilon)
  layer = {"kernel": kernel, "scale": scale, "offset": beta - mean * scale}
  return {name: np.ascontiguousarray(value, np.float32) for name, value in layer.items()}


def _names() -> dict[str, str]:
  """{name in the graph: torchvision's name, which pytorch-fid keeps} of every convolution."""

  def chain(tower, branch, length):
    return {f"{tower}/{'conv' if i == 0 else f'conv_{i}'}": f"{branch}_{i + 1}" for i in range(length)}

  def forks(tower, branch):
    return {f"{tower}/mixed/conv": f"{branch}a", f"{tower}/mixed/conv_1": f"{branch}b"}

  ends = {"conv": "branch1x1", "tower_2/conv": "branch_pool"}
  a = ends | chain("tower", "branch5x5", 2) | chain("tower_1", "branch3x3dbl", 3)
  b = {"conv": "branch3x3"} | chain("tower", "branch3x3dbl", 3)
  c = ends | chain("tower", "branch7x7", 3) | chain("tower_1", "branch7x7dbl", 5)
  d = chain("tower", "branch3x3", 2) | chain("tower_1", "branch7x7x3", 4)
  e = (
    ends
    | chain("tower", "branch3x3", 1)
    | forks("tower", "branch3x3_2")
    | chain("tower_1", "branch3x3dbl", 2)
    | forks("tower_1", "branch3x3dbl_3")
  )
  names = {
    "conv": "Conv2d_1a_3x3",
    "conv_1": "Conv2d_2a_3x3",
    "conv_2": "Conv2d_2b_3x3",
    "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3",
  }
  blocks = {"5b": a, "5c": a, "5d": a, "6a": b, "6b": c, "6c": c, "6d": c, "6e": c, "7a": d, "7b": e, "7c": e}
  for index, (torchvision, layers) in enumerate(blocks.items()):
    block = f"mixed_{index}" if index else "mixed"
    names |= {f"{block}/{name}": f"Mixed_{torchvision}.{branch}" for name, branch in layers.items()}
  return names


TORCHVISION = _names()
