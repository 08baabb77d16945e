"""What any exception means to the user: a line that says what is wrong, one that says how to fix it, an exit code."""

import errno
from dataclasses import dataclass

import typer

from slimkit.core.errors import SlimkitError


class Terminated(BaseException):
    """SIGTERM came. No `Exception`, so that nothing but clean-up code stops it on its way out."""


@dataclass(frozen=True)
class Failure:
    """How a command failed."""

    message: str
    hint: str
    exit_code: int = 1


def explain(error: BaseException) -> Failure:
    """Map `error` to what is told of it."""
    again = "Whatever was finished before is whole; give the command again to go on, train and distill with --resume."
    match error:
        case SlimkitError():
            return Failure(str(error), error.hint, error.exit_code)
        case typer.TyperException():
            return _explain_usage(error)
        case KeyboardInterrupt():
            return Failure("Interrupted.", again, 130)
        case Terminated():
            return Failure("Terminated.", again, 143)
        case OSError():
            return _explain_os_error(error)
        case MemoryError():
            return Failure("The memory does not suffice.", "Give a smaller --batch-size or --image-size.")
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return Failure(f"internal error: {message}", "Run again with --debug, and report what it shows with `slimkit env`.")


def _explain_usage(error: typer.TyperException) -> Failure:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "slimkit"
    message = " ".join(error.format_message().split()).replace(": Value error, ", ": ").rstrip(".")
    end = "" if message.endswith("?") else "."
    return Failure(message + end, f"`{command} --help` lists what there is.", error.exit_code)


def _explain_os_error(error: OSError) -> Failure:
    path = error.filename or "a file"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return Failure(f"The disk is full: {path} can't be written.", "Free some, or give another -o/--output.")
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return Failure(f"{path} can't be used: {error.strerror}.", "Give yourself access, or another path.")
        case errno.ENOENT:
            return Failure(f"There is no {path}.", "Check the path.")
        case errno.ENOTDIR | errno.EEXIST | errno.EISDIR:
            return Failure(f"{path} can't be used: {error.strerror}.", "Give another path.")
    return Failure(f"The system refused {path}: {error.strerror or error}.", "Fix that, and run again.")
