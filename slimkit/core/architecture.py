"""What a model is, as data: the architecture JSON that every model folder holds.

A network is rebuilt from this alone (``slimkit/standalone/model.py``) and then filled from the state dict.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from slimkit.core.errors import FolderError
from slimkit.core.sizes import Size
from slimkit.core.typed import FieldError, parse_dataclass

FORMAT_VERSION = 1
GRAPH_FORMAT_VERSION = 2  # `tensors` and the layers are a float network, which no class rebuilds
CODED_FORMAT_VERSION = 3  # the newest: an int8 network whose weights file is coded
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """From an image to the network's input: resize until it covers `resize`, crop the centre, normalize."""

    resize: Size  # of a square: the pixels of the shorter side
    crop: Size  # of what is cut from the centre
    mean: tuple[float, ...] = IMAGENET_MEAN  # per channel, of values in [0, 1]
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class Layer:
    """One layer. In an int8 network the list of layers is the network: `inputs` names what feeds each of them."""

    name: str
    type: str
    in_channels: int | None = None
    out_channels: int | None = None
    kernel_size: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    padding: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    groups: int | None = None
    bias: bool | None = None
    activation: str | None = None  # fused into the layer: "relu" or "relu6"
    inputs: tuple[str, ...] = ()
    width_before: int | None = None  # output channels before any pruning
    macs: int = 0  # multiply-adds for one image
    bytes: int = 0  # of its tensors in the weights file
    options: dict[str, Any] | None = None  # what else it needs: the function that it calls, and with what
    quantization: dict[str, Any] | None = None  # scheme, weight bits, activation type; None where the layer is float

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        bias = (self.out_channels or 0) if self.bias else 0
        if self.type == "BatchNorm2d":
            return 2 * bias
        kernel = math.prod(self.kernel_size or (1,))
        return (self.in_channels or 0) // (self.groups or 1) * (self.out_channels or 0) * kernel + bias


@dataclass(frozen=True)
class Count:
    """How large a network is in all, with what no layer of the list holds: attention's products, tokens, embeddings."""

    parameters: int  # numbers in its weights and biases, each tensor once
    macs: int  # multiply-adds for one image
    not_counted: tuple[str, ...] = ()  # the operations that compute, and are no multiply-adds


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a network that is stored as its graph."""

    shape: tuple[int, ...]
    dtype: str  # a key of `standalone.model.DTYPES`
    trained: bool  # a parameter rather than a buffer


@dataclass(frozen=True)
class PruningRate:
    """The share of the channels that pruning was to take away, and did."""

    asked: float = 0.0
    reached: float = 0.0


@dataclass(frozen=True)
class SeenData:
    """A set of class folders that a model was made with, so that it is known when the model is scored on it."""

    name: str
    images: int  # before any were set aside
    unsplit: bool  # whether slimkit set test images aside
    sketch: str  # of some of the images; see `model_loader.sketch`


@dataclass(frozen=True)
class Architecture:
    """A model without its numbers."""

    model_type: str  # "SlimResNet18", or a torchvision name
    base: dict[str, Any]  # what it was cut from: name, folder and weights_sha256 where there is a folder
    num_classes: int
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]  # (channels, height, width) of one image
    output_shape: tuple[int, ...]
    preprocessing: Preprocessing
    layers: tuple[Layer, ...]
    pruning_rate: PruningRate = PruningRate()
    compression_steps: tuple[str, ...] = ()
    training_details: tuple[dict[str, Any], ...] = ()  # one entry per stage
    count: Count | None = None  # None: no more than the layers say
    data_seen: tuple[SeenData, ...] = ()  # the class folders that it was made with
    tensors: dict[str, StoredTensor] | None = None  # of a network that is stored as its graph
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The architecture as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """The architecture as plain JSON values, as the standalone code takes it."""
        values: dict[str, Any] = json.loads(self.to_json())
        return values

    @staticmethod
    def from_json(text: str, source: str) -> Architecture:
        """Parse and check `text`; `source` names the file in errors. Raises FolderError."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FolderError(f"{source} is not JSON: {error}.", "Write the model folder again.") from None
        try:
            architecture = parse_dataclass(Architecture, data, source)
        except FieldError as error:
            raise FolderError(f"{error}.", "Correct the field, or write the model folder again.") from None
        if architecture.format_version > CODED_FORMAT_VERSION:
            raise FolderError(
                f"{source} has format version {architecture.format_version}; the newest known is "
                f"{CODED_FORMAT_VERSION}.",
                "Install a newer slimkit.",
            )
        return architecture

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return self.count.macs if self.count else sum(layer.macs for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Numbers in all weights and biases, BatchNorm's scale and shift included where it is not folded."""
        return self.count.parameters if self.count else sum(layer.parameters for layer in self.layers)

    @property
    def is_graph(self) -> bool:
        """Whether the float network is stored as its graph: each layer is an operation, called by its `options`."""
        return self.tensors is not None

    @property
    def is_coded(self) -> bool:
        """Whether the weights file holds the state dict as one coded string of bytes."""
        return self.format_version == CODED_FORMAT_VERSION

    @property
    def is_quantized(self) -> bool:
        """Whether any layer computes in int8."""
        return any(layer.quantization for layer in self.layers)

    @property
    def weight_bits(self) -> dict[str, int]:
        """Of each layer with integer weights, by its name."""
        entries = {layer.name: layer.quantization or {} for layer in self.layers}
        return {name: entry["weight_bits"] for name, entry in entries.items() if "weight_bits" in entry}


def with_detail(architecture: Architecture, detail: dict[str, Any]) -> Architecture:
    """`architecture` with one more stage recorded."""
    return dataclasses.replace(architecture, training_details=(*architecture.training_details, detail))
