"""Inception in both forms, from files written here in the original formats, against evaluations written here.

Widths are a sixteenth of the published ones; the network takes them from the file.
"""

import pickle
import struct
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.features import resize
from ddpm_jax.features.inception_weights import load_inception
from ddpm_jax.files import tf_graph, torch_modules

CLASSES = 63


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3), np.uint8)


# ---------------------------------------------------------------- resizing


def tensorflow_legacy(image, size):
  """ResizeBilinear of TensorFlow 1 for one image, pixel by pixel as its kernel does (scale = in / out, no shift)."""
  height, width, _ = image.shape
  out = np.zeros((size, size, image.shape[2]), np.float32)
  row_scale = np.float32(height) / np.float32(size)
  column_scale = np.float32(width) / np.float32(size)
  for row in range(size):
    y = np.float32(row) * row_scale
    top = int(y)
    y_lerp = np.float32(y - np.float32(int(y)))
    bottom = min(top + 1, height - 1)
    for column in range(size):
      x = np.float32(column) * column_scale
      left = int(x)
      x_lerp = np.float32(x - np.float32(int(x)))
      right = min(left + 1, width - 1)
      upper = image[top, left] + (image[top, right] - image[top, left]) * x_lerp
      lower = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * x_lerp
      out[row, column] = upper + (lower - upper) * y_lerp
  return out


@pytest.mark.parametrize("shape", [(40, 56, 3), (13, 7, 1), (299, 30, 3), (400, 350, 1)])
def test_legacy_resize_is_that_of_tensorflow_1(shape):
  image = np.random.default_rng(1).uniform(0, 255, shape).astype(np.float32)
  found = resize.legacy_bilinear(image[None], 29)
  np.testing.assert_allclose(found[0], tensorflow_legacy(image, 29), rtol=1e-6, atol=1e-4)  # fused multiply-add


def test_resizing_two_pixels_to_four():
  """Legacy positions are 0, 1/2, 1, 3/2 (the last one beyond the last pixel); half-pixel ones 0, 1/4, 3/4, 1."""
  image = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
  legacy = resize.legacy_bilinear(image, 4)[0, ..., 0]
  half = resize.half_pixel_bilinear(image, 4)[0, ..., 0]
  np.testing.assert_array_equal(legacy, [[1, 1.5, 2, 2], [2, 2.5, 3, 3], [3, 3.5, 4, 4], [3, 3.5, 4, 4]])
  np.testing.assert_array_equal(half[0], [1, 1.25, 1.75, 2])
  np.testing.assert_array_equal(half[:, 0], [1, 1.5, 2.5, 3])


def test_legacy_resize_to_the_same_size_changes_nothing():
  image = np.random.default_rng(2).uniform(0, 255, (1, 17, 17, 3)).astype(np.float32)
  np.testing.assert_array_equal(resize.legacy_bilinear(image, 17), image)


@pytest.mark.torch
@pytest.mark.parametrize("size", [29, 100])
def test_half_pixel_resize_is_that_of_torch(size):
  import torch

  image = np.random.default_rng(3).uniform(0, 1, (2, 40, 56, 3)).astype(np.float32)
  expected = torch.nn.functional.interpolate(
    torch.tensor(image).permute(0, 3, 1, 2), size=(size, size), mode="bilinear", align_corners=False
  )
  found = resize.half_pixel_bilinear(image, size)
  np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=5e-6)  # positions up to 56 in float32: 4e-6


# ---------------------------------------------------------------- TensorFlow's graph

# A block is its towers; a tower is (layer, kernel, channels) in turn, "avg" or "max" for a pool, strides of 2 as "/2".


def block_a(name, pool):
  return name, [
    [(f"{name}/conv", (1, 1), 4)],
    [(f"{name}/tower/conv", (1, 1), 3), (f"{name}/tower/conv_1", (5, 5), 4)],
    [(f"{name}/tower_1/conv", (1, 1), 4), (f"{name}/tower_1/conv_1", (3, 3), 6), (f"{name}/tower_1/conv_2", (3, 3), 6)],
    ["avg", (f"{name}/tower_2/conv", (1, 1), pool)],
  ]


