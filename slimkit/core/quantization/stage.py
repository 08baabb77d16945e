"""Quantizing a classifier as the options ask: rounding, fine-tuning, accuracy control, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from slimkit.core.bytes import parse_bytes
from slimkit.core.checks import check_options
from slimkit.core.coding.classifier import with_coded_weights
from slimkit.core.data import CalibrationBatches, ImageSet
from slimkit.core.errors import MissedError
from slimkit.core.folder import Classifier
from slimkit.core.measure.accuracy import evaluate_held_out
from slimkit.core.options import QuantizeOptions
from slimkit.core.progress import Progress
from slimkit.core.quantization.bits.allocation import Rounding, measure_layers
from slimkit.core.quantization.bits.fit_size import fit_size
from slimkit.core.quantization.control import fewest_in_float, layer_costs
from slimkit.core.quantization.convert import CALIBRATION, QuantizeResult, folded_layers, quantize
from slimkit.core.quantization.fidelity import Fidelity, compare
from slimkit.core.quantization.qat import fine_tune
from slimkit.core.quantization.ranges.equalize import equalize_if_nearer
from slimkit.core.quantization.simulate import simulate
from slimkit.core.quantization.weights.layerwise import round_layers
from slimkit.core.quantization.weights.rounded import read_rounded, replace_rounded
from slimkit.core.quantization.weights.saturation import largest_code
from slimkit.standalone.model import can_saturate, cpu_arithmetic

ROUNDING_IMAGES = 2048  # training images for the least squares of weights of few bits
SEVEN_BITS = (
    "Weights were kept to 7 bits: this CPU, without VNNI, computes them twice as fast. --no-reduce-range gives them "
    "all 8."
)
SEARCH_BATCHES = 4  # of 64 calibration images each, for the search of the costliest layers


def quantize_for(
    classifier: Classifier, data: ImageSet, options: QuantizeOptions, progress: Progress
) -> QuantizeResult:
    """Quantize the float `classifier` on training images of `data`, as `options` ask.

    Raises UsageError for options that exclude each other, MissedError where `options.max_drop` or `options.max_size`
    can't be kept or less than `options.min_agreement` % of the calibration images keep the float model's answer.
    """
    check_options(options)
    said: tuple[str, ...] = ()
    if options.reduce_range is None:
        options = replace(options, reduce_range=cpu_arithmetic().saturates)
        said = (SEVEN_BITS,) if options.reduce_range else ()
    maker = _Maker(classifier, data, options, progress)
    kept: list[str] = []
    if options.max_drop is not None:
        kept = fewest_in_float(maker.costly_layers(), maker.drop, options.max_drop)
    made = maker.make(kept) if options.max_size is None else maker.make_to_size(parse_bytes(options.max_size))
    lost = () if options.max_drop is None else (_say_drop(maker.drop(kept), kept),)
    _require_agreement(made.fidelity, options)
    said_of = (*_say_constant(made.fidelity), saturation_note(made.classifier))
    classifier = with_coded_weights(made.classifier) if options.compress_weights else made.classifier
    return replace(made, classifier=classifier, notes=(*made.notes, *maker.notes, *said, *lost, *said_of))


def _require_agreement(fidelity: Fidelity, options: QuantizeOptions) -> None:
    if fidelity.agreement >= options.min_agreement:
        return
    raise MissedError(
        f"The int8 model answers {fidelity.agreement:.2f} % of {fidelity.count} {fidelity.images} as the float model "
        f"does (cosine of their logits: {fidelity.cosine:.4f}); --min-agreement asks for {options.min_agreement:g}. "
        "Nothing was written.",
        f"Give {_gentler(options)}, or a lower --min-agreement.",
    )


def _gentler(options: QuantizeOptions) -> str:
    if options.max_size is not None:
        return "a larger --max-size"
    less = "" if options.weight_bits == 8 else "--weight-bits 8 or "
    return f"{less}--max-drop 1, which keeps the costliest layers in float"


def _say_constant(fidelity: Fidelity) -> tuple[str, ...]:
    if fidelity.answers > 1 or fidelity.count == 1:
        return ()
    count, images = fidelity.count, fidelity.images
    return (f"The float model gives one answer to all {count} {images}: that int8 gives it too says little.",)


def saturation_note(made: Classifier) -> str:
    """Whether the sums of this int8 classifier can saturate on x86 CPUs without VNNI."""
    layers = read_rounded(made)
    odd = [name for name, layer in layers.items() if can_saturate(layer.codes)]
    if not odd:
        return "On x86 CPUs without VNNI no 16-bit sum of this model can saturate."
    return (
        f"On x86 CPUs without VNNI, 16-bit sums can saturate in {len(odd)} of {len(layers)} layers (first {odd[0]}): "
        "the submission guards against it there, at twice the time; ONNX Runtime does not. --reduce-range gives "
        "weights that can't."
    )


def _say_drop(lost: float, kept: Sequence[str]) -> str:
    what = f"with {', '.join(kept)} in float" if kept else "with all layers in int8"
    return f"{lost:.2f} points of accuracy are lost on the held-out images {what}."


class _Maker:
    """Makes int8 classifiers of one float classifier; those made last are kept, as each is asked for twice."""

    def __init__(self, classifier: Classifier, data: ImageSet, options: QuantizeOptions, progress: Progress) -> None:
        self._original, self._data, self._options, self._progress = classifier, data, options, progress
        self._classifier, self.notes = classifier, tuple[str, ...]()
        self._batches = list(self._images(options.calibration_images))
        if options.scheme == "static":
            self._classifier, self.notes = equalize_if_nearer(classifier, self._batches, options.calibration, progress)
        self._made: dict[frozenset[str], QuantizeResult] = {}
        self._accuracy: float | None = None

    def make(self, kept: Collection[str]) -> QuantizeResult:
        """The int8 classifier with the layers `kept` in float."""
        key = frozenset(kept)
        if key not in self._made:
            self._made = {key: self._make(kept)}
        return self._made[key]

    def make_to_size(self, limit: int) -> QuantizeResult:
        """The int8 classifier whose coded weights file has at most `limit` bytes, with bits chosen layer by layer."""
        plain, few = self._quantize({}).classifier, self._batches[:SEARCH_BATCHES]
        simulation = simulate(self._classifier, plain)
        choices = measure_layers(simulation, self._many(), few, bool(self._options.reduce_range), self._progress)
        return fit_size(choices, plain, self._round, limit)

    def drop(self, kept: Collection[str]) -> float:
        """Points of top-1 accuracy that are lost on the held-out images."""
        if self._accuracy is None:
            self._accuracy = self._measure(self._original)
        return self._accuracy - self._measure(self.make(kept).classifier)

    def costly_layers(self) -> list[str]:
        """All layers, the costliest first."""
        made = self.make(()).classifier
        batches = self._batches[:SEARCH_BATCHES]
        costs = layer_costs(simulate(self._classifier, made), read_rounded(made), batches, self._progress)
        return list(costs)

    def _images(self, count: int) -> CalibrationBatches:
        return CalibrationBatches(self._data.train, self._data.preprocessing, count, self._options.seed)

    def _make(self, kept: Collection[str]) -> QuantizeResult:
        bits = self._options.weight_bits
        assert bits != "auto"  # which comes with a size
        if bits == 8:
            return self._round({}, kept)
        inner = [name for name in list(folded_layers(self._original))[1:-1] if name not in kept]
        return self._round(dict.fromkeys(inner, Rounding(bits)), kept)

    def _round(self, roundings: Mapping[str, Rounding], kept: Collection[str] = ()) -> QuantizeResult:
        """The int8 classifier with the layers `kept` in float; `roundings` are those of layers of fewer bits than 8."""
        result = self._quantize({name: rounding.bits for name, rounding in roundings.items()}, kept)
        made = result.classifier
        if roundings:
            made = self._round_by_least_squares(made, roundings)
        if self._options.qat_epochs:
            made = fine_tune(self._classifier, made, self._data, self._options, self._progress)
        if made is not result.classifier:
            (fidelity,) = compare(self._original.module, [made.module], self._batches, CALIBRATION, self._progress)
            return replace(result, classifier=made, fidelity=fidelity)
        return result

    def _quantize(self, bits: Mapping[str, int], kept: Collection[str] = ()) -> QuantizeResult:
        return quantize(
            self._classifier,
            scheme=self._options.scheme,
            calibration=self._batches,
            method=self._options.calibration,
            keep_float=kept,
            weight_bits=bits,
            reduce_range=bool(self._options.reduce_range),
            progress=self._progress,
        )

    def _round_by_least_squares(self, made: Classifier, roundings: Mapping[str, Rounding]) -> Classifier:
        """`made` with all weights rounded as `roundings` say, else to 8 bits."""
        simulation = simulate(self._classifier, made)
        each = {name: roundings.get(name, Rounding(8)) for name in simulation.layers}
        largest = {name: largest_code(r.bits, bool(self._options.reduce_range)) for name, r in each.items()}
        prices = {name: rounding.price for name, rounding in each.items()}
        return replace_rounded(made, round_layers(simulation, self._many(), largest, self._progress, prices))

    def _many(self) -> CalibrationBatches:
        return self._images(max(ROUNDING_IMAGES, self._options.calibration_images))

    def _measure(self, classifier: Classifier) -> float:
        return evaluate_held_out(classifier, self._data, progress=self._progress).top1
