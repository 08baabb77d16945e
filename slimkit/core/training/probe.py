"""Whether a network can be trained on smaller images first."""

from __future__ import annotations

import copy
import logging

import torch
from torch import nn

from slimkit.core.architecture import Preprocessing
from slimkit.core.errors import first_line
from slimkit.core.sizes import show_size
from slimkit.core.training.schedule import training_size
from slimkit.standalone.model_loader import sides

log = logging.getLogger("slimkit")

PLACES = 100  # of the training, that are looked at


def takes_smaller_images(module: nn.Module, preprocessing: Preprocessing) -> bool:
    """Whether a copy of `module` computes images of every size that progressive resizing has; the log says if not.

    Vision transformers, for one, have a position embedding for each patch of one size. `module` stays as it is.
    """
    copied, channels = copy.deepcopy(module).train(), len(preprocessing.mean)
    sizes = dict.fromkeys(training_size(place, PLACES, preprocessing.crop) for place in range(PLACES))
    sizes.pop(preprocessing.crop)
    for size in sizes:
        try:
            with torch.no_grad(), torch.random.fork_rng():
                copied(torch.zeros(2, channels, *sides(size)))
        except Exception as error:  # whatever the network's own code raises
            log.info(
                "all images are seen at full size, as the network takes none of %s pixels: %s",
                show_size(size),
                first_line(error),
            )
            return False
    return True
