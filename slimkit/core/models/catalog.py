"""Networks by name: every torchvision classifier, and the contest's SlimResNet18."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any
from urllib.error import URLError

from torch import Tensor, nn

from slimkit.core.architecture import Preprocessing
from slimkit.core.compat import import_torchvision
from slimkit.core.errors import NetworkError, UsageError
from slimkit.standalone.model import SlimResNet18, torchvision_network

CONTEST_NAME = "slimresnet18"
CONTEST_WIDTH = 32  # of the first layer; each following stage is twice as wide
_OWN_TYPES = {
    "resnet18": "SlimResNet18",
    "resnet34": "SlimResNet34",
    "resnet50": "SlimResNet50",
    CONTEST_NAME: "SlimResNet18",
}


def model_names() -> list[str]:
    """The names that a model argument can have."""
    return sorted({*_models().list_models(module=_models()), CONTEST_NAME})


def model_type_of(name: str) -> str:
    """The architecture's `model_type` for a named network."""
    return _OWN_TYPES.get(name, name)


def build_named(name: str, num_classes: int, width: int | None = None) -> nn.Module:
    """The network called `name` with random weights.

    `name` is one of `model_names()`; `width` is the number of channels of slimresnet18's first layer, 32 where it is
    None. Raises UsageError for a width that the network can't be given.
    """
    if name == CONTEST_NAME:
        return _slim_resnet18(num_classes, CONTEST_WIDTH if width is None else width)
    if width is not None:
        raise UsageError(f"--width is for {CONTEST_NAME}; {name} has widths of its own.", "Leave --width out.")
    import_torchvision()  # the same one, whatever build of torch it is beside
    return torchvision_network(name, num_classes)


def without_auxiliary_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's without the classifiers that googlenet and inception_v3 have for training alone."""
    return {key: value for key, value in state.items() if not key.startswith(("aux1.", "aux2.", "AuxLogits."))}


def pretrained_preprocessing(name: str) -> Preprocessing:
    """The preprocessing that torchvision's ImageNet weights want. Raises UsageError where there are none.

    Two networks' weights come with `transform_input`: they normalize anew, to a mean and deviation of 0.5, what was
    normalized by ImageNet's.
    """
    wanted = _pretrained_weights(name).transforms()
    normalizes_anew = name in ("googlenet", "inception_v3")
    return Preprocessing(
        resize=wanted.resize_size[0],
        crop=wanted.crop_size[0],
        mean=(0.5, 0.5, 0.5) if normalizes_anew else tuple(wanted.mean),
        std=(0.5, 0.5, 0.5) if normalizes_anew else tuple(wanted.std),
        interpolation=wanted.interpolation.value,
    )


def pretrained_state(name: str) -> dict[str, Any]:
    """The state dict of torchvision's ImageNet weights, downloaded once. Raises NetworkError, UsageError."""
    try:
        state: dict[str, Any] = _pretrained_weights(name).get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        raise NetworkError(
            f"torchvision's ImageNet weights of {name} can't be downloaded: {error}.",
            "Connect to the network, or give a file with --weights.",
        ) from error
    return state


def _pretrained_weights(name: str) -> Any:
    """torchvision's entry for them; nothing is downloaded."""
    if name == CONTEST_NAME:
        raise UsageError(f"There are no ImageNet weights of {name}.", "Leave --pretrained out, or name resnet18.")
    return _models().get_model_weights(name).DEFAULT


def _slim_resnet18(num_classes: int, width: int) -> nn.Module:
    if width < 1:
        raise UsageError(f"--width {width} is no number of channels.", "Give 1 or more; the contest's variant has 32.")
    return SlimResNet18(num_classes, width=width)


def _models() -> ModuleType:
    models: ModuleType = import_torchvision().models
    return models
