"""Lists of numbers on the command line."""

from ddpm_jax.errors import UserError

MOST = 10_000_000


def integers(text: str, flag: str) -> list[int]:
  """The numbers of "0-63", "7" or "3,5,8-10".

  >>> integers("3,5,8-10", "--seeds")
  [3, 5, 8, 9, 10]

  Raises:
    UserError: if the text is not such a list, or is empty.
  """
  numbers: list[int] = []
  for part in text.split(","):
    first, dash, last = part.partition("-")
    try:
      numbers += range(int(first), min(int(last), int(first) + MOST) + 1) if dash else [int(first)]
    except ValueError:
      raise UserError(f"{flag} {text!r} is not a list of numbers; write one like 0-63 or 3,5,8-10.") from None
    if len(numbers) > MOST:
      raise UserError(f"{flag} {text!r} is more than {MOST:,} numbers: use a part at a time.")
  if not numbers:
    raise UserError(f"{flag} {text!r} is empty; write one like 0-63 or 3,5,8-10.")
  return numbers


def floats(text: str, flag: str) -> list[float]:
  """The numbers of "0.1,0.25,0.5".

  Raises:
    UserError: if the text is not such a list.
  """
  try:
    return [float(part) for part in text.split(",")]
  except ValueError:
    raise UserError(f"{flag} {text!r} is not a list of numbers; write one like 0.1,0.25,0.5.") from None
