"""For each operation of the normal form: small networks that call it, in the spellings that users have for it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS, HEIGHT, WIDTH = 4, 8, 6
Body = Callable[[Tensor], Tensor]  # [n, 4, 8, 6] -> anything


class Case(nn.Module):
    """A function of the module itself and of images, with the weights that it reads."""

    def __init__(self, body: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            elif part.is_floating_point():
                self.register_parameter(name, nn.Parameter(part))
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def _of(*bodies: Body) -> list[Callable[[], Case]]:
    return [lambda body=body: Case(lambda _, x: body(x)) for body in bodies]


def _layer(*layers: Callable[[], nn.Module], before: Body = lambda x: x) -> list[Callable[[], Case]]:
    return [lambda layer=layer: Case(lambda self, x: self.layer(before(x)), layer=_filled(layer())) for layer in layers]


def _filled(layer: nn.Module) -> nn.Module:
    """Random numbers in place of the ones and zeros that norms begin with."""
    generator = torch.Generator().manual_seed(0)
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return layer


def _flat(x: Tensor) -> Tensor:
    return x.flatten(2)


def _volume(x: Tensor) -> Tensor:
    return x.unsqueeze(2)


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _positive(x: Tensor) -> Tensor:
    return x.abs() + 0.1


def _in_place(x: Tensor) -> Tensor:
    y = x * 2
    y += x
    y.relu_()
    return y


def _in_place_on_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0].mul_(3)
    return y


def _in_place_on_a_part(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1:3] += 1
    return y


BY_FUNCTIONAL = (
    *("relu6", "hardswish", "hardsigmoid", "silu", "gelu", "elu", "selu", "celu", "mish", "softplus", "leaky_relu"),
    *("hardshrink", "softshrink"),
)
BY_TORCH = (
    *("sigmoid", "tanh", "abs", "exp", "expm1", "square", "neg", "sin", "cos", "erf", "sign", "floor", "ceil"),
    *("round", "trunc"),
)
ON_POSITIVE = ("log", "log1p", "sqrt", "rsqrt", "reciprocal")

CASES: dict[str, list[Callable[[], Case]]] = {
    **{name: _of(getattr(F, name)) for name in BY_FUNCTIONAL},
    **{name: _of(getattr(torch, name)) for name in BY_TORCH},
    **{name: _of(lambda x, name=name: getattr(torch, name)(_positive(x))) for name in ON_POSITIVE},
    "relu": _of(torch.relu, lambda x: F.relu(x * 1, inplace=True), lambda x: x.clamp(min=0), _in_place),
    "log_sigmoid": _of(F.logsigmoid),
    "clamp": _of(lambda x: x.clamp(-0.5, 0.25), lambda x: F.hardtanh(x), lambda x: torch.clamp(x, max=0.3)),
    "clamp_min": _of(lambda x: torch.clamp_min(x, 0.2)),
    "clamp_max": _of(lambda x: torch.clamp_max(x, 0.2)),
    "logical_not": _of(lambda x: torch.logical_not(x > 0).float()),
    "conv1d": _layer(lambda: nn.Conv1d(4, 3, 3, 2, 1), before=_flat),
    "conv2d": _layer(
        lambda: nn.Conv2d(4, 6, 3, padding=1),
        lambda: nn.Conv2d(4, 8, (3, 2), (2, 1), (1, 0), groups=2, bias=False),
        lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
        lambda: nn.Conv2d(4, 3, 4, padding="same"),
        lambda: nn.Conv2d(4, 3, 3, padding="valid"),
        lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"),
    ),
    "conv3d": _layer(lambda: nn.Conv3d(4, 3, (1, 3, 3)), before=_volume),
    "conv_transpose1d": _layer(lambda: nn.ConvTranspose1d(4, 3, 2, 2), before=_flat),
    "conv_transpose2d": _layer(
        lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1, output_padding=1), lambda: nn.ConvTranspose2d(4, 4, 2, groups=4)
    ),
    "conv_transpose3d": _layer(lambda: nn.ConvTranspose3d(4, 3, (1, 2, 2)), before=_volume),
    "linear": _layer(lambda: nn.Linear(4, 3), lambda: nn.Linear(4, 3, bias=False), before=_rows),
    "batch_norm": [
        *_layer(lambda: nn.BatchNorm2d(4), lambda: nn.BatchNorm2d(4, affine=False, eps=0.1)),
        *_layer(lambda: nn.BatchNorm1d(4), before=lambda x: x.mean((2, 3))),
    ],
    "instance_norm": _layer(lambda: nn.InstanceNorm2d(4, affine=True)),
    "group_norm": _layer(lambda: nn.GroupNorm(2, 4), lambda: nn.GroupNorm(4, 4)),
    "layer_norm": _layer(lambda: nn.LayerNorm(4), before=_rows) + _layer(lambda: nn.LayerNorm([4, 8, 6])),
    "rms_norm": _layer(lambda: nn.RMSNorm(4, eps=1e-5), before=_rows),
    "prelu": _layer(lambda: nn.PReLU(), lambda: nn.PReLU(4)),
    "matmul": _of(lambda x: x @ x.transpose(2, 3)),
    "bmm": _of(lambda x: torch.bmm(x.flatten(2), x.flatten(2).transpose(1, 2))),
    "mm": [lambda: Case(lambda self, x: torch.mm(x.mean((2, 3)), self.table), table=torch.rand(4, 3))],
    "addmm": [
        lambda: Case(lambda self, x: torch.addmm(self.b, x.mean((2, 3)), self.t), b=torch.rand(3), t=torch.rand(4, 3))
    ],
    "baddbmm": _of(lambda x: torch.baddbmm(x[:, 0], x[:, 1], x[:, 2].transpose(1, 2) @ x[:, 3], alpha=0.5)),
    "mv": [lambda: Case(lambda self, x: x + torch.mv(self.t, x[0, :, 0, 0]).view(1, 4, 1, 1), t=torch.rand(4, 4))],
    "dot": [lambda: Case(lambda self, x: x * torch.dot(x[0, :, 0, 0], self.v), v=torch.rand(4))],
    "weight_norm": [
        lambda: Case(
            lambda self, x: x * torch._weight_norm(self.v, x[0, :, :1, 0]).sum(1).view(1, 4, 1, 1), v=torch.rand(4, 5)
        )
    ],
    "scaled_dot_product_attention": _of(lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1)),
    "add": _of(lambda x: x + 1, lambda x: torch.add(x, x * x, alpha=0.5), lambda x: 2 + x + x[:, :1]),
    "sub": _of(lambda x: x - 1, lambda x: x - x.mean(1, keepdim=True), lambda x: torch.sub(x, x * x, alpha=2)),
    "rsub": _of(lambda x: 1 - x),
    "mul": _of(lambda x: 2 * x, lambda x: x * x.sigmoid()),
    "select_scatter": _of(_in_place_on_a_view),
    "slice_scatter": _of(_in_place_on_a_part),
    "contiguous": _of(
        lambda x: x.transpose(1, 3).contiguous(), lambda x: x.contiguous(memory_format=torch.channels_last)
    ),
    "div": _of(lambda x: x / 3, lambda x: 1 / _positive(x) * x / _positive(x)),
    "div_rounded": _of(lambda x: torch.div(x, 0.3, rounding_mode="floor")),
    "pow": _of(lambda x: x**2, lambda x: _positive(x) ** 0.5),
    "pow_tensor": _of(lambda x: _positive(x) ** x),
    "addcmul": _of(lambda x: torch.addcmul(x, x, x * 2, value=0.5)),
    "maximum": _of(lambda x: torch.maximum(x, x * x), lambda x: torch.max(x, x * 2)),
    "minimum": _of(lambda x: torch.minimum(x, x * x)),
    "where": _of(lambda x: torch.where(x > 0, x, x * 0.1)),
    "masked_fill": _of(lambda x: x.masked_fill(x < 0, 0.5)),
    **{
        name: _of(lambda x, name=name: x * getattr(torch, name)(x, 0.1))
        for name in ("eq", "ne", "lt", "le", "gt", "ge", "remainder")
    },
    "to": _of(lambda x: (x > 0).float(), lambda x: (x * 3).int().to(x.dtype)),
    "dropout": _layer(lambda: nn.Dropout(0.5)) + _of(lambda x: F.dropout(x, 0.3, training=False)),
    "feature_dropout": _layer(lambda: nn.Dropout2d(0.5)),
    "max_pool1d": _layer(lambda: nn.MaxPool1d(3, 2, 1), before=_flat),
    "max_pool2d": [
        *_layer(
            lambda: nn.MaxPool2d(2), lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), lambda: nn.MaxPool2d((3, 2), 1)
        ),
        *_of(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
    ],
    "max_pool3d": _layer(lambda: nn.MaxPool3d((1, 2, 2)), before=_volume),
    "avg_pool1d": _layer(lambda: nn.AvgPool1d(3, 2), before=_flat),
    "avg_pool2d": _layer(
        lambda: nn.AvgPool2d(2),
        lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        lambda: nn.AvgPool2d((2, 3), (1, 2)),
    ),
    "avg_pool3d": _layer(lambda: nn.AvgPool3d((1, 2, 2)), before=_volume),
    "adaptive_avg_pool1d": _layer(lambda: nn.AdaptiveAvgPool1d(4), before=_flat),
    "adaptive_avg_pool2d": _layer(lambda: nn.AdaptiveAvgPool2d(1), lambda: nn.AdaptiveAvgPool2d((3, None))),
    "adaptive_avg_pool3d": _layer(lambda: nn.AdaptiveAvgPool3d((1, 2, 3)), before=_volume),
    "adaptive_max_pool2d": _layer(lambda: nn.AdaptiveMaxPool2d((2, 3))),
    "upsample_nearest1d": _of(lambda x: F.interpolate(_flat(x), scale_factor=2)),
    "upsample_nearest2d": _of(lambda x: F.interpolate(x, scale_factor=2), lambda x: F.interpolate(x, size=(5, 7))),
    "upsample_bilinear2d": _of(
        lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
        lambda x: F.interpolate(x, size=(11, 5), mode="bilinear", align_corners=True),
    ),
    "upsample_bicubic2d": _of(lambda x: F.interpolate(x, size=(11, 5), mode="bicubic")),
    "pad": _of(
        lambda x: F.pad(x, (1, 2, 0, 1)),
        lambda x: F.pad(x, (1, 1, 1, 1), "reflect"),
        lambda x: F.pad(x, (1, 0), value=2.0),
    )
    + _layer(lambda: nn.ZeroPad2d((1, 0, 2, 0)), lambda: nn.ReplicationPad2d(1)),
    "pixel_shuffle": _of(lambda x: F.pixel_shuffle(x, 2)),
    "pixel_unshuffle": _of(lambda x: F.pixel_unshuffle(x, 2)),
    "unfold": _of(lambda x: x.unfold(2, 3, 2)),
    "im2col": _of(lambda x: F.unfold(x, 3, padding=1)),
    "grid_sampler": _of(lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False)),
    "mean": _of(lambda x: x.mean((2, 3)), lambda x: x.mean(-1, keepdim=True), lambda x: x - x.mean()),
    "sum": _of(lambda x: x.sum((-2, -1)), lambda x: x.sum(1)),
    "amax": _of(lambda x: x.amax((2, 3)), lambda x: torch.max(x, 1, keepdim=True)[0], lambda x: x.max(-1).values),
    "amin": _of(lambda x: x.amin(1), lambda x: x.min(2)[0]),
    "argmax": _of(lambda x: x.max(1, keepdim=True)[1] * x, lambda x: x.argmax(1, keepdim=True) * x),
    "prod": _of(lambda x: x.prod(3)),
    "var": _of(lambda x: x.var((2, 3)), lambda x: x.var(1, correction=0, keepdim=True)),
    "std": _of(lambda x: x.std((2, 3), unbiased=False)),
    "norm": _of(lambda x: F.normalize(x, dim=1), lambda x: x.norm(dim=(2, 3))),
    "logsumexp": _of(lambda x: x.logsumexp((2, 3))),
    "cumsum": _of(lambda x: x.cumsum(2)),
    "softmax": _of(lambda x: x.softmax(1), lambda x: F.softmax(x, dim=-1)),
    "log_softmax": _of(lambda x: F.log_softmax(x, dim=1)),
    "reshape": _of(
        lambda x: x.view(x.size(0), 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
        lambda x: x.view(x.shape[0], -1),
    ),
    "flatten": _layer(lambda: nn.Flatten()) + _of(lambda x: x.flatten(1, 2), lambda x: torch.flatten(x, -2)),
    "permute": _of(lambda x: x.permute(0, 2, 3, 1), lambda x: x.movedim(1, -1), lambda x: x.mT),
    "transpose": _of(lambda x: x.transpose(1, 3)),
    "squeeze": _of(lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(2), lambda x: x[:, :1].squeeze(1)),
    "unsqueeze": _of(lambda x: x.unsqueeze(-1), lambda x: x[:, None]),
    "expand": [
        *_of(lambda x: x[:, :1].expand_as(x), lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 5)),
        lambda: Case(  # a class token
            lambda self, x: torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).mT], 1),
            token=torch.rand(1, 1, 4),
        ),
    ],
    "repeat": _of(lambda x: x.repeat(1, 2, 1, 1)),
    "repeat_interleave": _of(lambda x: x.repeat_interleave(2, dim=1)),
    "cat": _of(lambda x: torch.cat([x, x.relu()], 1), lambda x: torch.cat(x.split(split_size=2, dim=1)[::-1], dim=1)),
    "stack": _of(lambda x: torch.stack([x, x * 2], 2)),
    "slice": _of(
        lambda x: x[:, 1:3],
        lambda x: x[..., ::2],
        lambda x: x.chunk(2, 1)[1],
        lambda x: x.narrow(1, -2, 2),
        lambda x: x[:, :-1],
    ),
    "select": _of(lambda x: x.transpose(0, 1)[2], lambda x: x[:, 2], lambda x: x.unbind(1)[-1], lambda x: x[..., -1]),
    "index": [lambda: Case(lambda self, x: x[:, self.order], order=torch.tensor([3, 1, 0, 2]))],
    "index_select": [lambda: Case(lambda self, x: x.index_select(1, self.order), order=torch.tensor([3, 1, 0]))],
    "gather": _of(lambda x: x.gather(1, x.argmax(1, keepdim=True))),
    "flip": _of(lambda x: x.flip(1), lambda x: x.flip((2, -1))),
    "roll": _of(lambda x: x.roll((1, -2), (2, 3)), lambda x: torch.roll(x, 1, 1)),
    "tril": _of(torch.tril),
    "triu": _of(lambda x: x.triu(1)),
    "arange": _of(lambda x: x + torch.arange(x.shape[3])),
    "full": _of(lambda x: x + torch.ones(x.shape[0], 1, 1, x.shape[3]), lambda x: x * torch.full_like(x, 0.5)),
}
