"""What is measured of a model, and of its baseline where that is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from slimkit.core.data import Images
from slimkit.core.folder import CODE, sha256_of
from slimkit.core.measure.accuracy import Accuracy
from slimkit.core.measure.latency import Latency


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The figures of a model, and those of its baseline that were asked for."""

    data: str
    class_names: tuple[str, ...]  # in the order of the logits
    size: float  # MB
    sha256: dict[str, str]  # of the weights, of the code in the folder, and of the list of images
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


def hashes_of(folder: Path, weights: Path, images: Images) -> dict[str, str]:
    """By which a folder and the images that it was measured on are known again."""
    code = {name: sha256_of(folder / name) for name in CODE if (folder / name).is_file()}
    return {"weights": sha256_of(weights), **code, "images": images.digest()}
