"""What is timed: each model in each backend, the baseline, and how the process of each is started.

Where all are slimkit's, a worker keeps the clock around each run. Where one is not, the clock of a worker is not to be
believed: then all of them, like for like, are asked from here, behind the same walls, and there and back is timed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from slimkit.core.benchmark.models import Foreign, Model, open_models
from slimkit.core.errors import ModelError, UsageError
from slimkit.core.export import to_onnx
from slimkit.core.folder import Classifier, weights_file
from slimkit.core.measure.size import MB, size_mb
from slimkit.core.measure.timed_process import Timed, start_process
from slimkit.core.models.resolve import materialize
from slimkit.core.options import Backend, BenchmarkOptions
from slimkit.core.progress import Progress
from slimkit.core.strangers.convention import Submission, is_foreign
from slimkit.core.strangers.opened import launcher
from slimkit.core.strangers.round_trips import start_round_trips

log = logging.getLogger("slimkit")

READ_ONNX = ("onnxruntime", "openvino")
EXTRAS = {"openvino": "openvino"}  # backends that not everyone has, and what of slimkit's extras brings them


@dataclass(frozen=True)
class Candidate:
    """A model in a backend."""

    model: Model
    backend: str  # or the kind of a stranger's model
    threads: int
    size: float  # MB, of the weights file or the .onnx file
    logits: Path  # an .npy file where its process puts its answers to the model's images
    launch: Callable[[int], AbstractContextManager[Timed]]  # a process with so many threads

    def start(self) -> AbstractContextManager[Timed]:
        """A new process of it."""
        return self.launch(self.threads)


def require_backends(options: BenchmarkOptions) -> None:
    """Raise UsageError for a backend that is not installed (it isn't imported), or can't be used with these models."""
    for name in options.backend:
        if name in EXTRAS and importlib.util.find_spec(EXTRAS[name]) is None:
            raise UsageError(
                f"--backend {name}: {name} is not installed.", f'Run `pip install "slimkit[{EXTRAS[name]}]"`.'
            )
    if "compile" in options.backend and _are_strangers(options):
        raise UsageError(
            "--backend compile calls a compiler, which nothing can behind the walls around strangers' folders.",
            "Leave it out, or leave those models out.",
        )


def _are_strangers(options: BenchmarkOptions) -> bool:
    """Whether any of the models that are named was not written by slimkit."""
    named = (options.model, *options.others, *([options.baseline] if options.baseline else []))
    return any(is_foreign(Path(name)) for name in named)


@contextmanager
def open_candidates(options: BenchmarkOptions, progress: Progress) -> Iterator[tuple[Candidate, ...]]:
    """All that is to be timed; their files are there while the context is open.

    The models come first, each in every backend, then the baseline in the first backend, then the first candidate on
    one thread, where the others have more. Raises as `run_benchmark`.
    """
    with ExitStack() as stack:
        models = stack.enter_context(open_models(options, progress))
        launch = _from_outside if _are_strangers(options) else _in_worker
        found: list[Candidate] = []
        for model in models:
            room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slimkit-")))
            if isinstance(model.source, Foreign):
                found.append(_of_stranger(model, model.source, options, room))
                continue
            folder = stack.enter_context(materialize(model.source))
            np.save(room / "images.npy", model.images.numpy())
            backends = options.backend if model.role == "model" else options.backend[:1]
            for name, (path, size) in _files(model, model.source, backends, folder, room).items():
                found.append(_candidate(model, name, size, room, launch(model, name, path, options, room)))
        if not found:
            raise ModelError("No model can be timed in these backends.", "Add torch to --backend.")
        threads = torch.get_num_threads()
        alone = dataclasses.replace(found[0], threads=1, logits=found[0].logits.with_suffix(".1.npy"))
        yield (*found, *([alone] if threads > 1 else []))


def _candidate(
    model: Model, backend: str, size: float, room: Path, launch: Callable[[int], AbstractContextManager[Timed]]
) -> Candidate:
    return Candidate(model, backend, torch.get_num_threads(), size, room / f"{backend}.npy", launch)


def _in_worker(
    model: Model, backend: Backend, path: Path, options: BenchmarkOptions, room: Path
) -> Callable[[int], AbstractContextManager[Timed]]:
    """By a process that times itself."""
    return lambda threads: start_process(path, backend, threads, options.batch_size, room / "images.npy")


def _from_outside(
    model: Model, backend: Backend, path: Path, options: BenchmarkOptions, room: Path
) -> Callable[[int], AbstractContextManager[Timed]]:
    """By round trips, as strangers' are timed."""
    weights = path if path.is_file() else weights_file(path)
    launch = launcher(Submission(path.resolve(), weights.resolve(), backend, {}), options)
    return lambda threads: start_round_trips(launch(threads), model.images, options.batch_size)


def _of_stranger(model: Model, source: Foreign, options: BenchmarkOptions, room: Path) -> Candidate:
    """By round trips; what it answers meanwhile has to be what it answers when no clock runs."""
    expected = source.logits.argmax(1)[torch.arange(len(model.images)) % model.distinct]

    def launch(threads: int) -> AbstractContextManager[Timed]:
        return start_round_trips(source.launch(threads), model.images, options.batch_size, expected)

    return _candidate(model, source.submission.kind, source.submission.size / MB, room, launch)


def _files(
    model: Model, classifier: Classifier, backends: Sequence[Backend], folder: Path, room: Path
) -> dict[Backend, tuple[Path, float]]:
    """What each backend reads of a model, and its size in MB; without those that the model can't be exported for."""
    weights = size_mb(weights_file(folder))
    found: dict[Backend, tuple[Path, float]] = {name: (folder, weights) for name in backends if name not in READ_ONNX}
    onnx_backends = [name for name in backends if name in READ_ONNX]
    if onnx_backends:
        file = room / "model.onnx"
        try:
            file.write_bytes(to_onnx(classifier))
        except ModelError as error:
            log.warning("%s is not timed in %s: %s", model.name, " and ".join(onnx_backends), error)
        else:
            found |= {name: (file, size_mb(file)) for name in onnx_backends}
    return {name: found[name] for name in backends if name in found}
