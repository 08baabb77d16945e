"""What is measured of a model, and of its baseline where that is needed."""

from __future__ import annotations

from dataclasses import dataclass, field

from slimkit.core.measure.accuracy import Accuracy
from slimkit.core.measure.latency import Latency


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The figures of a model, and those of its baseline that were asked for."""

    data: str
    class_names: tuple[str, ...]  # in the order of the logits
    size: float  # MB
    accuracy: Accuracy
    latency: Latency
    latency_alone: Latency | None = None  # the model's, on one thread
    changed_code: tuple[str, ...] = ()  # files in the folder that are not slimkit's own, which alone was run
    remarks: tuple[str, ...] = ()
    walls: dict[str, str] | None = None  # around a stranger's code
    baseline: dict[str, float] = field(default_factory=dict)  # those of FIGURES that were needed
    baseline_accuracy: Accuracy | None = None
    baseline_latency: Latency | None = None
    origin: str | None = None  # where the baseline's figures are from
