"""The side of a sandbox that keeps the labels and the clock: it sends images, takes logits and times round trips."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from slimkit.core.errors import MissedError, ModelError
from slimkit.core.measure.processes import worker_environment
from slimkit.core.strangers import bubblewrap, child
from slimkit.core.strangers.convention import Submission, printable
from slimkit.core.strangers.walls import BUBBLEWRAP, MOST_SECONDS, WALLS
from slimkit.core.strangers.watch import excess

START_SECONDS, LOAD_SECONDS, ANSWER_SECONDS = 60.0, 120.0, 60.0
MOST_SAID = 2**16  # bytes of JSON
MOST_CLASSES = 100_000
WATCH_SECONDS = 0.5  # between looks at what it takes
DEFAULT_MEMORY = 4 * 2**30  # bytes
HINT = "This folder is not ranked; its author can run it with the same command."


@dataclass
class Stranger:
    """A stranger's model in a process of its own."""

    submission: Submission
    walls: dict[str, str]  # for each of WALLS, and for BUBBLEWRAP: "" where it holds, or why it is missing
    process: subprocess.Popen[bytes] = field(repr=False)
    _requests: int = field(repr=False)  # descriptors of the pipes
    _answers: int = field(repr=False)
    _scratch: Path = field(repr=False)
    _errors: IO[bytes] = field(repr=False)
    _deadline: float = field(default_factory=lambda: time.monotonic() + MOST_SECONDS, repr=False)
    _looked: float = field(default_factory=time.monotonic, repr=False)
    load_ms: float = 0.0  # the loading of its runtime and its model

    @property
    def _name(self) -> str:
        return printable(self.submission.folder.name)

    def rest(self) -> None:
        """Let none of its threads compute until it is woken."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        """To its session, which it can't have left; it may have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def require_walls(self, allow_weaker: bool) -> None:
        """Raise MissedError where the folder's code would be run with a wall missing, unless that is allowed."""
        missing = [f"{name} ({why})" for name in WALLS if (why := self.walls[name])]
        if missing and self.submission.needs_code and not allow_weaker:
            raise MissedError(
                f"The sandbox for {self._name} lacks {' and '.join(missing)}; its code was not run.",
                "Run this on Linux with landlockpy installed, or give --allow-weaker-sandbox.",
            )

    def ask(self, images: Tensor) -> tuple[Tensor, float]:
        """The logits float32 [n, classes] for images float32 [n, c, h, w], and the ms that they took, there and back.

        Raises ModelError for an answer that is late, of another shape, not finite, or given before it was asked for.
        """
        if select.select([self._answers], [], [], 0)[0]:
            raise self._failure("it answered before it was asked")
        content = struct.pack("<4I", *images.shape) + images.contiguous().numpy().tobytes()
        start, until = time.perf_counter_ns(), time.monotonic() + ANSWER_SECONDS
        self._send(b"X" + struct.pack("<I", len(content)) + content, until)
        logits = self._read_logits(len(images), until)
        took = (time.perf_counter_ns() - start) / 1e6
        self._look()
        if not torch.isfinite(logits).all():
            raise self._failure("its logits are not finite")
        return logits, took

    def _read_logits(self, images: int, until: float) -> Tensor:
        kind, length = self._read_head(until)
        if kind != b"Y" or not 12 <= length <= 12 + 4 * images * MOST_CLASSES:
            raise self._failure("it answered with something else than logits")
        content = self._read(length, until)
        dimensions, *shape = struct.unpack("<3I", content[:12])
        if dimensions != 2 or shape[0] != images or 12 + 4 * shape[0] * shape[1] != length:
            raise self._failure(f"it answers {images} images with numbers of another shape than [{images}, classes]")
        return torch.frombuffer(bytearray(content[12:]), dtype=torch.float32).view(shape)

    def read_message(self, seconds: float) -> dict[str, Any]:
        """What it says in JSON. Raises ModelError where it says something else, nothing, or too much."""
        until = time.monotonic() + seconds
        kind, length = self._read_head(until)
        if kind != b"J" or length > MOST_SAID:
            raise self._failure("it speaks out of turn")
        try:
            said = json.loads(self._read(length, until))
        except ValueError:
            raise self._failure("it speaks out of turn") from None
        return said if isinstance(said, dict) else {}

    def _read_head(self, until: float) -> tuple[bytes, int]:
        head = self._read(5, until)
        return head[:1], struct.unpack("<I", head[1:])[0]

    def _send(self, content: bytes, until: float) -> None:
        rest = memoryview(content)
        while rest:
            self._wait([], [self._requests], until)
            try:
                rest = rest[os.write(self._requests, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._failure("its process ended") from None

    def _read(self, count: int, until: float) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            self._wait([self._answers], [], until)
            try:
                part = os.read(self._answers, min(count - len(parts), 2**20))
            except BlockingIOError:  # it took back what it had written
                continue
            if not part:
                raise self._failure("its process ended")
            parts += part
        return bytes(parts)

    def _wait(self, readers: list[int], writers: list[int], until: float) -> None:
        """Until a pipe is ready. Raises ModelError where that takes too long, or it takes too much meanwhile."""
        until = min(until, self._deadline)
        while not any(select.select(readers, writers, [], min(WATCH_SECONDS, max(0.0, until - time.monotonic())))):
            if time.monotonic() >= until:
                raise self._failure("it gave no answer in time")
            self._look()

    def _look(self) -> None:
        """Raise ModelError where it takes more of the machine than it may; nothing within WATCH_SECONDS of the last."""
        if time.monotonic() - self._looked < WATCH_SECONDS:
            return
        if what := excess(self.process.pid, self._scratch):
            raise self._failure(what)
        self._looked = time.monotonic()

    def _failure(self, what: str) -> ModelError:
        """With the last line that it wrote to stderr: what Python says of an error."""
        if what == "its process ended":
            what = self._how_it_ended()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4096))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        said = f" ({printable(lines[-1])})" if lines else ""
        return ModelError(f"{self._name} failed: {what}{said}.", HINT)

    def _how_it_ended(self) -> str:
        try:
            code = self.process.wait(WATCH_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its pipes"
        number = -code if code < 0 else code - 128  # bubblewrap tells signals as shells do
        names = {each.value: each.name for each in signal.Signals}
        how = f"by signal {names.get(number, number)}" if number > 0 else f"with code {code}"
        return f"its process ended {how}"


@contextmanager
def start(
    submission: Submission,
    *,
    threads: int,
    memory: int = DEFAULT_MEMORY,
    allow_weaker: bool = False,
    packages: Sequence[Path] = (),
) -> Iterator[Stranger]:
    """A process with the model of `submission`, loaded; it and all that it wrote are gone with the context.

    memory: bytes that it may use. allow_weaker: run its code though a wall is missing.
    packages: folders of packages that go before those that are installed here.
    Raises MissedError where a wall is missing, ModelError where the model can't be loaded.
    """
    scratch = Path(tempfile.mkdtemp(prefix="slimkit-stranger-"))
    their_requests, requests = os.pipe()
    answers, their_answers = os.pipe()
    try:
        with tempfile.TemporaryFile() as errors:
            arguments = (scratch, memory, threads, their_requests, their_answers, *packages)
            absent = bubblewrap.why_absent()
            process = subprocess.Popen(
                [
                    *([] if absent else bubblewrap.around([submission.folder, *packages], scratch)),
                    *(sys.executable, child.__file__, submission.kind, str(submission.weights), *map(str, arguments)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(their_requests, their_answers),
                env=_environment(threads, scratch),
                cwd=scratch,
                start_new_session=True,
            )
            os.close(their_requests)
            os.close(their_answers)
            for ours in (requests, answers):  # the other end is not to be relied on
                os.set_blocking(ours, False)
            stranger = Stranger(submission, {}, process, requests, answers, scratch, errors)
            try:
                said = stranger.read_message(START_SECONDS).get("walls", {})
                stranger.walls = {name: str(said.get(name, "it was not said")) for name in WALLS}
                stranger.walls[BUBBLEWRAP] = absent
                stranger.require_walls(allow_weaker)
                began = time.perf_counter()
                os.write(requests, b"G")
                stranger.read_message(LOAD_SECONDS)
                stranger.load_ms = 1e3 * (time.perf_counter() - began)
                yield stranger
            finally:
                _end(process)
    finally:
        os.close(requests)
        os.close(answers)
        _remove(scratch)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it and its session: it can't have left that, nor started others where the filter of calls holds."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.wait()


def _remove(scratch: Path) -> None:
    """By rm, which goes as deep as a hostile folder, where Python's own would reach its limit of recursion."""
    subprocess.run(["rm", "-rf", "--", scratch], stderr=subprocess.DEVNULL, check=False)


def _environment(threads: int, scratch: Path) -> dict[str, str]:
    """What a computation needs: neither the user's names and secrets nor a home."""
    computing = {"LD_LIBRARY_PATH", "LD_PRELOAD", "LRU_CACHE_CAPACITY"}
    prefixes = ("OMP_", "GOMP_", "KMP_", "ONEDNN_", "DNNL_", "ATEN_", "PYTHON")
    kept = {n: v for n, v in worker_environment(threads).items() if n in computing or n.startswith(prefixes)}
    return kept | {"HOME": str(scratch), "TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"}
