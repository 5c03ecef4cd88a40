"""Errors that are the user's to mend: shown as one line, without a traceback."""


class UserError(Exception):
    """A mistake in arguments, data or the order of steps; the message says what to do."""

    def __init__(self, message: str = ""):
        super().__init__(without_traceback(message))


def without_traceback(message: str) -> str:
    """The message of an error; raised in a worker process of torch's loader it comes with the worker's traceback."""
    if message.startswith("Caught ") and "Original Traceback" in message:
        return message.rstrip().splitlines()[-1].partition(": ")[2]
    return message
