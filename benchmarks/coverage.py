"""Which networks slimkit takes, and whether what it makes of them is right: a row for each.

    python benchmarks/coverage.py -o coverage.json [NAME ...]      torchvision's classifiers
    python benchmarks/coverage.py -o coverage.json timm            one of each of 60 families of timm's
    python benchmarks/coverage.py -o coverage.json --table         what is in the file, as a table in Markdown

Each network has random weights, in place of zeros too where training would begin with these, and 10 classes. The
images are smooth random ones of 64 pixels, or of the size that the network insists on. Random networks may amplify any
error, or answer alike to all images. So BatchNorm's statistics are measured on the images, at a scale of 1 or 0.3, or
stay 0 and 1, whichever lets noise of the size of int8's rounding, in the weights and at the outputs of all convolutions
and linear layers, change the logits the least, and the images are of 128 pixels where 64 are too few for it. Columns:

prune    at rate 0.3 by l1 without repair: the proof holds; with the share of the MACs that is left
static   int8 by calibration: 1 - cosine to the float logits, means over the images taken out, is at most 0.1, or 3
         times what that noise makes it
dynamic  the same, without calibration
onnx     the float export: ONNX Runtime answers as the network does; the static int8 one: its logits are no further from
         the int8 network's than 5 % of what they vary from image to image, or than these are from the float ones
folder   the pruned network, written and read again, gives the same bits

"right", or the reason for which it was refused; "wrong" and the figure otherwise. It goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

from slimkit.core.architecture import Architecture, Preprocessing
from slimkit.core.compat import import_torchvision
from slimkit.core.errors import SlimkitError
from slimkit.core.export import check_logits, to_onnx
from slimkit.core.folder import Classifier, read_folder, write_folder
from slimkit.core.models.describe import describe_layers
from slimkit.core.models.own import build_own, is_own
from slimkit.core.models.resolve import as_classifier
from slimkit.core.pruning import prune
from slimkit.core.pruning.repair.recalibrate import recalibrate
from slimkit.core.quantization.convert import Scheme, quantize
from slimkit.standalone.model import LARGEST_PAIR, build_model, cpu_arithmetic, torchvision_network

COLUMNS = ("prune", "static", "dynamic", "onnx float", "onnx int8", "folder")
CLASSES, SIZES, IMAGES = 10, (64, 128), 16
SCALES = (1.0, 0.3)  # of BatchNorm, where its statistics are measured: small values make activations nearly linear
QUIET = 0.02  # what noise may cost of the cosine where larger images aren't tried
ASLEEP = 1e-4  # weights all of which are at most so large
RATE = 0.3
LOGITS_APART = 0.05  # norm of what int8 logits may differ by in ONNX Runtime, over that of what they vary by
UNLIKE, TIMES = 0.1, 3  # what int8 may cost of the cosine, at least, and as a multiple of what noise costs
FIXED = {"vit_": 224, "maxvit": 224, "inception": 96}  # sizes that networks insist on, by the start of their names
TIMM = """
resnet18d resnetv2_50 resnext26ts resnest14d res2net50_14w_8s legacy_seresnet18 eca_resnet33ts skresnet18 densenet121
dla34 dpn48b vgg11_bn ese_vovnet19b_dw xception41 inception_v3 hrnet_w18_small hardcorenas_a mobilenetv1_100
mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small_050 efficientnet_b0 efficientnet_lite0 mixnet_s
mnasnet_small fbnetc_100 tinynet_e lcnet_050 ghostnet_050 rexnet_100 regnetx_002 regnety_002 gernet_s repvgg_a0
mobileone_s0 fastvit_t8 repvit_m0_9 cspdarknet53 selecsls42b nf_regnet_b0 convnext_atto convnextv2_atto convmixer_768_32
edgenext_xx_small inception_next_atto poolformerv2_s12 starnet_s1 hgnetv2_b0 efficientvit_b0 efficientformer_l1
levit_128s mobilevit_xxs coat_tiny vit_tiny_patch16_224 deit_tiny_patch16_224 swin_tiny_patch4_window7_224
xcit_nano_12_p16_224 mixer_s32_224 pvt_v2_b0 pit_ti_224
"""


def main() -> None:
    """Try the networks that are not in the file yet, the smallest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="torchvision's names (default: all classifiers), timm:NAME, or timm")
    parser.add_argument("-o", "--output", type=Path, default=Path("coverage.json"))
    parser.add_argument("--table", action="store_true", help="try none, print the table")
    options = parser.parse_args()
    if options.table:
        print(markdown(json.loads(options.output.read_text())))
        return
    models = import_torchvision().models
    names = options.names or models.list_models(module=models)
    names = [f"timm:{each}" for each in TIMM.split()] if names == ["timm"] else names
    rows = json.loads(options.output.read_text()) if options.output.exists() else {}
    for name in sorted(names, key=_parameters):
        if name not in rows:
            rows[name] = try_network(name)
            options.output.write_text(json.dumps(rows, indent=1))
            print(f"{name:28}", *(f"{column}: {answer}" for column, answer in rows[name].items()), sep="  ", flush=True)
    print_summary(rows)


