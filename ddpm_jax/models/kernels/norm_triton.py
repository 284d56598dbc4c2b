"""`norm.py` for NVIDIA GPUs: one Triton kernel for the value and one for the gradients, written in Pallas.

Each program works on one image and a few whole groups of channels. If this tile fits into registers, x is read from memory
once per pass. Otherwise the program loops over chunks of pixels two or three times; the active tiles fit into the L2 cache.

The kernels compute the statistics themselves, which costs no memory traffic and saves separate kernels.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton
from jax.sharding import NamedSharding, PartitionSpec

NARROWEST = 16  # channels of a tile: memory transfers at least 32 bytes, 16 numbers in bfloat16
LARGEST = 16384  # elements of a tile that stays in registers
PER_THREAD = 32  # elements


def value(*args, form, interpret=False):
  """`norm._plain_value` in Triton."""
  call = functools.partial(_value, form=form, interpret=interpret)
  if not interpret:
    call = _over_images(call)
  return call(*_packed(args, form, 0)), *args[: form.parts]


def backward(*args, form, interpret=False):
  """`norm._plain_backward` in Triton."""
  call = functools.partial(_backward, form=form, interpret=interpret)
  if not interpret:
    call = _over_images(call)
  return call(*_packed(args, form, 1 + form.parts * form.residual))


def _packed(args, form, before):
  """The arguments without mean and 1 / std. Of offset, scale and bias, those that differ by image are one array [B, 3, C].

  One kernel writes them next to each other, not one for each. Vectors that are the same for all images are parameters, of
  which a sampler's loop needs no copy: three arrays [1, 1, C].
  """
  place = before + form.parts
  vectors = args[place : place + 3]
  rows = max(len(v) for v in vectors)
  stacked = jnp.stack([jnp.broadcast_to(v, (rows, v.shape[1])) for v in vectors], 1)
  return *args[:place], *([stacked] if rows > 1 else [v[:, None] for v in vectors]), *args[place + 5 :]


# ---------------------------------------------------------------- the kernels


def _value(*args, form, interpret):
  xs = args[: form.parts]
  tile = Tile(xs, form.groups)

  def kernel(*refs):
    tile.locate()
    x_refs = refs[: form.parts]
    vectors, keep = _split(refs[form.parts : -1], form)
    y_ref = refs[-1]
    offset, scale, bias = tile.vectors(vectors)
    u = tile.remembered(lambda chunk: tile.load(x_refs, chunk) + offset)
    mean, rstd = tile.statistics(u, form.eps)

    def write(chunk):
      z = (u(chunk) - mean) * (rstd * scale) + bias
      y = z * jax.nn.sigmoid(z) if form.silu else z
      tile.store([y_ref], chunk, _dropped(tile, y, keep, chunk, form))

    tile.each(write)

  return tile.run(kernel, tile.whole(form.dtype), args, interpret)


def _backward(*args, form, interpret):
  before = 1 + form.parts * form.residual
  xs = args[before : before + form.parts]
  tile = Tile(xs, form.groups)
  vector = jax.ShapeDtypeStruct((len(xs[0]), tile.all_channels), jnp.float32)

  def kernel(*refs):
    tile.locate()
    out_refs = refs[len(args) :]
    refs = refs[: len(args)]
    dy_ref = refs[0]
    dx_refs = refs[1:before]
    x_refs = refs[before : before + form.parts]
    vectors, keep = _split(refs[before + form.parts :], form)
    offset, scale, bias = tile.vectors(vectors)
    u = tile.remembered(lambda chunk: tile.load(x_refs, chunk) + offset)
    mean, rstd = tile.statistics(u, form.eps)

    def of_chunk(chunk):
      """(normalized, dz)"""
      normalized = tile.inside_of((u(chunk) - mean) * rstd, chunk)
      dz = tile.load([dy_ref], chunk)
      if form.silu:
        z = normalized * scale + bias
        sigmoid = jax.nn.sigmoid(z)
        dz *= sigmoid * (1 + z * (1 - sigmoid))
      return normalized, _dropped(tile, dz, keep, chunk, form)

    both = tile.remembered(of_chunk)

    def terms(chunk):
      normalized, dz = both(chunk)
      return normalized, dz * normalized, dz

    over_pixels, dscale, dbias = tile.sum(terms, 3)
    mean_1 = tile.group_sum(scale * dbias) / tile.count
    mean_2 = tile.group_sum(scale * dscale) / tile.count

    def write(chunk):
      normalized, dz = both(chunk)
      du = rstd * (dz * scale - mean_1 - normalized * mean_2)
      tile.store(out_refs[: form.parts], chunk, du + tile.load(dx_refs, chunk) if form.residual else du)

    tile.each(write)
    doffset = rstd * (scale * dbias - tile.pixels * mean_1 - over_pixels * mean_2)
    for ref, v in zip(out_refs[form.parts :], (doffset, dscale, dbias), strict=True):
      tile.store_vector(ref, v)

  gradients = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in xs]
  return tile.run(kernel, [*gradients, vector, vector, vector], args, interpret)


def _split(refs, form):
  """(the vectors, the mask if there is one)"""
  count = len(refs) - bool(form.rate)
  return refs[:count], refs[count:]


def _dropped(tile, y, keep, chunk, form):
  if not form.rate:
    return y
  return jnp.where(tile.load(keep, chunk) != 0, y / (1 - form.rate), 0.0)


class Tile:
  """The part of x that one program works on: whole groups of channels of one image, in chunks of pixels.

  Triton needs sizes that are powers of two; elements beyond the image or the groups are masked. Arrays of a chunk are
  [rows, lanes] and vectors of channels [1, lanes], both float32.
  """

  def __init__(self, xs: tuple, groups: int):
    self.images, self.pixels = xs[0].shape[:2]
    self.channels = [x.shape[-1] for x in xs]
    self.all_channels = sum(self.channels)
    self.of_group = self.all_channels // groups
    self.count = self.pixels * self.of_group
    enough = [k for k in range(1, groups + 1) if groups % k == 0 and k * self.of_group >= NARROWEST]
    together = min(enough, default=groups)
    self.width = together * self.of_group
    self.lanes = pl.next_power_of_2(self.width)
    self.rows = min(pl.next_power_of_2(self.pixels), max(LARGEST // self.lanes, 1))
    self.chunks = math.ceil(self.pixels / self.rows)
    self.programs = groups // together

  def whole(self, dtype):
    """The shape of the concatenated x."""
    return jax.ShapeDtypeStruct((self.images, self.pixels, self.all_channels), dtype)

  def run(self, kernel, shapes, args, interpret):
    """Runs `kernel` for all tiles, image by image, so that tiles of one image share cached reads."""
    warps = min(max(self.rows * self.lanes // (32 * PER_THREAD), 1), 16)
    how = {"interpret": True} if interpret else {"compiler_params": triton.CompilerParams(num_warps=warps)}
    return pl.pallas_call(kernel, out_shape=shapes, grid=(self.programs, self.images), **how)(*args)

  # -------------------------------------------------------------- memory

  def locate(self):
    """Reads this program's tile index. Call it first: Pallas's interpreter cannot read the index inside loops."""
    self.first_channel = pl.program_id(0) * self.width
    self.image = pl.program_id(1)

  def lane(self):
    return jax.lax.broadcasted_iota(jnp.int32, (1, self.lanes), 1)

  def pixel(self, chunk):
    return chunk * self.rows + jax.lax.broadcasted_iota(jnp.int32, (self.rows, 1), 0)

  def channel(self):
    return self.first_channel + self.lane()

  def inside(self, chunk):
    """The mask of elements inside the image and the groups."""
    return (self.pixel(chunk) < self.pixels) & (self.lane() < self.width)

  def inside_of(self, x, chunk):
    """x with zeros outside the mask."""
    full = self.lanes == self.width and self.chunks * self.rows == self.pixels
    return x if full else jnp.where(self.inside(chunk), x, 0.0)

  def places(self, refs, chunk):
    """(index of the tile, its mask) in each of the arrays `refs`, which are parts of x or the whole x."""
    begin = 0
    for ref in refs:
      channel = self.channel() - begin
      mine = self.inside(chunk)
      if len(refs) > 1:
        mine &= (channel >= 0) & (channel < ref.shape[-1])
      yield ref.at[self.image, self.pixel(chunk), channel], mine
      begin += ref.shape[-1]

  def load(self, refs, chunk):
    parts = [triton.load(place, mask=mine, other=0).astype(jnp.float32) for place, mine in self.places(refs, chunk)]
    return sum(parts[1:], parts[0])

  def store(self, refs, chunk, x):
    for ref, (place, mine) in zip(refs, self.places(refs, chunk), strict=True):
      triton.store(place, x.astype(ref.dtype), mask=mine)

  def vectors(self, refs):
    """The tile's part of offset, scale and bias, from one array or three; see `_packed`."""
    places = [ref.at[self.image if ref.shape[0] > 1 else 0, i, self.channel()] for ref in refs for i in range(ref.shape[1])]
    return [triton.load(place, mask=self.lane() < self.width, other=0) for place in places]

  def store_vector(self, ref, v):
    triton.store(ref.at[self.image, self.channel()], v, mask=self.lane() < self.width)

  # -------------------------------------------------------------- loops and sums

  def remembered(self, function):
    """`function`, cached if there is only one chunk."""
    if self.chunks > 1:
      return function
    found = function(0)
    return lambda chunk: found

  def each(self, function):
    """Calls function(chunk) for every chunk."""
    if self.chunks == 1:
      function(0)
      return

    def body(chunk, carry):
      function(chunk)
      return carry

    jax.lax.fori_loop(0, self.chunks, body, 0)

  def sum(self, function, count):
    """Sums over all pixels of the `count` arrays that function(chunk) returns."""
    if self.chunks == 1:
      total = function(0)
    else:
      add = lambda chunk, total: tuple(t + x for t, x in zip(total, function(chunk), strict=True))
      total = jax.lax.fori_loop(0, self.chunks, add, (jnp.zeros((self.rows, self.lanes), jnp.float32),) * count)
    return [jnp.sum(t, 0).reshape(1, self.lanes) for t in total]

  def group_sum(self, v):
    """For every channel, the sum over its group."""
    row = jax.lax.broadcasted_iota(jnp.int32, (self.lanes, self.lanes), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (self.lanes, self.lanes), 1)
    same = jax.lax.div(row, self.of_group) == jax.lax.div(column, self.of_group)
    return jnp.sum(jnp.where(same, v, 0.0), 1).reshape(1, self.lanes)

  def statistics(self, load, eps):
    """(mean, 1 / std) of load(chunk): two passes in registers, otherwise one, shifted by the mean of the first chunk."""
    if self.chunks == 1:
      (total,) = self.sum(lambda chunk: (self.inside_of(load(chunk), chunk),), 1)
      mean = self.group_sum(total) / self.count
      (squares,) = self.sum(lambda chunk: (self.inside_of(load(chunk) - mean, chunk) ** 2,), 1)
      return mean, jax.lax.rsqrt(self.group_sum(squares) / self.count + eps)
    first = jnp.sum(self.inside_of(load(0), 0), 0).reshape(1, self.lanes)
    shift = self.group_sum(first) / (self.rows * self.of_group)

    def powers(chunk):
      x = self.inside_of(load(chunk) - shift, chunk)
      return x, x * x

    total, squares = self.sum(powers, 2)
    mean = self.group_sum(total) / self.count
    var = self.group_sum(squares) / self.count - mean * mean
    return mean + shift, jax.lax.rsqrt(jnp.maximum(var, 0.0) + eps)


