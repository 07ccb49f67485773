"""What goes wrong through input, not through a bug."""


class InputError(ValueError):
    """A file, field or argument that cannot be used.

    The message names the field, what was expected and what was found; programs print
    it without a traceback and exit with 2.
    """


class TrainingError(RuntimeError):
    """A run that cannot go on; programs print the message and exit with 1."""


class Stopped(Exception):
    """A run that was asked to end and has saved; programs exit with 0."""
