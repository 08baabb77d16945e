"""torchvision's families of few blocks: each kind of block that a family has, as torchvision builds it, and once.

What is captured, cut or quantized of a block is so of each that follows it; the tests take a tenth of the time.
"""

from collections.abc import Callable
from typing import Any

import torch
from conftest import unsettled
from torch import nn

from slimkit.core.compat import import_torchvision

CLASSES = 10


def family(name: str) -> nn.Module:
    """A network of 10 classes, with BatchNorm that says something."""
    torch.manual_seed(0)
    return unsettled(FAMILIES[name](import_torchvision().models))


def _resnet(models: Any) -> nn.Module:
    return models.ResNet(models.resnet.BasicBlock, [2, 1, 1, 1], CLASSES)  # type: ignore[no-any-return]


def _resnet_of_bottlenecks(models: Any) -> nn.Module:
    return models.ResNet(models.resnet.Bottleneck, [2, 1, 1, 1], CLASSES)  # type: ignore[no-any-return]


def _resnext(models: Any) -> nn.Module:
    return models.ResNet(  # type: ignore[no-any-return]
        models.resnet.Bottleneck, [2, 1, 1, 1], CLASSES, groups=32, width_per_group=4
    )


def _vgg(models: Any) -> nn.Module:
    layers = models.vgg.make_layers([32, "M", 64, "M", 64, 64, "M", 512, "M"], batch_norm=True)
    vgg = models.VGG(layers, CLASSES, init_weights=False)
    for index, (inputs, outputs) in {0: (512 * 49, 64), 3: (64, 64), 6: (64, CLASSES)}.items():
        vgg.classifier[index] = nn.Linear(inputs, outputs)  # of 4,096 they would have 100 million weights
    return vgg  # type: ignore[no-any-return]


def _mobilenet_v2(models: Any) -> nn.Module:
    settings = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]]  # expansion, channels, blocks, stride
    return models.MobileNetV2(CLASSES, inverted_residual_setting=settings)  # type: ignore[no-any-return]


def _mobilenet_v3(models: Any) -> nn.Module:
    settings, _ = models.mobilenetv3._mobilenet_v3_conf("mobilenet_v3_large")
    each = [settings[index] for index in (0, 1, 2, 3, 6, 7, 10)]  # with and without expansion, excitation and residual
    return models.MobileNetV3(each, 128, CLASSES)  # type: ignore[no-any-return]


def _densenet(models: Any) -> nn.Module:
    return models.DenseNet(16, (3, 2), 32, num_classes=CLASSES)  # type: ignore[no-any-return]


def _efficientnet(models: Any) -> nn.Module:
    block = models.efficientnet.MBConvConfig  # expansion, kernel, stride, channels, blocks
    settings = [block(1, 3, 1, 32, 16, 1), block(6, 3, 2, 16, 24, 2), block(6, 5, 2, 24, 80, 1)]
    return models.EfficientNet(settings, 0.2, num_classes=CLASSES)  # type: ignore[no-any-return]


def _regnet(models: Any) -> nn.Module:
    blocks = models.regnet.BlockParams([1, 2], [48, 104], [8, 8], [1.0, 1.0], [2, 2], se_ratio=0.25)
    return models.RegNet(blocks, CLASSES)  # type: ignore[no-any-return]


def _squeezenet(models: Any) -> nn.Module:
    return models.SqueezeNet("1_1", CLASSES)  # type: ignore[no-any-return]


FAMILIES: dict[str, Callable[[Any], nn.Module]] = {
    "resnet": _resnet,
    "resnet of bottlenecks": _resnet_of_bottlenecks,
    "resnext": _resnext,
    "vgg": _vgg,
    "mobilenet_v2": _mobilenet_v2,
    "mobilenet_v3": _mobilenet_v3,
    "densenet": _densenet,
    "efficientnet": _efficientnet,
    "regnet": _regnet,
    "squeezenet": _squeezenet,
}
