"""A network on blocks of pixels: `block_size` of Ho's high-resolution scripts (space_to_depth, depth_to_space)."""

import flax.linen as nn

from ddpm_jax.errors import UserError


class Patches(nn.Module):
  """The inner network sees each block of size x size pixels as one pixel of size^2 times the channels.

  It costs size^2 times less than on full resolution, for some loss of detail. Its output has size^2 times the channels
  that this one gives: [B, H/size, W/size, k size^2 C] -> [B, H, W, k C], the k heads kept apart.
  """

  network: nn.Module
  size: int

  @nn.compact
  def __call__(self, x, time, cond=None, *, train: bool = False):
    batch, height, width, channels = x.shape
    self.check_size(height, width)
    rows = height // self.size
    columns = width // self.size
    size = self.size
    x = x.reshape(batch, rows, size, columns, size, channels).transpose(0, 1, 3, 2, 4, 5)
    out = self.network(x.reshape(batch, rows, columns, -1), time, cond, train=train)
    out = out.reshape(batch, rows, columns, -1, size, size, channels).transpose(0, 1, 4, 2, 5, 3, 6)
    return out.reshape(batch, height, width, -1)

  def check_size(self, height: int, width: int):
    """Raises UserError when blocks do not tile such images, or the network does not fit what is left."""
    if height % self.size or width % self.size:
      raise UserError(f"images of {height}x{width} cannot be cut into blocks of {self.size}x{self.size}: use block_size=1")
    self.network.check_size(height // self.size, width // self.size)
