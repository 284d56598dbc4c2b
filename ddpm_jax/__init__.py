"""The DDPM family in JAX: DDPM, DDIM, Improved DDPM, ADM, Analytic-DPM, NPR-DPM and SN-DPM.

Examples:
  Load a trained run and draw 64 images from it:

    run = ddpm_jax.load("runs/digits")
    images = run.sample(range(64))

  Train a run from a config:

    ddpm_jax.train(ddpm_jax.config.load("digits"), "runs/digits")
"""

__version__ = "0.1.0"
__all__ = ["config", "load", "train"]


def __getattr__(name):
  """Imports the parts that need JAX on first use, so that `import ddpm_jax` stays fast."""
  if name == "config":
    import importlib

    return importlib.import_module("ddpm_jax.config")
  if name == "load":
    from ddpm_jax.jobs.trained import load

    return load
  if name == "train":
    from ddpm_jax.jobs.train import train

    return train
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
