"""From a model argument (a model folder, or a name with weights) to a model in memory, and the data that go with it."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimkit.core.architecture import IMAGENET_MEAN, IMAGENET_STD, Architecture, Preprocessing
from slimkit.core.data import ImageSet, label_map, open_dataset, sized
from slimkit.core.errors import ModelError, UsageError
from slimkit.core.folder import METADATA, Classifier, read_folder, write_folder
from slimkit.core.graph.capture import capture, network_of
from slimkit.core.measure.macs import count_network
from slimkit.core.models.catalog import (
    build_named,
    model_names,
    model_type_of,
    pretrained_preprocessing,
    without_auxiliary_heads,
)
from slimkit.core.models.channels import COLOURS, for_channels
from slimkit.core.models.checkpoint import read_checkpoint
from slimkit.core.models.classes import class_names_of, numbered
from slimkit.core.models.describe import describe_graph, describe_layers
from slimkit.core.models.fill import count_classes, fill, fill_pretrained
from slimkit.core.models.lineage import recorded_data
from slimkit.core.models.own import (
    build_own,
    is_own,
    is_users_code,
    own_base,
    own_preprocessing,
    own_type,
    parse_arguments,
)
from slimkit.core.models.resize import resized
from slimkit.core.options import OF_NAMED_MODELS, ModelOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.sizes import show_size
from slimkit.standalone.model import build_model
from slimkit.standalone.model_loader import sides

log = logging.getLogger("slimkit")

DEFAULT_DATA = "digits100"
IMAGENET_CLASSES = 1000
_MAKERS = {"runs/train": "train", "runs/prune": "prune", "runs/distill": "distill", "submission": "quantize"}


def open_model_and_data(
    options: ModelOptions, *, width: int | None = None, may_resize: bool = False, progress: Progress = silent
) -> tuple[Classifier, ImageSet]:
    """Open the model of `options`, and the data that it is to be used with.

    A folder's data are those that it was made with unless `options.data` names others, which must have the model's
    classes. Where the options ask for images of another size, its model is made one for that size, if it `may_resize`;
    else that is refused. A named model gets its classes from the data, and its input size from `pretrained` weights,
    else from the data. A network of the user's own says how many channels its images have. Raises SlimkitError.
    """
    if is_folder(options.model):
        classifier = open_folder(options, may_resize=may_resize)
        return classifier, open_data_for(classifier, options, progress=progress)
    data = open_dataset(
        options.data or DEFAULT_DATA,
        image_size=options.image_size,
        resize=options.resize,
        wanted=_wanted_preprocessing(options),
        stated=_stated_preprocessing(options),
        progress=progress,
    )
    classifier = open_named(options, class_names_of(options, data), data.preprocessing, width=width)
    label_map(classifier.architecture.class_names, data.class_names)
    return classifier, data.prepared(classifier.architecture.preprocessing)


def open_data_for(classifier: Classifier, options: ModelOptions, *, progress: Progress = silent) -> ImageSet:
    """The data of `options`, preprocessed as the model wants them; its classes must be known to the model."""
    architecture = classifier.architecture
    data = open_dataset(
        options.data or recorded_data(classifier) or DEFAULT_DATA,
        image_size=options.image_size,
        resize=options.resize,
        wanted=architecture.preprocessing,
        progress=progress,
    )
    label_map(architecture.class_names, data.class_names)
    return data


def open_folder(options: ModelOptions, *, may_resize: bool = False) -> Classifier:
    """The model folder of `options`, for images of the size that they ask for. Raises as `open_model_and_data`."""
    _reject_weights(options)
    classifier = read_folder(Path(options.model))
    own = classifier.architecture.preprocessing
    asked = sized(own, options.image_size, options.resize)
    if asked != own and not may_resize:
        one, other = (f"{show_size(p.crop)} pixels of {show_size(p.resize)}" for p in (own, asked))
        raise UsageError(
            f"{options.model} is for images of {one}, not of {other}.",
            "Leave out --image-size and --resize; slimkit prune, distill and quantize make a model for another size.",
        )
    return resized(classifier, asked)


def open_named(
    options: ModelOptions,
    class_names: tuple[str, ...] | None,
    preprocessing: Preprocessing,
    *,
    width: int | None = None,
) -> Classifier:
    """The named model of `options`, or the user's own, with the weights that they ask for.

    class_names: in the order of its logits; None: they are numbered. preprocessing: mean and deviation become those of
    the channels that a network of the user's own takes. Raises SlimkitError.
    """
    name = options.model
    num_classes = IMAGENET_CLASSES if class_names is None else len(class_names)
    module = _build(options, None if class_names is None else num_classes, width)
    if options.weights is not None:
        if options.pretrained:
            raise UsageError("--weights and --pretrained exclude each other.", "Give one of them.")
        state = read_checkpoint(options.weights, module.state_dict().keys(), options.weights_key)
        if class_names is None and not options.new_head and (own := count_classes(module, state)):
            num_classes, module = own, _build(options, own, width)
        fill(module, without_auxiliary_heads(state), options.weights, num_classes, new_head=options.new_head)
        log.info("Held-out accuracy reads high where the weights of %s saw the held-out images.", options.weights.name)
    elif options.pretrained and not is_own(name):
        fill_pretrained(module, name, num_classes)
    elif is_users_code(name):
        log.info("%s has the weights that its code gives it: --weights is not given.", name)
    elif not options.pretrained:
        log.info("%s has random weights: neither --weights nor --pretrained is given.", name)
    if options.output_index is not None and not is_own(name):
        raise UsageError(f"{name} has one output, so there is none to choose.", "Leave --output-index out.")
    if is_own(name):
        preprocessing = for_channels(module, preprocessing, options.mean or options.std)
        return as_classifier(module, class_names, preprocessing, model=name, output_index=options.output_index)
    return _named_classifier(module, name, class_names or numbered(num_classes), _in_colour(preprocessing, options))


def _build(options: ModelOptions, num_classes: int | None, width: int | None) -> nn.Module:
    """The network without its weights. num_classes: None for as many as it has by itself, or ImageNet's."""
    if is_own(options.model):
        return build_own(options.model, num_classes, parse_arguments(options.model_args), options.pretrained)
    return build_named(options.model, num_classes or IMAGENET_CLASSES, width)


