"""A process that times one network (`worker.py`), as it is seen from here."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from slimkit.core.errors import ModelError
from slimkit.core.measure import worker
from slimkit.core.measure.processes import read_answer, worker_environment


class Timed(Protocol):
    """A network in a process of its own, whoever keeps the clock."""

    def answer(self) -> dict[str, Any]:
        """That it has loaded the network, and in how many ms."""

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Its answer to a request of `worker.REQUESTS`."""


@dataclass(frozen=True)
class TimedProcess:
    """It computes when it is asked, and sleeps otherwise."""

    path: Path  # of the network
    process: subprocess.Popen[str]
    stderr: IO[bytes]

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Its answer to a request of `worker.REQUESTS`. Raises ModelError where it has none."""
        assert self.process.stdin is not None  # a pipe, by construction
        try:
            print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise self._failure() from None
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Its next answer, the first being that it has loaded the network. Raises ModelError where it died."""
        try:
            line = read_answer(self.process)
        except TimeoutError as error:
            raise ModelError(
                f"{self.path} can't be timed: {error}.", "Give a smaller network, or a smaller batch."
            ) from None
        if not line:
            raise self._failure()
        values: dict[str, Any] = json.loads(line)
        return values

    def _failure(self) -> ModelError:
        code = self.process.wait()
        self.stderr.seek(0)
        lines = [line.strip() for line in self.stderr.read().decode(errors="replace").splitlines() if line.strip()]
        # Python ends with 1 after a traceback; whatever else ended it did not write the last line
        reason = lines[-1] if code == 1 and lines else f"its process ended with code {code}"
        return ModelError(
            f"{self.path} can't be timed: {reason}",
            "Check it with `slimkit inspect`; a process that ended without a word may have run out of memory.",
        )


@contextmanager
def start_process(
    path: Path, backend: str, threads: int, batch_size: int, images: Path | None = None
) -> Iterator[TimedProcess]:
    """Start a process that times the model folder or .onnx file `path`; it is killed on the way out, whatever the way.

    images: an .npy file of what the network is shown, float32 [batches * batch_size, channels, height, width]; None:
    one random batch.
    """
    environment = worker_environment(threads)
    if images is not None:
        # what torch.compile keeps lies beside them: a run finds nothing of another, and leaves nothing
        environment |= {
            "TORCHINDUCTOR_CACHE_DIR": str(images.resolve().parent / "compiled"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of processes of its own
        }
    words = [path.resolve(), backend, threads, batch_size, *([] if images is None else [images.resolve()])]
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [sys.executable, worker.__file__, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends its workers
        )
        try:
            yield TimedProcess(path, process, stderr)
        finally:
            process.kill()
            process.communicate()  # closes the pipes and reaps it
