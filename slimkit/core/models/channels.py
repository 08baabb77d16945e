"""How many channels the images of a user's own network have: its code says it, and nothing else does."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

import torch
from torch import nn

from slimkit.core.architecture import Preprocessing
from slimkit.standalone.model_loader import sides

COLOURS, GRAY = 3, 1
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


def for_channels(module: nn.Module, preprocessing: Preprocessing, stated: Sequence[float] | None) -> Preprocessing:
    """The preprocessing with a mean and a deviation for each channel that `module` takes.

    stated: a number for each channel, where the user gave them. Where there are more or fewer numbers than channels,
    their average stands for each: that of ImageNet's colours for gray, say.
    """
    channels = len(stated) if stated else input_channels(module, sides(preprocessing.crop), len(preprocessing.mean))
    mean, std = (
        numbers if len(numbers) == channels else (round(statistics.fmean(numbers), 4),) * channels
        for numbers in (preprocessing.mean, preprocessing.std)
    )
    return dataclasses.replace(preprocessing, mean=mean, std=std)


def input_channels(module: nn.Module, size: tuple[int, int], usual: int = COLOURS) -> int:
    """The number of channels with which `module` runs on an image of `size`; `usual` where it runs with none tried.

    Tried are those of its convolutions, in the order in which it holds them, then three and one.
    """
    own = [layer.in_channels for layer in module.modules() if isinstance(layer, CONVOLUTIONS)]
    tried = dict.fromkeys([*own[:1], usual, COLOURS, GRAY, *own])
    return next((channels for channels in tried if _runs(module, (1, channels, *size))), usual)


def _runs(module: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        with torch.no_grad():
            module(torch.zeros(shape))
    except Exception:  # the user's own code runs here, and may raise anything
        return False
    return True
