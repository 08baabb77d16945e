"""Importing torchvision beside any build of torch."""

import importlib
from types import ModuleType

import torch

_MISSING_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# a library's declarations go when it is collected
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """torchvision, whose Python parts are all that slimkit uses.

    A torchvision built for another torch can't load its compiled operators, and then fails at import because the two
    detection operators that it registers have no schema. Declaring the schemas is enough for everything else.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # untyped in torch
    _declared.append(library)
    for name, schema in _MISSING_OPERATORS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]  # untyped in torch
    return importlib.import_module("torchvision")
