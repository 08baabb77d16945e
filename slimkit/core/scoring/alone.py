"""A classifier of slimkit's measured by itself: its size, its latency and its accuracy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from slimkit.core.data import Images, ImageSet, label_map
from slimkit.core.device import resolve_device
from slimkit.core.folder import Classifier, weights_file
from slimkit.core.measure.accuracy import Accuracy, evaluate
from slimkit.core.measure.latency import Latency, Target, measure_latencies
from slimkit.core.measure.size import size_mb
from slimkit.core.models.resolve import materialize
from slimkit.core.options import ScoreOptions
from slimkit.core.progress import Progress
from slimkit.core.scoring.outside import time_own


@dataclass(frozen=True)
class Alone:
    """What was measured, in turn with nothing else."""

    size: float  # MB
    latency: Latency
    accuracy: Accuracy

    @property
    def figures(self) -> dict[str, float]:
        """By the names of FIGURES."""
        return {"size": self.size, "latency": self.latency.mean, "accuracy": self.accuracy.top1}


def measure_alone(
    options: ScoreOptions,
    classifier: Classifier,
    data: ImageSet,
    images: Images,
    progress: Progress,
    *,
    from_outside: bool,
) -> Alone:
    """Measure `classifier` on the test `images` of `data`. from_outside: time it as a stranger's model is timed."""
    with materialize(classifier) as folder:
        if from_outside:
            latency = time_own(folder, images, data.preprocessing, options, progress)
        else:
            targets = [Target(folder)]
            (latency,) = measure_latencies(targets, runs=options.runs, threads=options.threads, progress=progress)
        size = size_of(classifier, folder)
    return Alone(size, latency, accuracy_of(options, classifier, data, images, progress))


def size_of(classifier: Classifier, folder: Path) -> float:
    """MB of the weights file in the model folder of `classifier`."""
    return size_mb(weights_file(folder))


def accuracy_of(
    options: ScoreOptions, classifier: Classifier, data: ImageSet, images: Images, progress: Progress
) -> Accuracy:
    """Top-1 and top-5 on every one of the test `images` of `data`, at the size that these were opened with.

    An int8 network is for the CPU, and on a GPU would answer by float arithmetic: unasked, it isn't evaluated there.
    """
    as_deployed = options.device == "auto" and classifier.architecture.is_quantized
    own, opened = classifier.architecture.preprocessing, data.preprocessing
    return evaluate(
        classifier.module,
        images,
        dataclasses.replace(own, resize=opened.resize, crop=opened.crop),
        device="cpu" if as_deployed else resolve_device(options.device),
        label_map=label_map(classifier.architecture.class_names, data.class_names),
        progress=progress,
    )
