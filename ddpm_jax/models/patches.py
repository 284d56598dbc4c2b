"""A network on blocks of pixels: `block_size` of Ho's high-resolution scripts (space_to_depth, depth_to_space)."""

import flax.linen as nn

from ddpm_jax.errors import UserError


class Patches(nn.Module):
  """The inner network sees each block of size x size pixels as one pixel of size^2 times the channels.

  It costs size^2 times less than at full resolution, at some loss of detail. The inner output
  [B, H/size, W/size, k size^2 C] becomes [B, H, W, k C]; the k heads are kept apart.
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
    """Raises UserError if blocks do not tile images of this size, or the inner network does not fit the result."""
    if height % self.size or width % self.size:
      raise UserError(f"images of {height}x{width} cannot be cut into blocks of {self.size}x{self.size}: use block_size=1")
    self.network.check_size(height // self.size, width // self.size)
