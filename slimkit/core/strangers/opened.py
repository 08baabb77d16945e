"""A stranger's folder, ready to be started: permission asked for, copied, its requirements installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from slimkit.core.bytes import parse_bytes
from slimkit.core.errors import UsageError
from slimkit.core.options import SandboxOptions
from slimkit.core.strangers.convention import Submission, read_submission
from slimkit.core.strangers.host import Stranger, start
from slimkit.core.strangers.requirements import installed
from slimkit.core.strangers.snapshot import snapshot

Launch = Callable[[int], AbstractContextManager[Stranger]]  # with so many threads, a new process with it loaded


def read_permitted(path: Path, options: SandboxOptions) -> Submission:
    """What a stranger's folder holds. Raises UsageError where its code would be run unasked, and FolderError."""
    submission = read_submission(path)
    if submission.needs_code and not options.run_code:
        raise UsageError(
            f"{path} is run by code of its own ({submission.kind}), which slimkit does not run unasked.",
            "Give --run-code to run it in a sandbox, where it sees neither labels nor files.",
        )
    return submission


@contextmanager
def opened(submission: Submission, options: SandboxOptions) -> Iterator[tuple[Submission, Launch]]:
    """Its copy, which nobody else can change, and what starts that; both are of use while the block runs.

    Raises FolderError for what is no file, ModelError where its requirements can't be installed.
    """
    with (
        snapshot(submission) as copy,
        installed(copy) if options.install_requirements else nullcontext(()) as packages,
    ):
        yield copy, launcher(copy, options, packages)


def launcher(submission: Submission, options: SandboxOptions, packages: Sequence[Path] = ()) -> Launch:
    """What starts `submission` behind the walls that `options` ask for."""

    def launch(threads: int) -> AbstractContextManager[Stranger]:
        return start(
            submission,
            threads=threads,
            memory=parse_bytes(options.max_memory),
            allow_weaker=options.allow_weaker_sandbox,
            packages=packages,
        )

    return launch
