"""Runs a stranger's model behind the walls; `host.py` starts it and speaks to it over two pipes.

    child.py <kind> <weights> <scratch folder> <memory in bytes> <threads> <fd to read> <fd to write> [<packages> …]

It first says which walls hold, and waits for a byte; then that the model is loaded; then it answers images by logits.
A message is a letter, its length, and its bytes: J for JSON, X for images and Y for logits, each a shape of uint32 and
float32 values. Nothing that this process says is believed but the logits.
"""

import contextlib
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

from slimkit.core.strangers.walls import raise_walls

Answer = Any  # float32 images [n, c, h, w] -> logits [n, classes], both tensors


def main() -> None:
    """Raise the walls, load the model that the arguments name, and answer until there is no more to read."""
    kind, weights, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    memory, threads, source, target = (int(argument) for argument in sys.argv[4:8])
    packages = sys.argv[8:]
    walls = raise_walls([weights.parent, *map(Path, packages)], scratch, memory)
    say(target, {"walls": walls})
    if not _read(source, 1):  # it may go on, or is ended where the walls do not suffice
        os._exit(0)
    os.chdir(scratch)
    sys.path[:0] = packages  # not before: Python itself would have run some of them when it started
    answer = load(kind, weights, threads)
    say(target, {"loaded": True})
    while (request := read_images(source)) is not None:
        values = answer(request).detach().float().contiguous().cpu().numpy()
        shape = struct.pack(f"<I{values.ndim}I", values.ndim, *values.shape)
        send(target, b"Y", shape + values.tobytes())
    os._exit(0)  # whatever the stranger's objects would do at the end


def load(kind: str, weights: Path, threads: int) -> Answer:
    """What answers images by logits."""
    if kind == "onnx":
        return load_onnx(weights, threads)
    if kind not in LOADERS:
        return load_own(kind, weights, threads)
    import torch

    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):
        torch.set_num_interop_threads(1)
    if kind == "pickle" or names_torchvision(weights.parent):
        from slimkit.core.compat import import_torchvision

        with contextlib.suppress(Exception):
            import_torchvision()  # whatever build of torch it is beside, theirs can import it then
    module = LOADERS[kind](weights)
    module.eval()
    first = next((p for p in module.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if first is None else first.dtype

    def answer(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = module(images.to(dtype))
            return logits

    return answer


def load_own(backend: str, weights: Path, threads: int) -> Answer:
    """What slimkit wrote, in one of its backends."""
    import numpy
    import torch

    from slimkit.core.measure.runtimes import BACKENDS

    runtime = BACKENDS[backend]
    runtime.import_modules()
    network = runtime.load(weights if weights.suffix == ".onnx" else weights.parent, threads)
    return lambda images: torch.from_numpy(numpy.asarray(network.bind(images.numpy())()))


def names_torchvision(folder: Path) -> bool:
    """Whether code in the folder speaks of torchvision, which takes seconds to import."""
    return any(b"torchvision" in file.read_bytes() for file in folder.rglob("*.py"))


def load_by_code(weights: Path) -> Any:
    """What the folder's own load_model gives, which may take the file or the folder, and a device."""
    import importlib
    import inspect

    sys.path.insert(0, str(weights.parent))
    load_model = importlib.import_module("model_loader").load_model
    needed = [p for p in inspect.signature(load_model).parameters.values() if p.default is p.empty]
    more = ["cpu"] if len([p for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]) > 1 else []
    try:
        return load_model(str(weights), *more)
    except (OSError, ValueError, KeyError):
        return load_model(str(weights.parent), *more)


def load_torchscript(weights: Path) -> Any:
    """A TorchScript archive."""
    import torch

    return torch.jit.load(str(weights), map_location="cpu")  # type: ignore[no-untyped-call]  # untyped in torch


def load_pickle(weights: Path) -> Any:
    """A whole pickled module, whose classes may stand in the folder."""
    import torch

    sys.path.insert(0, str(weights.parent))
    return torch.load(weights, map_location="cpu", weights_only=False)


def load_state_dict(weights: Path) -> Any:
    """torchvision's resnet18, filled with plain weights."""
    import torch

    from slimkit.core.compat import import_torchvision

    state = torch.load(weights, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    network = import_torchvision().models.resnet18(num_classes=len(state["fc.weight"]))
    network.load_state_dict(state)
    return network


LOADERS = {
    "loader": load_by_code,
    "torchscript": load_torchscript,
    "pickle": load_pickle,
    "state dict": load_state_dict,
}


def load_onnx(file: Path, threads: int) -> Answer:
    """An ONNX file in ONNX Runtime."""
    import numpy
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    dtype = numpy.float16 if "float16" in entry.type else numpy.float32
    batch = entry.shape[0] if isinstance(entry.shape[0], int) else None

    def answer(images: torch.Tensor) -> torch.Tensor:
        whole = images.numpy().astype(dtype)
        parts = [whole] if batch in (None, len(whole)) else [whole[i : i + 1] for i in range(len(whole))]
        return torch.from_numpy(numpy.concatenate([session.run(None, {entry.name: part})[0] for part in parts]))

    return answer


def read_images(source: int) -> Any:
    """The next images, float32 [n, c, h, w]; None where there are no more."""
    import torch

    head = _read(source, 5)
    if not head:
        return None
    content = _read(source, struct.unpack("<I", head[1:])[0])
    shape = struct.unpack("<4I", content[:16])
    return torch.frombuffer(content, dtype=torch.float32, offset=16).view(shape)


def _read(source: int, count: int) -> bytearray:
    """So many bytes; none at the end."""
    content = bytearray(count)
    view, done = memoryview(content), 0
    while done < count:
        got = os.readv(source, [view[done:]])
        if got == 0:
            return bytearray()
        done += got
    return content


def say(target: int, content: dict[str, Any]) -> None:
    """Send JSON."""
    send(target, b"J", json.dumps(content).encode())


def send(target: int, kind: bytes, content: bytes) -> None:
    """Send one message."""
    message = memoryview(kind + struct.pack("<I", len(content)) + content)
    while message:
        message = message[os.write(target, message) :]


if __name__ == "__main__":
    main()
