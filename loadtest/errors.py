"""What the user of the command got wrong, and a server that cannot be measured at all."""


class UsageError(ValueError):
    """Told as one line, with exit code 2."""