def block_c(name, inner):
  return name, [
    [(f"{name}/conv", (1, 1), 12)],
    [(f"{name}/tower/conv", (1, 1), inner), (f"{name}/tower/conv_1", (1, 7), inner), (f"{name}/tower/conv_2", (7, 1), 12)],
    [
      (f"{name}/tower_1/conv", (1, 1), inner),
      (f"{name}/tower_1/conv_1", (7, 1), inner),
      (f"{name}/tower_1/conv_2", (1, 7), inner),
      (f"{name}/tower_1/conv_3", (7, 1), inner),
      (f"{name}/tower_1/conv_4", (1, 7), 12),
    ],
    ["avg", (f"{name}/tower_2/conv", (1, 1), 12)],
  ]


def block_e(name, pool):
  fork = lambda tower: [[(f"{name}/{tower}/mixed/conv", (1, 3), 24)], [(f"{name}/{tower}/mixed/conv_1", (3, 1), 24)]]
  return name, [
    [(f"{name}/conv", (1, 1), 20)],
    [(f"{name}/tower/conv", (1, 1), 24), fork("tower")],
    [(f"{name}/tower_1/conv", (1, 1), 28), (f"{name}/tower_1/conv_1", (3, 3), 24), fork("tower_1")],
    [pool, (f"{name}/tower_2/conv", (1, 1), 12)],
  ]


BLOCKS = [
  block_a("mixed", 2),
  block_a("mixed_1", 4),
  block_a("mixed_2", 4),
  (
    "mixed_3",
    [
      [("mixed_3/conv", (3, 3), 24, "/2")],
      [("mixed_3/tower/conv", (1, 1), 4), ("mixed_3/tower/conv_1", (3, 3), 6), ("mixed_3/tower/conv_2", (3, 3), 6, "/2")],
      ["max/2"],
    ],
  ),
  block_c("mixed_4", 8),
  block_c("mixed_5", 10),
  block_c("mixed_6", 10),
  block_c("mixed_7", 12),
  (
    "mixed_8",
    [
      [("mixed_8/tower/conv", (1, 1), 12), ("mixed_8/tower/conv_1", (3, 3), 20, "/2")],
      [
        ("mixed_8/tower_1/conv", (1, 1), 12),
        ("mixed_8/tower_1/conv_1", (1, 7), 12),
        ("mixed_8/tower_1/conv_2", (7, 1), 12),
        ("mixed_8/tower_1/conv_3", (3, 3), 12, "/2"),
      ],
      ["max/2"],
    ],
  ),
  block_e("mixed_9", "avg"),
  block_e("mixed_10", "max"),
]


