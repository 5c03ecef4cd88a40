"""Errors that are the user's to mend: shown as one line, without a traceback."""


class UserError(Exception):
    """A mistake in arguments, data or the order of steps; the message says what to do."""

    def __init__(self, message: str = ""):
        # Raised in a worker process of torch's loader, it comes back with the worker's traceback around its message.
        if message.startswith("Caught ") and "Original Traceback" in message:
            message = message.rstrip().splitlines()[-1].partition(": ")[2]
        super().__init__(message)
