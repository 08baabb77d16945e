"""The exceptions that slimkit raises on purpose.

Each carries one sentence that says what is wrong (``str(error)``) and one that says how to fix it (``error.hint``).
The command line maps them in one place, ``slimkit/cli/app.py``, to two printed lines and ``error.exit_code``.
"""


class SlimkitError(Exception):
    """Something went wrong in a way that the user can fix."""

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(SlimkitError):
    """An option or an argument has a value that can't be used."""

    exit_code = 2


class DataError(SlimkitError):
    """A data set, or an image in it, can't be used."""


class ModelError(SlimkitError):
    """A network can't be built, captured, cut or quantized."""


class FolderError(SlimkitError):
    """A model folder is missing, incomplete, damaged, or can't be written."""


class NetworkError(SlimkitError):
    """Something had to be downloaded and the network did not give it."""


class RankError(SlimkitError):
    """Another process of a training that several share has ended."""


class MissedError(SlimkitError):
    """A budget or a check was missed."""

    exit_code = 3


def first_line(error: Exception) -> str:
    """What an error of the network's own code says, short enough to be quoted."""
    return (str(error) or type(error).__name__).splitlines()[0]