class GraphWriter:
  """Builds the graph of 2015 node by node: `nodes` is a list of (name, op, inputs, attributes), `value` their tensors."""

  def __init__(self, seed):
    self.rng = np.random.default_rng(seed)
    self.nodes = []
    self.channels = {}

  def constant(self, name, array):
    self.nodes.append((name, "Const", [], {"value": np.asarray(array, np.float32)}))
    return name

  def node(self, name, op, inputs, channels, **attributes):
    self.nodes.append((name, op, inputs, attributes))
    self.channels[name] = channels
    return name

  def conv(self, x, name, kernel, channels, stride=1, padding="SAME"):
    fan_in = kernel[0] * kernel[1] * self.channels[x]
    weights = self.rng.standard_normal((*kernel, self.channels[x], channels)) * np.sqrt(2 / fan_in)
    weights = self.constant(f"{name}/conv2d_params", weights)
    y = self.node(f"{name}/Conv2D", "Conv2D", [x, weights], channels, strides=stride, padding=padding)
    norm = f"{name}/batchnorm"
    tables = {
      "moving_mean": self.rng.normal(0, 0.2, channels),
      "beta": self.rng.normal(0, 0.2, channels),
      "moving_variance": np.full(channels, self.rng.uniform(0.5, 2)),
      "gamma": self.rng.uniform(2, 3, channels),
    }  # not applied
    tables = {key: tables[key] for key in ("moving_mean", "moving_variance", "beta", "gamma")}
    inputs = [self.constant(f"{norm}/{key}", table) for key, table in tables.items()]
    y = self.node(
      norm,
      "BatchNormWithGlobalNormalization",
      [y, *inputs],
      channels,
      variance_epsilon=0.001,
      scale_after_normalization=False,
    )
    y = self.node(f"{name}/CheckNumerics", "CheckNumerics", [y], channels, message=b"")
    y = self.node(f"{name}/control_dependency", "Identity", [y, f"^{name}/CheckNumerics"], channels)
    return self.node(name, "Relu", [y], channels)

  def pool(self, x, name, op, size, stride, padding):
    return self.node(name, op, [x], self.channels[x], ksize=size, strides=stride, padding=padding)

  def concat(self, name, parts):
    axis = self.constant(f"{name}/concat_dim", 3)
    return self.node(name, "Concat", [axis, *parts], sum(self.channels[part] for part in parts))

  def tower(self, x, name, steps):
    for step in steps:
      if isinstance(step, str):
        op = {"avg": "AvgPool", "max": "MaxPool"}[step[:3]]
        x = self.pool(x, f"{name}/pool", op, 3, *((2, "VALID") if "/2" in step else (1, "SAME")))
      elif isinstance(step, list):
        x = self.concat(f"{name}/{step[0][0][0].split('/')[1]}/mixed", [self.tower(x, name, fork) for fork in step])
      else:
        x = self.conv(x, *step[:3], *((2, "VALID") if len(step) == 4 else ()))
    return x

  def inception(self):
    x = self.node("ExpandDims", "Placeholder", [], 3)
    x = self.node("ResizeBilinear", "ResizeBilinear", [x, self.constant("ResizeBilinear/size", [299, 299])], 3)
    x = self.node("Sub", "Sub", [x, self.constant("Sub/y", 128.0)], 3)
    x = self.node("Mul", "Mul", [x, self.constant("Mul/y", 1 / 128)], 3)
    x = self.conv(x, "conv", (3, 3), 2, 2, "VALID")
    x = self.conv(x, "conv_1", (3, 3), 2, 1, "VALID")
    x = self.conv(x, "conv_2", (3, 3), 4)
    x = self.pool(x, "pool", "MaxPool", 3, 2, "VALID")
    x = self.conv(x, "conv_3", (1, 1), 5, 1, "VALID")
    x = self.conv(x, "conv_4", (3, 3), 12, 1, "VALID")
    x = self.pool(x, "pool_1", "MaxPool", 3, 2, "VALID")
    for name, towers in BLOCKS:
      x = self.concat(f"{name}/join", [self.tower(x, name, tower) for tower in towers])
    x = self.pool(x, "pool_3", "AvgPool", 8, 1, "VALID")
    weights = self.constant("softmax/weights", self.rng.standard_normal((self.channels[x], CLASSES)))
    weights = self.node("softmax/weights/read", "Identity", [weights], 0)
    self.node("softmax/logits/MatMul", "MatMul", [x, weights], CLASSES)
    return self.nodes


