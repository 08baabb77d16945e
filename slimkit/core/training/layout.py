"""Which memory layout training is done in."""

import torch
from torch import nn

VECTOR = 16  # float32 numbers in the widest vector registers


def memory_format(module: nn.Module) -> torch.memory_format:
    """Channels-last, which is faster, but for networks with a strided 1x1 convolution of fewer channels than a VECTOR.

    oneDNN's gradient of such a convolution's weight is wrong in channels-last memory, and written beyond its end (seen
    in torch 2.13 on a CPU with AVX2, for 2 to 7 channels).
    """
    narrow = any(
        isinstance(layer, nn.Conv2d)
        and layer.in_channels // layer.groups < VECTOR
        and max(layer.kernel_size) == 1 < max(layer.stride)
        for layer in module.modules()
    )
    return torch.contiguous_format if narrow else torch.channels_last
