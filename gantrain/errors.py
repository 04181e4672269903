"""How a command may end before its work is done; each text is the whole message, on one line."""


class RunError(RuntimeError):
    """The command cannot go on: why, and what to do about it."""


class UsageError(ValueError):
    """The command was given settings that do not go together."""


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""
