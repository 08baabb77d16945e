"""What `slimkit benchmark` found out, from the turns of all candidates to what can be said of them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slimkit.core.benchmark.candidates import Candidate
from slimkit.core.benchmark.statistics import Estimate, Turns, mean_time, quantile, typical_time
from slimkit.core.benchmark.streams import Streams
from slimkit.core.benchmark.turns import Start
from slimkit.core.export.agreement import AGREEMENT, Agreement
from slimkit.core.load import Strain
from slimkit.core.measure.latency import BUSY

P99_RUNS = 1000  # at least: then ten are slower than the p99
STOLEN = 0.02  # cores: more than that, given to other virtual machines, gets a warning


@dataclass(frozen=True)
class Result:
    """One candidate. Durations are in ms, of a batch."""

    role: str  # "model" or "baseline"
    model: str  # the model argument, or the folder
    backend: str  # or the kind of a model that slimkit did not write
    threads: int
    size: float  # MB, of the weights file or the .onnx file
    ratio: Estimate | None  # of its time to that of the one that all are compared with; None for that one
    typical: Estimate  # what the ratio is of: the mean of the starts' medians
    median: Estimate
    p90: Estimate
    p99: Estimate | None  # None of fewer than P99_RUNS runs
    throughput: Estimate  # images per second, one batch after the other
    load_ms: tuple[float, ...]  # of each start: see `Start`
    first_call_ms: tuple[float, ...]  # of each start
    peak_memory: float  # MB, the most of all starts: runtime, network and images
    runs: int
    seconds: float  # of samples
    settled: bool  # every start got no faster any more before it was timed
    agreement: Agreement
    streams: Streams | None  # where several were asked for

    def __str__(self) -> str:
        role = "baseline " if self.role == "baseline" else ""
        return f"{role}{self.model} ({self.backend}, {self.threads} thread{'s' * (self.threads > 1)})"

    @property
    def verdict(self) -> str:
        """What the ratio says, in words."""
        if self.ratio is None:
            return ""
        if self.ratio.covers(1):
            return "no difference shown"
        faster = self.ratio.value < 1
        return f"{1 / self.ratio.value:.2f} x as fast" if faster else f"takes {self.ratio.value:.2f} x as long"

    @property
    def judged(self) -> Estimate:
        """What has to be known precisely: the ratio, or else the time itself."""
        return self.ratio or self.typical

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        starts = {"load_ms": list(self.load_ms), "first_call_ms": list(self.first_call_ms)}
        return asdict(self) | starts | {"verdict": self.verdict}


@dataclass(frozen=True)
class BenchmarkReport:
    """Everything that `slimkit benchmark` measured."""

    model: str
    reference: int  # the place of the candidate that the others are compared with
    candidates: tuple[Result, ...]
    batch_size: int
    starts: int  # of each process
    precision: float  # %, the width that was wished for of the intervals
    warnings: tuple[str, ...]  # what makes these figures worth less
    changed_code: tuple[str, ...]  # files in the folders that are not slimkit's own, which alone was run
    walls: dict[str, dict[str, str]]  # of strangers' models: those around their code, "" where they hold
    environment: dict[str, Any]

    @property
    def from_outside(self) -> bool:
        """Whether all were timed there and back, since one of them is a stranger's."""
        return bool(self.walls)

    def to_dict(self) -> dict[str, Any]:
        """The content of benchmark.json."""
        return vars(self) | {
            "from_outside": self.from_outside,
            "candidates": [each.to_dict() for each in self.candidates],
            "warnings": list(self.warnings),
            "changed_code": list(self.changed_code),
        }


def result_of(
    candidate: Candidate,
    starts: Sequence[Start],
    ratio: Estimate | None,
    agreement: Agreement,
    streams: Streams | None,
    batch_size: int,
) -> Result:
    """The figures of a candidate."""
    turns = [start.turns for start in starts]
    runs = sum(len(turn) for start in turns for turn in start)
    return Result(
        role=candidate.model.role,
        model=candidate.model.name,
        backend=candidate.backend,
        threads=candidate.threads,
        size=candidate.size,
        ratio=ratio,
        typical=typical_time(turns),
        median=quantile(turns, 0.5),
        p90=quantile(turns, 0.9),
        p99=quantile(turns, 0.99) if runs >= P99_RUNS else None,
        throughput=mean_time(turns).as_rate(1e3 * batch_size),
        load_ms=tuple(start.load_ms for start in starts),
        first_call_ms=tuple(start.first_call_ms for start in starts),
        peak_memory=max(start.peak_memory for start in starts),
        runs=runs,
        seconds=sum(start.seconds for start in starts),
        settled=all(start.settled for start in starts),
        agreement=agreement,
        streams=streams,
    )


def warnings_of(results: Sequence[Result], precision: float, strain: Strain, governor: str | None) -> Iterator[str]:
    """What is to be known before these results are believed. precision: the width wished for, in %."""
    for each in results:
        if 100 * each.judged.width > precision and (each.ratio or len(results) == 1):
            yield _imprecise(each, precision)
        if not each.settled:
            yield f"{each} was still getting faster when it was first timed."
        if each.agreement.agreement < AGREEMENT:
            yield (
                f"{each} gives the model's own answer on {each.agreement.agreement:.1f} % of {each.agreement.count} "
                f"{each.agreement.images} only: it computes something else."
            )
    if strain.outside is not None and strain.outside > BUSY:
        yield f"Other programs kept {strain.outside:.1f} cores busy meanwhile: the times read high."
    if strain.stolen is not None and strain.stolen > STOLEN:
        yield f"Other virtual machines took {strain.stolen:.2f} cores meanwhile: the times read high."
    if governor not in (None, "performance"):
        yield f"The CPU's governor is {governor}, which changes its clock: `performance` keeps it."


def _imprecise(result: Result, precision: float) -> str:
    what, known = ("its ratio" if result.ratio else "its time"), result.judged
    if known.low is None or known.high is None:
        return f"{result}: one block of runs gives {what} no interval. Give more --restarts."
    return (
        f"{result}: {what} is known to {100 * known.width:.1f} % only, not to {precision:g} % (--precision). Let "
        "nothing else compute here, or give more --min-seconds."
    )


def samples_file(results: Sequence[Result], turns: Sequence[Sequence[Turns]]) -> bytes:
    """Every run that was timed, as a compressed .npz.

    Of candidate i, in the order of benchmark.json: `i.ms`, `i.start` and `i.turn`, each [runs], in the order in which
    they ran; `names` says who i is.
    """
    arrays: dict[str, Any] = {"names": np.array([str(each) for each in results])}
    for i, starts in enumerate(turns):
        rows = [(ms, s, t) for s, start in enumerate(starts) for t, turn in enumerate(start) for ms in turn]
        ms, start, turn = zip(*rows, strict=True)
        arrays |= {f"{i}.ms": np.array(ms), f"{i}.start": np.array(start), f"{i}.turn": np.array(turn)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
