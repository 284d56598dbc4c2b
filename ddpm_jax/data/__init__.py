"""Real images: data sets on disk to batches in [-1, 1], and batches back to pictures on disk."""

from ddpm_jax.data.datasets import data_root, load, prepared
from ddpm_jax.data.pipeline import Batches, eval_batches, train_batches
from ddpm_jax.data.sources import Info, Source

__all__ = ["Batches", "Info", "Source", "data_root", "eval_batches", "load", "prepared", "train_batches"]