# ---------------------------------------------------------------- several devices


def _over_images(call):
  """`call`, sharded over images. XLA cannot partition a kernel; otherwise it would gather the operands on every device."""

  def by_image(mesh, given):
    spec = given[0].sharding.spec
    sharding = NamedSharding(mesh, PartitionSpec(spec[0] if spec else None))
    return lambda shapes: jax.tree.map(lambda _: sharding, shapes)

  def partition(mesh, given, result):
    of = by_image(mesh, given)
    whole = NamedSharding(mesh, PartitionSpec())
    images = given[0].shape[0]
    return mesh, call, of(result), tuple(of(x) if x.shape[0] == images else whole for x in given)

  def infer(mesh, given, result):
    return by_image(mesh, given)(result)

  def rule(mesh, given, result):
    def factors(shapes, name):
      first = lambda i, shape: "images" if shape[0] == given[0].shape[0] else f"{name}{i}x0"
      own = lambda i, shape: " ".join([first(i, shape), *(f"{name}{i}x{axis}" for axis in range(1, len(shape)))])
      return ", ".join(own(i, x.shape) for i, x in enumerate(shapes))

    return f"{factors(given, 'in')} -> {factors(jax.tree.leaves(result), 'out')}"

  wrapped = custom_partitioning(lambda *args: call(*args))  # custom_partitioning does not resolve keywords
  wrapped.def_partition(partition, infer_sharding_from_operands=infer, sharding_rule=rule)
  return wrapped