def evaluate_nodes(nodes, images):
  """Every node's value by NumPy, in float64."""
  value = {}
  for name, op, inputs, attributes in nodes:
    x = [value[each] for each in inputs if not each.startswith("^")]
    match op:
      case "Const":
        value[name] = attributes["value"].astype(np.float64)
      case "Placeholder":
        value[name] = images.astype(np.float64)
      case "ResizeBilinear":
        value[name] = np.stack([tensorflow_legacy(image, 299) for image in x[0]])
      case "Sub" | "Mul":
        value[name] = x[0] - x[1] if op == "Sub" else x[0] * x[1]
      case "Relu":
        value[name] = np.maximum(x[0], 0)
      case "Identity" | "CheckNumerics":
        value[name] = x[0]
      case "Concat":
        value[name] = np.concatenate(x[1:], axis=3)
      case "MatMul":
        value[name] = x[0].reshape(len(x[0]), -1) @ x[1]
      case "BatchNormWithGlobalNormalization":
        value[name] = (x[0] - x[1]) / np.sqrt(x[2] + attributes["variance_epsilon"]) + x[3]
      case "Conv2D":
        size = x[1].shape[:2]
        stride = attributes["strides"]
        value[name] = np.einsum(
          "bhwcij,ijco->bhwo", windows(x[0], size, stride, attributes["padding"], 0), x[1], optimize=True
        )
      case "MaxPool":
        value[name] = windows(x[0], (attributes["ksize"],) * 2, attributes["strides"], attributes["padding"], -np.inf).max(
          (4, 5)
        )
      case "AvgPool":  # the padding is not counted
        value[name] = np.nanmean(
          windows(x[0], (attributes["ksize"],) * 2, attributes["strides"], attributes["padding"], np.nan), axis=(4, 5)
        )
  return value


