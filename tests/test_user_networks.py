"""Networks as users write them, through pruning and int8: right, or refused with the true reason."""

import io

import pytest
import torch
from conftest import unsettled, user_classifier, user_networks
from graph_cases import CASES, CHANNELS, HEIGHT, WIDTH
from test_pruning_operations import Through
from torch import Tensor, nn
from torch.nn import functional as F

from slimkit.core.errors import ModelError
from slimkit.core.pruning import prune_module
from slimkit.core.quantization.convert import Scheme, quantize

# What users write seldom, and what picks by values: in an int8 network these are refused
NO_INT8_FORM = """
addmm argmax baddbmm conv3d conv_transpose1d conv_transpose3d div_rounded dot eq gather ge grid_sampler gt
im2col le logical_not lt masked_fill mv ne prod remainder repeat_interleave select_scatter slice_scatter to
tril triu unfold weight_norm where
"""
SCHEMES: tuple[Scheme, ...] = ("static", "dynamic")


def smooth(*shape: int) -> Tensor:
    """Random images of large spots, which untrained networks tell apart; pixels of noise they hardly do."""
    count, channels, height, width = shape
    coarse = torch.randn(count, channels, height // 2, width // 2, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, scale_factor=2.0, mode="bilinear")


def likeness(wanted: Tensor, given: Tensor) -> float:
    """The cosine of what tells the images apart."""
    return float(F.cosine_similarity((wanted - wanted.mean(0)).flatten(), (given - given.mean(0)).flatten(), dim=0))


@pytest.mark.parametrize("kind", user_networks(), ids=lambda kind: kind.__name__)
def test_a_users_network_is_cut_with_a_proof(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = unsettled(kind())
    pruned = prune_module(module, (3, 32, 32), rate=0.5)
    assert pruned.report.difference < 1e-4
    assert pruned.report.reached > 0.45
    assert pruned.module(smooth(3, 3, 32, 32)).shape == module(smooth(3, 3, 32, 32)).shape


def test_a_cut_network_is_one_as_any_other() -> None:
    torch.manual_seed(0)
    cut = prune_module(unsettled(nn.Sequential(*_layers())), (3, 32, 32), rate=0.25).module
    images = smooth(8, 3, 32, 32)
    again = prune_module(cut, (3, 32, 32), rate=0.5)
    assert again.report.reached == pytest.approx(0.5)
    assert set(again.module.state_dict()) == set(cut.state_dict())
    made = quantize(user_classifier(cut, (3, 32, 32)), scheme="static", calibration=[images]).classifier.module
    file = io.BytesIO()
    torch.save(cut, file)
    file.seek(0)
    with torch.no_grad():
        assert likeness(cut(images), made(images)) > 0.99
        assert torch.equal(torch.load(file, weights_only=False)(images), cut(images))
    cut.train()
    cut(images).sum().backward()
    assert all(parameter.grad is not None for parameter in cut.parameters())


def _layers() -> list[nn.Module]:
    first = [nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, groups=16), nn.SiLU()]
    return [*first, nn.Conv2d(16, 24, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)]


@pytest.mark.parametrize("kind", user_networks(), ids=lambda kind: kind.__name__)
def test_a_users_network_is_quantized(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module, images = unsettled(kind()), smooth(32, 3, 32, 32)
    for scheme in SCHEMES:
        made = quantize(user_classifier(module, (3, 32, 32)), scheme=scheme, calibration=[images]).classifier.module
        with torch.no_grad():
            assert likeness(module(images), made(images)) > 0.99, scheme
            assert torch.equal(made(images[:1]), made(images)[:1]) or scheme == "static"


class Positions(nn.Module):
    """A table of positions that the code makes as large as the batch, as EdgeNeXt's: the same for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project, self.head = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(4, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        mask = ~torch.zeros(x.shape[0], *x.shape[2:], dtype=torch.bool)
        rows, columns = (mask.cumsum(dim, dtype=torch.float32) for dim in (1, 2))
        rows, columns = (rows / rows[:, -1:])[..., None], (columns / columns[:, :, -1:])[..., None]
        table = torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], 3)
        return self.head(F.relu(x + self.project(table.permute(0, 3, 1, 2))).mean((2, 3)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_alike_for_each_image_is_a_constant_in_int8(scheme: Scheme) -> None:
    torch.manual_seed(0)
    module, images = Positions().eval(), smooth(16, 3, 32, 32)
    made = quantize(user_classifier(module, (3, 32, 32)), scheme=scheme, calibration=[images]).classifier.module
    with torch.no_grad():
        for batch in (images, images[:1]):
            torch.testing.assert_close(made(batch), module(batch), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("operation", "index"), [(operation, index) for operation in CASES for index in range(len(CASES[operation]))]
)
def test_an_operation_is_right_in_int8_or_named(operation: str, index: int) -> None:
    module = Through(CASES[operation][index]().eval()).eval()
    images = smooth(16, CHANNELS, HEIGHT, WIDTH)
    classifier = user_classifier(module, (CHANNELS, HEIGHT, WIDTH))
    if operation in NO_INT8_FORM.split():
        with pytest.raises(ModelError, match="has no form in an int8 network"):
            quantize(classifier, scheme="static", calibration=[images])
        return
    for scheme in SCHEMES:
        made = quantize(classifier, scheme=scheme, calibration=[images])
        with torch.no_grad():
            wanted, given = module(images), made.classifier.module(images)
        is_near = torch.allclose(wanted, given, atol=0.02)  # floor() and the like jump
        assert is_near or likeness(wanted, given) > 0.9, scheme