def try_network(name: str) -> dict[str, str]:
    """What became of the network in each column."""
    try:
        classifier, images, noise = make_classifier(name)
    except SlimkitError as error:
        return dict.fromkeys(COLUMNS, f"refused: {error}")
    made: dict[str, Classifier] = {}
    return {
        "prune": _answer(lambda: _pruned(classifier, made)),
        "static": _answer(lambda: _quantized(classifier, "static", images, noise, made)),
        "dynamic": _answer(lambda: _quantized(classifier, "dynamic", images, noise, made)),
        "onnx float": _answer(lambda: _exported(classifier)),
        "onnx int8": _answer(lambda: _int8_exported(classifier, made["static"], images))
        if "static" in made
        else "no int8 network",
        "folder": _answer(lambda: _same_bits(made["pruned"], images)) if "pruned" in made else "not pruned",
    }


def make_classifier(name: str) -> tuple[Classifier, Tensor, float]:
    """A network that amplifies no noise, as far as there is such, images for it, and what noise costs there."""
    made = []
    for size in _sizes(name):
        made.append(_with_statistics(name, size))
        if made[-1][2] <= QUIET:
            break
    return min(made, key=lambda each: each[2])


def _sizes(name: str) -> tuple[int, ...]:
    """The sizes of images that are tried, in pixels."""
    if is_own(name):
        config = importlib.import_module("timm").get_pretrained_cfg(name.removeprefix("timm:"))
        return (config.input_size[1],) if config.fixed_input_size else SIZES
    return tuple(size for start, size in FIXED.items() if name.startswith(start)) or SIZES


