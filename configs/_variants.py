"""Variants of a config, selected by `--config name:variant`."""

from ddpm_jax.errors import UserError


def variants(variant: str, known: tuple[str, ...] = ("",)) -> tuple[str, bool]:
  """("uncond-smoke", ("cond", "uncond")) -> ("uncond", True); "" selects the first known variant.

  Raises:
    UserError: for a variant that is not known.
  """
  which = variant.removesuffix("smoke").removesuffix("-")
  smoke = variant.endswith("smoke")
  which = which or known[0]
  if which not in known:
    raise UserError(f"This config has no variant {which!r}; choose from {', '.join([*filter(None, known), 'smoke'])}.")
  return which, smoke
