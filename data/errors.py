"""Errors that the user can fix: shown as one line, without a traceback."""

from typing import Any


class UserError(Exception):
    """A mistake in arguments, data or the order of steps; the message says what to do."""

    def __init__(self, message: str = ""):
        super().__init__(without_traceback(message))


class DataError(UserError):
    """Something is wrong with the user's data; the message says what was found and what was wanted."""


class MissingFile(DataError):
    """An image or mask that a list names does not exist."""


class UnknownValue(DataError):
    """A mask, uint8 [H, W], holds a value that is no class."""

    def __init__(self, message: str = "", mask: Any = None):
        super().__init__(message)
        self.mask = mask


def without_traceback(message: str) -> str:
    """The message of an error; one raised in a worker process of torch's loader comes with the worker's traceback."""
    if message.startswith("Caught ") and "Original Traceback" in message:
        return message.rstrip().splitlines()[-1].partition(": ")[2]
    return message
