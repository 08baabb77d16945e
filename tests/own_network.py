"""A network as a user writes one: a class in a file, with attention, sizes that follow the image, and dropout."""

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
        mixed = (q @ k.transpose(1, 2) / c**0.5).softmax(-1) @ v
        return x + self.out(mixed).transpose(1, 2).reshape(n, c, h, w)


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU())


class Net(nn.Module):
    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.stem, self.down = block(3, width, 2), block(width, 2 * width, 2)
        self.same = block(2 * width, 2 * width, 1)
        self.attention = Attention(2 * width)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.stem(x))
        x = self.attention(x + self.same(x))
        return self.head(self.dropout(x.mean((2, 3))))


def tiny(classes: int) -> nn.Module:
    return Net(num_classes=classes, width=8)


def broken(num_classes: int) -> nn.Module:
    raise KeyError("checkpoint")


class Ready(Net):
    def __init__(self) -> None:
        super().__init__(num_classes=3)


READY = Ready()
NUMBER = 5


class Heads(nn.Module):
    """Two classifiers on one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = block(3, 16, 2), nn.Linear(16, 5), nn.Linear(16, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x).mean((2, 3))
        return self.first(x), self.second(x)


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = block(3, 16, 2), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).mean((2, 3)))


class Map(nn.Module):
    """No classifier: it answers with a map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Half(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.to(torch.bfloat16)


class NormLast(Net):
    """What is last in its state dict is no classifier."""

    def __init__(self) -> None:
        super().__init__(num_classes=3)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))