def windows(x, size, stride, padding, fill):
  """All windows [B, h, w, C, *size]; SAME pads so that there is one for each pixel (strides of 1, odd sizes)."""
  if padding == "SAME":
    x = np.pad(x, ((0, 0), *((n // 2, n // 2) for n in size), (0, 0)), constant_values=fill)
  return np.lib.stride_tricks.sliding_window_view(x, size, axis=(1, 2))[:, ::stride, ::stride]


def encode(nodes):
  """The nodes as the bytes of a GraphDef."""
  return b"".join(field(1, encode_node(*node)) for node in nodes) + field(4, field(1, 8))


def encode_node(name, op, inputs, attributes):
  encoded = field(1, name.encode()) + field(2, op.encode()) + b"".join(field(3, each.encode()) for each in inputs)
  for key, value in attributes.items():
    if isinstance(value, np.ndarray):
      value = field(8, encode_tensor(value))
    elif isinstance(value, bool):
      value = field(5, int(value))
    elif isinstance(value, float):
      value = field(4, struct.pack("<f", value))
    elif isinstance(value, int):  # a stride or a window: a list of four
      value = field(1, field(3, bytes([1, value, value, 1])))
    else:
      value = field(2, value if isinstance(value, bytes) else value.encode())
    encoded += field(5, field(1, key.encode()) + field(2, value))
  return encoded


def encode_tensor(array):
  """Raw bytes; if all numbers are equal, that number once (as TensorFlow writes large constant tensors)."""
  shape = b"".join(field(2, field(1, size)) for size in array.shape)
  splat = array.size > 1 and (array == array.flat[0]).all()
  content = field(5, array.flat[:1].tobytes()) if splat else field(4, array.tobytes())
  return field(1, 1) + field(2, shape) + content


def field(number, value):
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  if number == 4 and len(value) == 4:  # AttrValue.f
    return varint(number << 3 | 5) + value
  return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value):
  out = b""
  while value > 127:
    out = out + bytes([value & 127 | 128])
    value = value >> 7
  return out + bytes([value])


@pytest.fixture(scope="module")
def nodes():
  return GraphWriter(seed=4).inception()


@pytest.fixture(scope="module")
def graph_file(nodes, tmp_path_factory):
  path = tmp_path_factory.mktemp("inception") / "classify_image_graph_def.pb"
  path.write_bytes(encode(nodes))
  return path


def test_features_are_those_of_the_graph(nodes, graph_file, images):
  """All three outputs within 1e-4 of their largest value: float32 against float64 over 48 layers."""
  expected = evaluate_nodes(nodes, images)
  found = jax.jit(lambda net, x: net(x))(load_inception("tf", graph_file), images)
  assert found["features"].shape == (2, 128) and found["spatial"].shape == (2, 17 * 17 * 7)
  close(found["features"], expected["pool_3"].reshape(2, -1))
  close(found["spatial"], expected["mixed_6/conv"][..., :7].reshape(2, -1))
  close(found["logits"], expected["softmax/logits/MatMul"])


def close(found, expected):
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_graph_reader_gives_back_what_was_written(nodes, graph_file):
  graph = tf_graph.read(graph_file)
  assert [(name, graph.nodes[name].op, list(graph.nodes[name].inputs)) for name in graph.nodes] == [n[:3] for n in nodes]
  for name, op, _, attributes in nodes:
    if op == "Const":
      np.testing.assert_array_equal(graph.constant(name), attributes["value"])
  norm = graph.nodes["conv/batchnorm"]
  assert norm.number("variance_epsilon") == np.float32(0.001) and norm.number("scale_after_normalization") == 0


def test_damaged_or_foreign_graphs_are_one_sentence(graph_file, tmp_path):
  for content, match in (
    (graph_file.read_bytes()[:-700], "not a readable frozen TensorFlow graph"),
    (b"no graph", "not a readable frozen"),
    (encode([("a", "Const", [], {"value": np.ones(2, np.float32)})]), "does not hold the Inception"),
  ):
    (tmp_path / "bad.pb").write_bytes(content)
    with pytest.raises(UserError, match=match):
      load_inception("tf", tmp_path / "bad.pb")
  with pytest.raises(UserError, match="no file .*classify_image_graph_def.pb"):
    load_inception("tf", tmp_path / "absent.pb")
  with pytest.raises(UserError, match="forms tf and torch, not 'keras'"):
    load_inception("keras")


# ---------------------------------------------------------------- PyTorch's files


class TorchInception:
  """pytorch-fid's network, written out in torch's own functions; weights are drawn when a layer is first called.

  `name(block, layer)` and `parts` say how tensors are called in the file.
  """

  def __init__(self, seed, gamma=True):
    import torch

    self.torch = torch
    self.F = torch.nn.functional
    self.generator = torch.Generator().manual_seed(seed)
    self.weights = {}
    self.gamma = gamma

  def conv(self, x, name, channels, kernel, stride=1, padding=0):
    draw = lambda *shape: self.torch.randn(*shape, generator=self.generator)
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    if f"{name}.conv.weight" not in self.weights:
      fan_in = kernel[0] * kernel[1] * x.shape[1]
      self.weights[f"{name}.conv.weight"] = draw(channels, x.shape[1], *kernel) * (2 / fan_in) ** 0.5
      self.weights[f"{name}.bn.weight"] = 1 + 0.1 * draw(channels) if self.gamma else self.torch.ones(channels)
      self.weights[f"{name}.bn.bias"] = 0.2 * draw(channels)
      self.weights[f"{name}.bn.running_mean"] = 0.2 * draw(channels)
      self.weights[f"{name}.bn.running_var"] = 1 + 0.2 * draw(channels).abs()
    w = self.weights
    x = self.F.conv2d(x, w[f"{name}.conv.weight"], stride=stride, padding=padding)
    x = self.F.batch_norm(
      x, w[f"{name}.bn.running_mean"], w[f"{name}.bn.running_var"], w[f"{name}.bn.weight"], w[f"{name}.bn.bias"], eps=0.001
    )
    return self.F.relu(x)

  def average(self, x):
    return self.F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

  def block_a(self, x, name, pool_features):
    wide = self.conv(self.conv(x, f"{name}.branch5x5_1", 3, 1), f"{name}.branch5x5_2", 4, 5, padding=2)
    double = self.conv(self.conv(x, f"{name}.branch3x3dbl_1", 4, 1), f"{name}.branch3x3dbl_2", 6, 3, padding=1)
    double = self.conv(double, f"{name}.branch3x3dbl_3", 6, 3, padding=1)
    pool = self.conv(self.average(x), f"{name}.branch_pool", pool_features, 1)
    return self.torch.cat([self.conv(x, f"{name}.branch1x1", 4, 1), wide, double, pool], 1)

  def block_b(self, x, name):
    double = self.conv(self.conv(x, f"{name}.branch3x3dbl_1", 4, 1), f"{name}.branch3x3dbl_2", 6, 3, padding=1)
    double = self.conv(double, f"{name}.branch3x3dbl_3", 6, 3, stride=2)
    return self.torch.cat([self.conv(x, f"{name}.branch3x3", 24, 3, stride=2), double, self.F.max_pool2d(x, 3, 2)], 1)

  def block_c(self, x, name, inner):
    row = dict(kernel=(1, 7), padding=(0, 3))
    column = dict(kernel=(7, 1), padding=(3, 0))
    single = self.conv(self.conv(x, f"{name}.branch7x7_1", inner, 1), f"{name}.branch7x7_2", inner, **row)
    single = self.conv(single, f"{name}.branch7x7_3", 12, **column)
    double = self.conv(self.conv(x, f"{name}.branch7x7dbl_1", inner, 1), f"{name}.branch7x7dbl_2", inner, **column)
    double = self.conv(self.conv(double, f"{name}.branch7x7dbl_3", inner, **row), f"{name}.branch7x7dbl_4", inner, **column)
    double = self.conv(double, f"{name}.branch7x7dbl_5", 12, **row)
    pool = self.conv(self.average(x), f"{name}.branch_pool", 12, 1)
    return self.torch.cat([self.conv(x, f"{name}.branch1x1", 12, 1), single, double, pool], 1)

  def block_d(self, x, name):
    single = self.conv(self.conv(x, f"{name}.branch3x3_1", 12, 1), f"{name}.branch3x3_2", 20, 3, stride=2)
    seven = self.conv(self.conv(x, f"{name}.branch7x7x3_1", 12, 1), f"{name}.branch7x7x3_2", 12, (1, 7), padding=(0, 3))
    seven = self.conv(seven, f"{name}.branch7x7x3_3", 12, (7, 1), padding=(3, 0))
    seven = self.conv(seven, f"{name}.branch7x7x3_4", 12, 3, stride=2)
    return self.torch.cat([single, seven, self.F.max_pool2d(x, 3, 2)], 1)

  def block_e(self, x, name, pool):
    row = dict(kernel=(1, 3), padding=(0, 1))
    column = dict(kernel=(3, 1), padding=(1, 0))
    single = self.conv(x, f"{name}.branch3x3_1", 24, 1)
    double = self.conv(self.conv(x, f"{name}.branch3x3dbl_1", 28, 1), f"{name}.branch3x3dbl_2", 24, 3, padding=1)
    parts = [self.conv(x, f"{name}.branch1x1", 20, 1)]
    parts += [self.conv(single, f"{name}.branch3x3_2a", 24, **row), self.conv(single, f"{name}.branch3x3_2b", 24, **column)]
    parts += [
      self.conv(double, f"{name}.branch3x3dbl_3a", 24, **row),
      self.conv(double, f"{name}.branch3x3dbl_3b", 24, **column),
    ]
    return self.torch.cat([*parts, self.conv(pool(x), f"{name}.branch_pool", 12, 1)], 1)

  def body(self, x):
    """Features of prepared pixels [B, 3, 299, 299]."""
    x = self.conv(x, "Conv2d_1a_3x3", 2, 3, stride=2)
    x = self.conv(self.conv(x, "Conv2d_2a_3x3", 2, 3), "Conv2d_2b_3x3", 4, 3, padding=1)
    x = self.F.max_pool2d(x, 3, 2)
    x = self.conv(self.conv(x, "Conv2d_3b_1x1", 5, 1), "Conv2d_4a_3x3", 12, 3)
    x = self.F.max_pool2d(x, 3, 2)
    for name, pool_features in (("5b", 2), ("5c", 4), ("5d", 4)):
      x = self.block_a(x, f"Mixed_{name}", pool_features)
    x = self.block_b(x, "Mixed_6a")
    for name, inner in (("6b", 8), ("6c", 10), ("6d", 10), ("6e", 12)):
      x = self.block_c(x, f"Mixed_{name}", inner)
    x = self.block_d(x, "Mixed_7a")
    x = self.block_e(x, "Mixed_7b", self.average)
    x = self.block_e(x, "Mixed_7c", lambda x: self.F.max_pool2d(x, 3, stride=1, padding=1))
    return x.mean((2, 3))

  def __call__(self, images):
    x = self.torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    return self.body(2 * self.F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1)


@pytest.fixture(scope="module")
def pytorch_fid(images):
  """(network, features of `images`, state dict)."""
  net = TorchInception(seed=5)
  features = net(images)
  net.weights["fc.weight"] = net.torch.randn(CLASSES, features.shape[1], generator=net.generator)
  net.weights["fc.bias"] = net.torch.ones(CLASSES)
  return net, features.numpy(), net.weights


@pytest.mark.torch
def test_features_are_those_of_pytorch_fid(pytorch_fid, images, tmp_path):
  net, features, weights = pytorch_fid
  net.torch.save(weights, tmp_path / "pt_inception.pth")
  found = jax.jit(lambda net, x: net(x))(load_inception("torch", tmp_path / "pt_inception.pth"), images)
  close(found["features"], features)
  close(found["logits"], features @ weights["fc.weight"].numpy().T)  # without the bias


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_read_without_torch(pytorch_fid, tmp_path, zipped):
  """As torch.save writes them now and before 1.6: nested, sliced, transposed, scalar, half precision; bit by bit."""
  torch = pytorch_fid[0].torch
  base = torch.arange(24.0).reshape(4, 6)
  saved = {
    "a": base.T,
    "b": base[1:3, ::2],
    "c": {"d": torch.tensor(7), "e": base.half(), "f": base.bfloat16()},
    "g": torch.nn.Parameter(base),
    "h": torch.zeros(0, 3),
    "i": base > 5,
    "text": "no tensor",
  }
  torch.save(saved, tmp_path / "some.pth", _use_new_zipfile_serialization=zipped)
  found = torch_modules.tensors(tmp_path / "some.pth")
  assert list(found) == ["a", "b", "c.d", "c.e", "c.f", "g", "h", "i"]
  for name, array in found.items():
    expected = saved["c"][name[2:]] if "." in name else saved[name]
    np.testing.assert_array_equal(array.astype(np.float64), expected.detach().double().numpy())


def nvidia_names(weights):
  """A state dict of torchvision's names (without gamma) under the names of NVIDIA's translation."""
  from ddpm_jax.features.inception_weights import TORCHVISION

  renamed = {}
  for name, torchvision in TORCHVISION.items():
    block, *rest = name.split("/")
    joint = "_" if block in ("mixed_9", "mixed_10") else "."
    prefix = ".".join(["layers", block, *([joint.join(rest)] if rest else [])])
    parts = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
    for part, key in parts.items():
      renamed[f"{prefix}.{part}"] = weights[f"{torchvision}.{key}"]
  return renamed | {"output.weight": weights["fc.weight"], "output.bias": weights["fc.bias"]}


def nested(torch, tensors):
  """Modules that hold `tensors` under their dotted names."""
  root = torch.nn.Module()
  for name, tensor in tensors.items():
    *path, last = name.split(".")
    module = root
    for part in path:
      if part not in module._modules:
        module.add_module(part, torch.nn.Module())
      module = module._modules[part]
    module.register_buffer(last, tensor)
  return root


@pytest.mark.torch
def test_weights_of_nvidias_files_are_the_same(pytorch_fid, tmp_path):
  """TorchScript (.pt) and a pickle of a class that brings its own source (.pkl), which must not be run."""
  net, _, weights = pytorch_fid
  torch = net.torch
  plain = {key: torch.ones_like(value) if key.endswith("bn.weight") else value for key, value in weights.items()}
  torch.save(plain, tmp_path / "plain.pth")
  expected = load_inception("tf", tmp_path / "plain.pth")

  module = nested(torch, nvidia_names(plain))
  torch.jit.script(module).save(tmp_path / "inception-2015-12-05.pt")

  persistence = types.ModuleType("torch_utils.persistence")

  def _reconstruct_persistent_obj(meta):
    raise AssertionError("a file's own code was run")

  _reconstruct_persistent_obj.__module__ = persistence.__name__
  _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
  persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj

  class Persistent:
    def __reduce__(self):
      return _reconstruct_persistent_obj, ({"type": "class", "module_src": "raise SystemExit", "state": module.__dict__},)

  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    patch.setitem(sys.modules, persistence.__name__, persistence)
    (tmp_path / "inception-2015-12-05.pkl").write_bytes(pickle.dumps(Persistent()))
  for file in ("inception-2015-12-05.pt", "inception-2015-12-05.pkl"):
    found = load_inception("tf", tmp_path / file)
    jax.tree.map(np.testing.assert_array_equal, found.layers, expected.layers)
    np.testing.assert_array_equal(found.classes, expected.classes)
    assert found.digest == expected.digest


def test_files_that_name_code_are_not_run(tmp_path):
  class Trap:
    def __reduce__(self):
      return print, ("this must not be printed",)

  (tmp_path / "trap.pkl").write_bytes(pickle.dumps({"a": Trap()}))
  assert torch_modules.tensors(tmp_path / "trap.pkl") == {}


@pytest.mark.torch
def test_damaged_torch_files_are_one_sentence(pytorch_fid, tmp_path):
  torch = pytorch_fid[0].torch
  for zipped in (True, False):
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "a.pth").read_bytes()
    for size in (10, len(content) // 2, len(content) - 9):
      (tmp_path / "a.pth").write_bytes(content[:size])
      with pytest.raises(UserError, match="is damaged or cut short, or no PyTorch file"):
        torch_modules.tensors(tmp_path / "a.pth")
  torch.save({"a": torch.arange(1000.0)}, tmp_path / "other.pth")
  with pytest.raises(UserError, match="does not hold the Inception-v3 of 2015: it has no 'Conv2d_1a"):
    load_inception("torch", tmp_path / "other.pth")


# ---------------------------------------------------------------- both


def test_grey_images_count_as_rgb_and_other_channels_are_refused(graph_file):
  net = load_inception("tf", graph_file)
  grey = np.random.default_rng(6).integers(0, 256, (1, 20, 20, 1), np.uint8)
  apply = jax.jit(lambda net, x: net(x)["spatial"])
  # Two programs of different shapes, which XLA may fuse differently: up to 4.2e-7 apart with jax 0.12, for values up to 1.
  np.testing.assert_allclose(apply(net, grey), apply(net, grey.repeat(3, 3)), rtol=0, atol=2e-6)
  net.check((28, 28, 1))
  with pytest.raises(UserError, match="not 28x28x4"):
    net.check((28, 28, 4))


def test_form_and_precision_are_part_of_the_name_and_the_hash(graph_file):
  nets = [
    load_inception("tf", graph_file),
    load_inception("torch", graph_file),
    load_inception("tf", graph_file, dtype="bfloat16"),
  ]
  assert [net.name for net in nets] == ["inception_tf", "inception_torch", "inception_tf_bfloat16"]
  assert len({net.digest for net in nets}) == 3