def _wanted_preprocessing(options: ModelOptions) -> Preprocessing | None:
    """What the network of `options` wants; None where it takes what the data suggest."""
    if is_own(options.model):
        return own_preprocessing(options.model)
    return pretrained_preprocessing(options.model) if options.pretrained else None


def is_folder(model: str) -> bool:
    """Whether a model argument means a folder rather than a name. Raises UsageError for what is neither."""
    path = Path(model)
    if path.is_dir() and ((path / METADATA).exists() or model not in model_names()):
        return True
    if model in model_names() or is_own(model):
        return False
    if path.suffix == ".py":
        raise UsageError(f"{model} is a file of code.", f"Name the class or function in it: {model}:NAME.")
    if model in _MAKERS:
        raise UsageError(f"There is no model folder {model} yet.", f"Run `slimkit {_MAKERS[model]}` first.")
    near = difflib.get_close_matches(model, model_names(), n=3)
    hint = f"Did you mean {', '.join(near)}?" if near else "Check the path, or name a network such as resnet18."
    raise UsageError(f"{model} is neither a model folder nor the name of a torchvision model.", hint)


def _stated_preprocessing(options: ModelOptions) -> dict[str, Any]:
    """What the options say of the images of a named network, or of the user's own."""
    given = {name: getattr(options, name) for name in ("mean", "std", "interpolation")}
    if is_users_code(options.model) and None in (options.mean, options.std):
        log.info("%s: images get ImageNet's mean and deviation where --mean or --std give no others.", options.model)
    return {name: value for name, value in given.items() if value is not None}


