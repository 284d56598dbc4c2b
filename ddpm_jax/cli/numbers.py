"""Lists of integers on the command line."""

from ddpm_jax.errors import UserError


def integers(text: str, flag: str) -> list[int]:
  """The numbers of "0-63", "7" or "3,5,8-10".

  >>> integers("3,5,8-10", "--seeds")
  [3, 5, 8, 9, 10]

  Raises:
    UserError: if it is no such list, or empty.
  """
  numbers = []
  for part in text.split(","):
    first, dash, last = part.partition("-")
    try:
      numbers += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
      raise UserError(f"{flag} {text!r} is no list of numbers; write one like 0-63 or 3,5,8-10.") from None
  if not numbers:
    raise UserError(f"{flag} {text!r} is empty; write one like 0-63 or 3,5,8-10.")
  return numbers
