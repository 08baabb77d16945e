"""A classifier for images of another size than the one it was made for."""

from __future__ import annotations

import dataclasses

import torch

from slimkit.core.architecture import Architecture, Preprocessing
from slimkit.core.errors import ModelError, first_line
from slimkit.core.folder import Classifier
from slimkit.core.graph.capture import capture
from slimkit.core.measure.macs import count_network
from slimkit.core.measure.modes import evaluating
from slimkit.core.models.describe import describe_graph, describe_layers, known_widths
from slimkit.core.sizes import show_size
from slimkit.standalone.model_loader import sides


def resized(classifier: Classifier, preprocessing: Preprocessing) -> Classifier:
    """The same weights in a classifier that is given its images by `preprocessing`.

    Raises ModelError where the network does not take images of that size, or is int8 and was calibrated at another.
    """
    earlier = classifier.architecture
    if preprocessing == earlier.preprocessing:
        return classifier
    shape = (earlier.input_shape[0], *sides(preprocessing.crop))
    architecture = dataclasses.replace(earlier, preprocessing=preprocessing, input_shape=shape)
    if shape != earlier.input_shape:
        _require_size(classifier, preprocessing, shape)
        architecture = _described(classifier, architecture)
    return dataclasses.replace(classifier, architecture=architecture)


def _require_size(classifier: Classifier, preprocessing: Preprocessing, shape: tuple[int, ...]) -> None:
    own, asked = (show_size(p.crop) for p in (classifier.architecture.preprocessing, preprocessing))
    if classifier.architecture.is_quantized:
        raise ModelError(
            f"{classifier.folder} is int8, and was calibrated on images of {own} pixels, not of {asked}.",
            f"Give the float model that it was made from to slimkit quantize --image-size {asked}.",
        )
    try:
        with evaluating(classifier.module), torch.no_grad():
            classifier.module(torch.zeros(1, *shape))
    except Exception as error:  # the network's own code runs here, and may raise anything
        raise ModelError(
            f"The network takes images of {own} pixels; it fails on some of {asked}: {first_line(error)}",
            f"Leave out --image-size, or give {own}.",
        ) from error


def _described(classifier: Classifier, architecture: Architecture) -> Architecture:
    """The architecture with the costs that its layers have for its input."""
    module, shape, widths = classifier.module, architecture.input_shape, known_widths(architecture)
    if architecture.is_graph:
        return describe_graph(architecture, capture(module, shape), widths)
    layers = describe_layers(module, shape, widths)
    return dataclasses.replace(architecture, layers=layers, count=count_network(module, shape))
