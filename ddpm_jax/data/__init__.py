"""Real images: data sets on disk to batches in [-1, 1], and batches back to pictures on disk."""

from ddpm_jax.data.load import default_data_dir, load
from ddpm_jax.data.pipeline import Batches, eval_batches, train_batches
from ddpm_jax.data.sources import Info, Source

__all__ = ["Batches", "Info", "Source", "default_data_dir", "eval_batches", "load", "train_batches"]