def _with_statistics(name: str, size: int) -> tuple[Classifier, Tensor, float]:
    torch.manual_seed(0)
    shape = (3, size, size)
    images = functional.interpolate(torch.randn(IMAGES, 3, size // 8, size // 8), scale_factor=8.0, mode="bilinear")
    if is_own(name):
        network, noise = _quietest(awake(build_own(name, CLASSES, {})), images)
        return as_classifier(network, None, Preprocessing(resize=size, crop=size), model=name), images, noise
    module = awake(torchvision_network(name, CLASSES))
    architecture = Architecture(
        model_type=name,
        base={"name": name},
        num_classes=CLASSES,
        class_names=tuple(map(str, range(CLASSES))),
        input_shape=shape,
        output_shape=(CLASSES,),
        preprocessing=Preprocessing(resize=size, crop=size),
        layers=describe_layers(module.eval(), shape),
    )
    built = build_model(architecture.to_dict())
    built.load_state_dict(module.state_dict())
    network, noise = _quietest(built, images)
    return Classifier(network, architecture), images, noise


def awake(network: nn.Module) -> nn.Module:
    """The network, with random numbers for weights that are zero or nearly so at first: what they multiply has no say.

    Such are a mixer's last layer, the scales of ConvNeXt's blocks (1e-6) and the response norms of its second version.
    """
    for name, weight in network.named_parameters():
        if weight.detach().abs().max() <= ASLEEP and not name.endswith("bias"):
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.3)
    return network


def _quietest(built: nn.Module, images: Tensor) -> tuple[nn.Module, float]:
    """The candidate that amplifies noise the least, and what noise costs it."""
    return min(((each, noise_cost(each, images)) for each in _candidates(built, images)), key=lambda pair: pair[1])


def _candidates(built: nn.Module, images: Tensor) -> list[nn.Module]:
    """The network as it comes, and with BatchNorm's statistics measured."""
    candidates = [built]
    for scale in SCALES:
        candidates.append(copy.deepcopy(built))
        for part in candidates[-1].modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.constant_(part.weight, scale)
        recalibrate(candidates[-1], [images])
    return candidates


def noise_cost(module: nn.Module, images: Tensor) -> float:
    """1 - cosine of the logits with and without noise as int8's rounding makes it: half a step at most, everywhere."""
    generator, noisy = torch.Generator().manual_seed(0), copy.deepcopy(module)

    def disturbed(values: Tensor, step: Tensor) -> Tensor:
        return values + step * (torch.rand(values.shape, generator=generator) - 0.5)

    with torch.no_grad():
        for layer in noisy.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                largest = layer.weight.abs().flatten(1).amax(1).view(-1, *[1] * (layer.weight.dim() - 1))
                layer.weight.copy_(disturbed(layer.weight, largest / (LARGEST_PAIR // 2)))
                layer.register_forward_hook(lambda _, __, out: disturbed(out, (out.max() - out.min()) / 255))
        return _unlikeness(module(images), noisy(images))


def _unlikeness(wanted: Tensor, given: Tensor) -> float:
    deviations = [(logits - logits.mean(0)).flatten() for logits in (wanted, given)]
    return 1 - float(functional.cosine_similarity(*deviations, 0))


def _answer(run: Callable[[], str]) -> str:
    try:
        return run()
    except SlimkitError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"crashed: {type(error).__name__}: {error}"


def _pruned(classifier: Classifier, made: dict[str, Classifier]) -> str:
    result = prune(classifier, rate=RATE, importance="l1")
    made["pruned"] = result.classifier
    left = result.report.after.macs / result.report.before.macs
    return f"right ({left:.0%} of the MACs, {result.report.reached:.0%} of the channels went)"


def _quantized(
    classifier: Classifier, scheme: Scheme, images: Tensor, noise: float, made: dict[str, Classifier]
) -> str:
    reduce = cpu_arithmetic().saturates  # as the command does
    made[scheme] = quantize(classifier, scheme=scheme, calibration=[images], reduce_range=reduce).classifier
    with torch.no_grad():
        wanted, given = classifier.module(images), made[scheme].module(images)
    cost = _unlikeness(wanted, given)
    is_right = cost <= max(UNLIKE, TIMES * noise)
    return f"{'right' if is_right else 'wrong'} (1 - cosine: {cost:.3f}, of noise {noise:.3f})"


def _exported(classifier: Classifier) -> str:
    worst = max(check.relative_error for check in check_logits(classifier, to_onnx(classifier)))  # it raises, too
    return f"right (logits {worst:.1e} apart)"


def _int8_exported(classifier: Classifier, made: Classifier, images: Tensor) -> str:
    session = onnxruntime.InferenceSession(to_onnx(made), providers=["CPUExecutionProvider"])
    theirs = torch.from_numpy(session.run(None, {"input": images.numpy()})[0])
    with torch.no_grad():
        wanted, ours = classifier.module(images), made.module(images)
    varying = float((ours - ours.mean(0)).norm())
    apart, rounded = float((theirs - ours).norm()) / varying, float((ours - wanted).norm()) / varying
    is_right = apart <= max(LOGITS_APART, rounded)
    return f"{'right' if is_right else 'wrong'} (logits {apart:.1e} apart, int8 and float {rounded:.1e})"


def _same_bits(classifier: Classifier, images: Tensor) -> str:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        read = read_folder(write_folder(classifier, Path(folder) / "model").folder or Path(folder))
        return "right" if torch.equal(read.module(images), classifier.module(images)) else "wrong"


def _parameters(name: str) -> int:
    if is_own(name):
        with torch.device("meta"):  # no time for random numbers
            return sum(parameter.numel() for parameter in build_own(name, CLASSES, {}).parameters())
    weights = import_torchvision().models.get_model_weights(name)
    return int(next(iter(weights)).meta["num_params"])


def markdown(rows: dict[str, dict[str, str]]) -> str:
    """A table of all networks: the figures of what is right, or what it is instead."""
    lines = [
        "| network | MACs left | static | dynamic | ONNX | int8 ONNX | folder |",
        f"| --- |{' ---: |' * len(COLUMNS)}",
    ]
    for name, row in rows.items():
        lines.append(f"| {name.removeprefix('timm:')} | " + " | ".join(_figure(row[each]) for each in COLUMNS) + " |")
    return "\n".join(lines)


def _figure(answer: str) -> str:
    """The first figure of an answer that is right, else the answer."""
    found = re.match(r"right \((?:1 - cosine: |logits )?([\d.e-]+%?)", answer)
    return found[1] if found else answer


def print_summary(rows: dict[str, dict[str, str]]) -> None:
    """How many networks are right in each column, and in all."""
    for column in COLUMNS:
        print(f"{column:12} {sum(row[column].startswith('right') for row in rows.values())} of {len(rows)}")
    print(f"{'all':12} {sum(all(a.startswith('right') for a in row.values()) for row in rows.values())} of {len(rows)}")


if __name__ == "__main__":
    main()
