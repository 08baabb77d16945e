"""Prune a network of your own, fine-tune it in a loop of your own, and ship it as int8: as a folder and as ONNX."""

from pathlib import Path

import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimkit.core import (
    as_classifier,
    augment,
    epoch_order,
    evaluate,
    evaluation_input,
    export_onnx,
    open_dataset,
    prune_module,
    quantize,
    write_folder,
)

SIZE = 64


class Net(nn.Module):
    """A small residual network; slimkit finds by itself which of its channels go together."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.BatchNorm2d(32), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.classifier = nn.Linear(64 * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, 3, 64, 64] -> logits [n, classes]."""
        x = self.stem(x)
        x = self.head(x + self.body(x))
        return self.classifier(F.adaptive_avg_pool2d(x, 4).flatten(1))


def train(net: nn.Module, epochs: int) -> None:
    """An ordinary loop: nothing in it is slimkit's but the images."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    net.train()
    for epoch in range(epochs):
        order = epoch_order(len(data.train), seed=0, epoch=epoch)
        for pixels, labels, indices in data.train.batches(order, 64):
            inputs = augment(pixels, indices, data.preprocessing, epoch=epoch, seed=0, flip=data.flip)
            loss = F.cross_entropy(net(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()


if __name__ == "__main__":
    torch.manual_seed(0)
    data = open_dataset("digits100")
    net = Net(len(data.class_names))
    train(net, epochs=3)
    before = evaluate(net, data.holdout, data.preprocessing).top1
    result = prune_module(net, input_shape=(3, SIZE, SIZE), rate=0.3)
    at_once = evaluate(result.module, data.holdout, data.preprocessing).top1
    train(result.module, epochs=1)
    after = evaluate(result.module, data.holdout, data.preprocessing).top1
    print(
        f"parameters {sum(p.numel() for p in net.parameters())} -> {sum(p.numel() for p in result.module.parameters())}"
    )
    print(f"held-out accuracy: {before:.1f} % whole, {at_once:.1f} % cut, {after:.1f} % after one epoch more")

    order = torch.arange(len(data.train))[:512]  # calibration images
    batches = [evaluation_input(pixels, data.preprocessing) for pixels, *_ in data.train.batches(order, 64)]
    small = as_classifier(result.module, data.class_names, data.preprocessing, model="Net")
    # weights of 7 bits: the same answers on every CPU, in ONNX Runtime too
    int8 = quantize(small, scheme="static", calibration=batches, reduce_range=True).classifier
    write_folder(int8, Path("int8"))  # load_model("int8") of the folder's model_loader.py wants torch alone
    print(f"held-out accuracy in int8: {evaluate(int8.module, data.holdout, data.preprocessing).top1:.1f} %")

    export_onnx(int8, Path("int8.onnx"), data)
    session = onnxruntime.InferenceSession("int8.onnx")
    images = batches[0]
    (logits,) = session.run(["logits"], {"input": images.numpy()})
    same = (torch.from_numpy(logits).argmax(1) == int8.module(images).argmax(1)).sum()
    print(f"ONNX Runtime answers {same} of {len(images)} images as the model does")
