"""Features of a small classifier that is trained on the data set itself.

Inception was trained on photographs and is not informative about 8x8 or 28x28 digits. A classifier of the data set's
labels, trained in seconds to minutes, has features in which a Fréchet distance is meaningful and cheap. Such distances are
comparable only for the same classifier, so its recipe, test accuracy and hash are part of every result.
"""

import dataclasses
import functools
import os
from typing import Any

import flax.linen as nn
import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from ddpm_jax.errors import UserError
from ddpm_jax.files import limits, npz


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The hyperparameters of a classifier; the defaults suit digits.

  Attributes:
    seed: seed of the initial weights, the order of the images and the shifts.
    steps: optimizer steps.
    batch_size: images per step, drawn with replacement.
    learning_rate: peak of a one-cycle cosine schedule for AdamW.
    weight_decay: weight decay of AdamW.
    max_shift: images are shifted by up to this many pixels in both directions, padded with zeros.
    flip: whether half of the images are mirrored.
    num_features: width of the last hidden layer, the dimension of the feature space.
  """

  seed: int = 0
  steps: int = 600
  batch_size: int = 128
  learning_rate: float = 3e-3
  weight_decay: float = 1e-2
  max_shift: int = 1
  flip: bool = False
  num_features: int = 64

  @classmethod
  def suiting(cls, channels: int) -> "Recipe":
    """The recipe for grayscale digits, or for photographs."""
    return cls() if channels == 1 else cls(steps=2000, max_shift=2, flip=True)


class SmallConvNet(nn.Module):
  """3x3 convolutions with pixels folded into channels in between, down to 4x4; a hidden layer; the logits.

  Folding 2x2 pixels into channels is twice as fast on a CPU as striding or pooling.
  """

  num_features: int
  num_classes: int

  @nn.compact
  def __call__(self, images):
    """From uint8 images [B, H, W, C] to (features [B, num_features], logits [B, num_classes]), float32."""
    x = jnp.asarray(images, jnp.float32) / 127.5 - 1
    x = nn.relu(nn.Conv(16, (3, 3))(x))
    width = 32
    while x.shape[1] > 4:
      x = nn.relu(nn.Conv(width, (3, 3))(_pixels_to_channels(x)))
      width = min(2 * width, 128)
    features = nn.relu(nn.Dense(self.num_features)(x.reshape(len(x), -1)))
    return features, nn.Dense(self.num_classes)(features)


@flax.struct.dataclass
class FeatureNet:
  """A trained classifier as a feature extractor (see extract.py for the interface)."""

  params: Any
  image_shape: tuple[int, int, int] = flax.struct.field(pytree_node=False)  # (H, W, C)
  num_classes: int = flax.struct.field(pytree_node=False)
  recipe: Recipe = flax.struct.field(pytree_node=False)
  train_digest: str = flax.struct.field(pytree_node=False)  # SHA-256 of the images and labels it was trained on
  test_images: int = flax.struct.field(pytree_node=False)
  test_accuracy: float = flax.struct.field(pytree_node=False)  # on held-out images, 0..1

  def __call__(self, images) -> dict[str, jax.Array]:
    """`features` [B, num_features] and `logits` [B, num_classes], float32, of uint8 images [B, H, W, C]."""
    module = SmallConvNet(self.recipe.num_features, self.num_classes)
    features, logits = module.apply({"params": self.params}, images)
    return {"features": features, "logits": logits}

  def features(self, images) -> jax.Array:
    """The last hidden layer, [B, num_features]."""
    return self(images)["features"]

  def logits(self, images) -> jax.Array:
    """Unnormalised log-probabilities of the classes, [B, num_classes]."""
    return self(images)["logits"]

  @property
  def name(self) -> str:
    """The name, such as classifier_28x28x1_64."""
    return f"classifier_{'x'.join(map(str, self.image_shape))}_{self.recipe.num_features}"

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of the weights."""
    return npz.digest(_flat(self.params))

  def check(self, image_shape: tuple[int, ...]) -> None:
    """Raises UserError if the network was not trained on images of shape (H, W, C)."""
    if tuple(image_shape) != self.image_shape:
      raise UserError(
        f"The images are {_shape(image_shape)}, but the feature network {self.name} was trained on "
        f"{_shape(self.image_shape)}: train one for these images, or use images of that size."
      )

  def describe(self) -> dict[str, Any]:
    """A description of the features for results."""
    return {
      "name": self.name,
      "sha256": self.digest,
      "recipe": dataclasses.asdict(self.recipe),
      "train_sha256": self.train_digest,
      "test_images": self.test_images,
      "test_accuracy": self.test_accuracy,
    }

  def save(self, path: str | os.PathLike) -> None:
    """Writes weights, recipe and accuracy to one .npz."""
    meta = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    del meta["params"]
    npz.write(path, _flat(self.params), meta | {"recipe": dataclasses.asdict(self.recipe)})


