"""Classifiers and what their weights take in a file, coded or plain."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from slimkit.core.architecture import CODED_FORMAT_VERSION
from slimkit.core.coding.encoder import coded_bytes
from slimkit.core.folder import Classifier
from slimkit.standalone.model import Int8Network


def with_coded_weights(made: Classifier) -> Classifier:
    """The int8 classifier `made`, to be written with coded weights; its layers have the bytes that these take."""
    architecture = dataclasses.replace(made.architecture, format_version=CODED_FORMAT_VERSION)
    coded = dataclasses.replace(made, architecture=architecture)
    taken: dict[str, float] = defaultdict(float)
    for name, size in stored_bytes(coded).items():
        taken[name.rpartition(".")[0]] += size
    layers = tuple(dataclasses.replace(layer, bytes=round(taken[layer.name])) for layer in architecture.layers)
    return dataclasses.replace(coded, architecture=dataclasses.replace(architecture, layers=layers))


def stored_bytes(classifier: Classifier) -> dict[str, float]:
    """What each tensor of a classifier takes in its weights file."""
    if classifier.architecture.is_coded:
        assert isinstance(classifier.module, Int8Network)
        return coded_bytes(classifier.module)
    return {name: tensor.nbytes for name, tensor in classifier.module.state_dict().items()}
