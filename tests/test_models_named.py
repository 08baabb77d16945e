"""Networks by name, with the weights that torchvision's own builders save."""

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from slimkit.core.architecture import Preprocessing
from slimkit.core.compat import import_torchvision
from slimkit.core.folder import Classifier, read_folder, write_folder
from slimkit.core.models import catalog
from slimkit.core.models.resolve import open_data_for, open_model_and_data, open_named
from slimkit.core.options import ModelOptions
from slimkit.standalone.model_loader import normalize, preprocess

CLASSES = tuple("abcde")
WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def torchvisions(name: str, **options: bool) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = import_torchvision().models.get_model(
        name, weights=None, num_classes=len(CLASSES), init_weights=False, **options
    )
    return module.eval()


@pytest.mark.parametrize("name", WITH_AUXILIARY_HEADS)
def test_weights_saved_with_auxiliary_heads_give_torchvisions_answers(name: str, tmp_path: Path) -> None:
    theirs = torchvisions(name)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    options = ModelOptions(model=name, weights=tmp_path / "weights.pth")
    classifier = open_named(options, CLASSES, Preprocessing(resize=96, crop=96))
    assert not any("aux" in key.lower() for key in classifier.module.state_dict())
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(classifier.module(images), theirs(images))


def test_a_family_that_asks_for_its_version_is_written_and_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = import_torchvision().models.mnasnet0_5(num_classes=len(CLASSES)).eval()
    torch.save(dict(theirs.state_dict()), tmp_path / "weights.pth")
    options = ModelOptions(model="mnasnet0_5", weights=tmp_path / "weights.pth")
    classifier = open_named(options, CLASSES, Preprocessing(resize=64, crop=64))
    again = read_folder(write_folder(classifier, tmp_path / "model").folder or tmp_path)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again.module(images), theirs(images))


def test_pretrained_networks_see_images_as_their_weights_want_them() -> None:
    """All 80 of them: the size, crop, interpolation, mean and deviation of torchvision's own transforms."""
    noise = torch.randint(256, (97, 130, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.numpy()).resize((390, 291), Image.Resampling.BICUBIC)
    models = import_torchvision().models
    names = [name for name in catalog.model_names() if name != "slimresnet18"]
    assert len(names) >= 80
    compared = set()
    for name in names:
        ours = dataclasses.asdict(catalog.pretrained_preprocessing(name))
        transforms = models.get_model_weights(name).DEFAULT.transforms()
        kind = (str(ours), str(transforms), name in WITH_AUXILIARY_HEADS)
        if kind in compared:
            continue
        compared.add(kind)
        theirs = transforms(image)[None]
        if name in WITH_AUXILIARY_HEADS:  # these networks normalize anew
            theirs = torchvisions(name, transform_input=True)._transform_input(theirs)
        difference = (normalize(preprocess(image, ours)[None], ours) - theirs).abs() * min(ours["std"]) * 255
        assert difference.max() < 3, name  # shades of 256, rounded twice
        assert difference.mean() < 0.1, name
    assert len(compared) > 20


def test_pretrained_preprocessing_beats_the_datas_and_flags_beat_both(monkeypatch: pytest.MonkeyPatch) -> None:
    state = import_torchvision().models.efficientnet_b0().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)  # no download

    def seen(**sizes: int) -> tuple[int, int, str]:
        options = ModelOptions(model="efficientnet_b0", pretrained=True, data="digits100", **sizes)  # type: ignore[arg-type]
        classifier, data = open_model_and_data(options)
        assert classifier.architecture.preprocessing == data.preprocessing
        return data.preprocessing.resize, data.preprocessing.crop, data.preprocessing.interpolation

    assert seen() == (256, 224, "bicubic")
    assert seen(image_size=112) == (128, 112, "bicubic")
    assert seen(image_size=64, resize=64) == (64, 64, "bicubic")


def test_a_folders_interpolation_is_that_of_its_images(classifier: Classifier, image_folder: Path) -> None:
    wanted = Preprocessing(resize=36, crop=32, interpolation="nearest")
    architecture = dataclasses.replace(classifier.architecture, preprocessing=wanted)
    other = dataclasses.replace(classifier, architecture=architecture)
    data = open_data_for(other, ModelOptions(model="", data=str(image_folder)))
    assert data.preprocessing == wanted
    pixels, _, _ = next(iter(data.test.batches(torch.arange(1), 1)))
    square = Image.open(image_folder / "val" / "ant" / "0.png").resize((43, 36), Image.Resampling.NEAREST)
    assert pixels[0].permute(1, 2, 0).numpy().tobytes() == square.crop((4, 0, 40, 36)).tobytes()
