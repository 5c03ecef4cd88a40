"""Errors that are the user's to mend: shown as one line, without a traceback."""


class UserError(Exception):
    """A mistake in arguments, data or the order of steps; the message says what to do."""
