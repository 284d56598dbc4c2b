"""Published weights: reading, recognizing and translating them, and writing them back."""

from ddpm_jax.convert import weight_files as files
from ddpm_jax.files import torch_files

__all__ = ["files", "torch_files"]  # the former places of these two modules