def restore(path: str | os.PathLike) -> FeatureNet:
  """Reads a network that `FeatureNet.save` wrote.

  Raises:
    UserError: if the file is missing, damaged or contains something else.
  """
  arrays, meta = npz.read(path)
  if "train_digest" not in meta:
    raise UserError(f"{path} does not contain a feature network.")
  with limits.damaged(path, "feature network", "remove it, and it is trained again"):
    for name, array in arrays.items():
      if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite")
    params = flax.traverse_util.unflatten_dict(arrays, sep="/")
    recipe = Recipe(**meta.pop("recipe"))
    net = FeatureNet(params, image_shape=tuple(meta.pop("image_shape")), recipe=recipe, **meta)
    jax.eval_shape(net, jax.ShapeDtypeStruct((1, *net.image_shape), np.uint8))  # wrong shapes fail here
    return net


def train_classifier(
  images: np.ndarray,
  labels: np.ndarray,
  test_images: np.ndarray,
  test_labels: np.ndarray,
  *,
  recipe: Recipe = Recipe(),
  progress: bool = False,
) -> FeatureNet:
  """Trains a classifier and measures its accuracy on held-out images. The result is determined by `recipe.seed`.

  Args:
    images: uint8 [N, H, W, C].
    labels: int [N], from 0.
    test_images: uint8 [M, H, W, C], not among `images`.
    test_labels: int [M].
    recipe: the hyper-parameters.
    progress: show a bar.

  Raises:
    UserError: if the images are not uint8 [N, H, W, C], or labels and images differ in number.
  """
  for pictures, classes in ((images, labels), (test_images, test_labels)):
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or len(pictures) != len(classes):
      raise UserError(
        f"A classifier is trained on uint8 images [N, H, W, C] with a label each, "
        f"not on {pictures.dtype} {pictures.shape} with {len(classes)} labels."
      )
  num_classes = int(max(labels.max(), test_labels.max())) + 1
  module = SmallConvNet(recipe.num_features, num_classes)
  init_key, key = jax.random.split(jax.random.key(recipe.seed))
  params = module.init(init_key, images[:1])["params"]
  optimizer = optax.adamw(
    optax.cosine_onecycle_schedule(recipe.steps, recipe.learning_rate), weight_decay=recipe.weight_decay
  )
  state = params, optimizer.init(params)
  data = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
  step = jax.jit(functools.partial(_train_step, module, optimizer, recipe), donate_argnums=0)
  for n in tqdm.trange(recipe.steps, desc="classifier", disable=not progress):
    state = step(state, data, key, n)  # no scan: XLA's CPU convolutions are 20 times slower inside a loop
  params = jax.tree.map(np.asarray, state[0])
  net = FeatureNet(
    params,
    image_shape=images.shape[1:],
    num_classes=num_classes,
    recipe=recipe,
    train_digest=npz.digest({"images": images, "labels": np.asarray(labels, np.int32)}),
    test_images=len(test_images),
    test_accuracy=0.0,
  )
  return net.replace(test_accuracy=_accuracy(net, test_images, np.asarray(test_labels)))


def _train_step(module, optimizer, recipe, state, data, key, n):
  """The state after step `n`, whose batch and shifts derive from `key` and `n`."""
  params, opt_state = state
  images, labels = data
  pick_key, shift_key = jax.random.split(jax.random.fold_in(key, n))
  index = jax.random.randint(pick_key, (recipe.batch_size,), 0, len(images))
  batch = _moved(recipe, shift_key, images[index])

  def loss_of(params):
    _, logits = module.apply({"params": params}, batch)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels[index]).mean()

  updates, opt_state = optimizer.update(jax.grad(loss_of)(params), opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def _pixels_to_channels(x):
  """[B, H, W, C] -> [B, H/2, W/2, 4 C], sides rounded up."""
  x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
  return x.reshape(batch, height // 2, width // 2, 4 * channels)


def _moved(recipe, key, images):
  """Augments `images` [B, H, W, C]: random shifts, and mirroring of half of them if the recipe says so."""
  shifts = jax.random.randint(key, (len(images), 2), 0, 2 * recipe.max_shift + 1)
  images = jax.vmap(functools.partial(_shift, max_shift=recipe.max_shift))(images, shifts)
  if not recipe.flip:
    return images
  mirrored = jax.random.bernoulli(jax.random.fold_in(key, 1), shape=(len(images), 1, 1, 1))
  return jnp.where(mirrored, images[:, :, ::-1], images)


def _shift(image, offset, *, max_shift):
  """`image` [H, W, C] shifted by max_shift - `offset`, padded with zeros."""
  padded = jnp.pad(image, ((max_shift, max_shift), (max_shift, max_shift), (0, 0)))
  return jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)


def _accuracy(net: FeatureNet, images: np.ndarray, labels: np.ndarray, batch_size: int = 1000) -> float:
  """Fraction of `images` whose largest logit is their label."""
  classify = jax.jit(lambda net, batch: net.logits(batch).argmax(axis=1))
  batches = [classify(net, images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
  return float(np.mean(np.concatenate(batches) == labels))


def _flat(params) -> dict[str, np.ndarray]:
  return {name: np.asarray(leaf) for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items()}


def _shape(shape) -> str:
  return "x".join(map(str, shape))
