"""What coded weights take: of a network, at several widths, beside the zero-order entropy of its codes.

    python benchmarks/coded.py --weights resnet18_cifar100_64px.pth

No images are needed: weights of fewer than 8 bits are rounded with the scale of the least squared error, and
activations are calibrated on noise. The entropy is that of a memoryless source with a table for each layer. A decoding
takes torch on --threads threads; the best of three is printed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from slimkit.core.architecture import Preprocessing
from slimkit.core.coding.encoder import encode_weights
from slimkit.core.folder import Classifier, serialize_weights
from slimkit.core.models.resolve import open_named
from slimkit.core.options import ModelOptions
from slimkit.core.quantization.convert import folded_layers, quantize
from slimkit.core.quantization.weights.per_channel import LARGEST
from slimkit.core.quantization.weights.rounded import read_rounded
from slimkit.core.quantization.weights.rounding import best_scale
from slimkit.standalone.model import Int8Network, decode_weights


def main() -> None:
    """Print a row for each width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = arguments.image_size
    options = ModelOptions(model=arguments.model, weights=arguments.weights)
    classifier = open_named(options, None, Preprocessing(resize=size, crop=size))
    print("| bits | plain, MB | entropy, MB | coded, MB | above the entropy | bits a weight | decoded in, s |")
    print("| ---: " * 7 + "|")
    for bits in arguments.bits:
        print(row(quantized(classifier, bits), bits))


def quantized(classifier: Classifier, bits: int) -> Classifier:
    """In int8, with so many bits for the weights of all layers but the first and the last."""
    images = torch.randn(16, *classifier.architecture.input_shape, generator=torch.Generator().manual_seed(0))
    inner = dict(list(folded_layers(classifier).items())[1:-1]) if bits < 8 else {}
    rounded = {name: round_alone(weight, LARGEST[bits]) for name, (weight, _) in inner.items()}
    made = quantize(
        classifier, scheme="static", calibration=[images], weight_bits=dict.fromkeys(inner, bits), weights=rounded
    )
    return made.classifier


def round_alone(weight: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Codes and scales with the least squared error of the weights themselves."""
    flat = weight.flatten(1).float()
    scale = best_scale(flat[None], torch.ones(1, flat.shape[1]), -largest, largest)[0]
    codes = (flat / scale[:, None]).round().clamp(-largest, largest)
    return codes.to(torch.int8).view(weight.shape), scale


def row(classifier: Classifier, bits: int) -> str:
    """One line of the table."""
    codes = [layer.codes for layer in read_rounded(classifier).values()]
    count, least = sum(map(torch.Tensor.numel, codes)), sum(map(entropy, codes)) / 8
    plain, coded = (len(serialize_weights(classifier.module, coded=coded)) for coded in (False, True))
    numbers = [f"{part / 2**20:.3f}" for part in (plain, least, coded)]
    above, each = f"{coded / least - 1:+.2%}", f"{8 * coded / count:.3f}"
    return "| " + " | ".join([str(bits), *numbers, above, each, f"{decoding_seconds(classifier):.2f}"]) + " |"


def decoding_seconds(classifier: Classifier) -> float:
    """The best of three; what is decoded is compared with what was coded."""
    network = classifier.module
    assert isinstance(network, Int8Network)
    coded, seconds = encode_weights(network), []
    for _ in range(3):
        start = time.perf_counter()
        decoded = decode_weights(coded, network)
        seconds.append(time.perf_counter() - start)
    assert all(torch.equal(tensor, decoded[name]) for name, tensor in network.state_dict().items())
    return min(seconds)


def entropy(codes: Tensor) -> float:
    """Bits that these codes take, where each comes by itself."""
    counts = torch.unique(codes, return_counts=True)[1].double()
    return float(-(counts * (counts / counts.sum()).log2()).sum())


if __name__ == "__main__":
    main()