def as_classifier(
    module: nn.Module,
    class_names: Sequence[str] | None,
    preprocessing: Preprocessing,
    *,
    model: str | None = None,
    output_index: int | None = None,
) -> Classifier:
    """A network of the user's own as its graph, which can be cut, quantized, exported and written as a folder.

        data = open_dataset("photos/")
        classifier = as_classifier(net, data.class_names, data.preprocessing)
        write_folder(classifier, Path("model"))

    module: images [n, channels, *crop], prepared by `preprocessing`, -> logits [n, classes]. It stays as it is; its
    channels are as many as the preprocessing has means.
    class_names: in the order of the logits; None: they are numbered.
    model: what it is called, such as net.py:Net; None: as its class.
    output_index: which of several outputs gives the logits; what only the others need is dropped.
    Raises ModelError for what can't be captured, and for what is no classifier.
    """
    model = model or type(module).__name__
    input_shape = _input_shape(preprocessing)
    graph = capture(module, input_shape, output_index=output_index)
    network = network_of(graph)
    answer = list(network(torch.zeros(2, *input_shape)).shape)
    if len(answer) != 2:
        raise ModelError(
            f"{model} answers 2 images with numbers of shape {answer}, not [2, classes].",
            "slimkit takes classifiers: give a network whose output is one row of logits for each image.",
        )
    if answer[1] < 2:
        raise ModelError(
            f"{model} answers each image with one number: it is a regression, or has one logit for two classes.",
            "slimkit takes classifiers with a logit for each class: give a network with two outputs or more.",
        )
    class_names = numbered(answer[1]) if class_names is None else tuple(class_names)
    if answer[1] != len(class_names):
        raise ModelError(
            f"{model} gives {answer[1]} logits for an image; the data have {len(class_names)} classes.",
            "Name the data that it is for with --data, or its number of classes with --model-args.",
        )
    architecture = Architecture(
        model_type=own_type(model),
        base={"name": own_base(model)},
        num_classes=len(class_names),
        class_names=class_names,
        input_shape=input_shape,
        output_shape=(len(class_names),),
        preprocessing=preprocessing,
        layers=(),
    )
    return Classifier(network, describe_graph(architecture, graph))


@contextmanager
def materialize(classifier: Classifier) -> Iterator[Path]:
    """The model folder of `classifier`: its own, or a temporary one where it has none."""
    if classifier.folder is not None:
        yield classifier.folder
        return
    with tempfile.TemporaryDirectory(prefix="slimkit-") as folder:
        yield write_folder(classifier, Path(folder) / "model").folder or Path(folder)


def _named_classifier(
    module: nn.Module, name: str, class_names: tuple[str, ...], preprocessing: Preprocessing
) -> Classifier:
    """Wrap a network as the one that its own architecture JSON rebuilds, so that what is written is what is run."""
    input_shape = _input_shape(preprocessing)
    architecture = Architecture(
        model_type=model_type_of(name),
        base={"name": name},
        num_classes=len(class_names),
        class_names=class_names,
        input_shape=input_shape,
        output_shape=(len(class_names),),
        preprocessing=preprocessing,
        layers=describe_layers(module, input_shape),
        count=count_network(module, input_shape),
    )
    rebuilt = build_model(architecture.to_dict())
    rebuilt.load_state_dict(module.state_dict())
    return Classifier(rebuilt.eval(), architecture)


def _in_colour(preprocessing: Preprocessing, options: ModelOptions) -> Preprocessing:
    """The preprocessing as torchvision's networks take it, where that of the data may be for another network."""
    if len(preprocessing.mean) == len(preprocessing.std) == COLOURS:
        return preprocessing
    if options.mean or options.std:
        raise UsageError(f"{options.model} takes images of three channels.", "Give three numbers to --mean and --std.")
    return dataclasses.replace(preprocessing, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _input_shape(preprocessing: Preprocessing) -> tuple[int, int, int]:
    """(channels, height, width) of one image."""
    return len(preprocessing.mean), *sides(preprocessing.crop)


def _reject_weights(options: ModelOptions) -> None:
    if given := next(
        (f"--{name.replace('_', '-')}" for name in OF_NAMED_MODELS if getattr(options, name) != OF_NAMED_MODELS[name]),
        None,
    ):
        raise UsageError(
            f"{given} goes with a named model; {options.model} is a model folder, which says that itself.",
            f"Leave {given} out, or name a torchvision model such as {model_names()[0]}.",
        )
