"""The one exception for what a user can cause and mend."""


class UserError(ValueError):
  """One sentence for the user: the value, the rule, the remedy. The command line prints it and exits with code 2."""
