"""Coded weights: the same numbers in as few bytes as their entropy, and nothing but them."""

import json
import math
import os
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import short_classifier, small_classifier
from torch import Tensor

from slimkit.core.coding.classifier import with_coded_weights
from slimkit.core.coding.encoder import encode_weights
from slimkit.core.errors import FolderError
from slimkit.core.folder import (
    ARCHITECTURE,
    METADATA,
    Classifier,
    read_folder,
    serialize_weights,
    sha256_of,
    write_folder,
)
from slimkit.core.inspection import inspect_folder
from slimkit.core.options import WEIGHT_BITS, QuantizeOptions
from slimkit.core.quantization.convert import quantize
from slimkit.core.quantization.weights.rounded import read_rounded
from slimkit.core.stages import run_quantize
from slimkit.standalone.model import Int8Network, decode_weights, pack

WEIGHTS = "compressed_resnet18.pth"
HEADER = struct.Struct("<4s5I")  # mark, checksum, checksum of the matrices, lanes, words, bytes of tables


def int8_classifier(bits: int = 8, scheme: Any = "static", **shape: Any) -> Classifier:
    """One whose inner layers have weights of so many bits."""
    torch.manual_seed(0)
    source = small_classifier(**shape)
    inner = [layer.name for layer in source.architecture.layers if layer.type == "Conv2d"][1:]
    images = [torch.randn(4, 3, 32, 32)]
    return quantize(source, scheme=scheme, calibration=images, weight_bits=dict.fromkeys(inner, bits)).classifier


def int8_network(*shapes: tuple[int, ...], bits: int = 8) -> Int8Network:
    """Convolutions and linear layers with weights of these shapes, one after the other."""
    layers: list[dict[str, Any]] = [
        {"name": "in", "type": "Quantize", "inputs": ["input"], "quantization": {"output": "uint8 per tensor"}}
    ]
    for i, (outputs, inputs, *kernel) in enumerate(shapes):
        how = {"scheme": "static", "weight_bits": bits, "output": "float32"}
        entry = {
            "name": f"layer{i}",
            "inputs": ["in"],
            "in_channels": inputs,
            "out_channels": outputs,
            "quantization": how,
        }
        pairs = {"kernel_size": kernel, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
        layers.append(entry | ({"type": "QuantizedConv2d"} | pairs if kernel else {"type": "QuantizedLinear"}))
    return Int8Network(layers)


def assert_equal_states(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


def laplacian(*shape: int, spread: float = 12.0) -> Tensor:
    """int8 codes around 0."""
    uniform = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) - 0.5
    return (-spread * uniform.sign() * (1 - 2 * uniform.abs()).clamp(min=1e-9).log()).round().clamp(-127, 127).char()


def mutate(blob: bytes, chance: random.Random) -> bytes:
    """Damage, or a lie, at random."""
    content, place = bytearray(blob), chance.randrange(len(blob))
    kind = chance.randrange(6)
    if kind == 0:
        content[place] ^= 1 << chance.randrange(8)
    elif kind == 1:
        content[place] = chance.randrange(256)
    elif kind == 2:
        del content[place : place + chance.randrange(1, 40)]
    elif kind == 3:
        content[place:place] = chance.randbytes(chance.randrange(1, 40))
    elif kind == 4:
        content = content[:place]
    else:
        struct.pack_into(
            "<I", content, 12 + 4 * chance.randrange(3), chance.choice([0, 1, 2, 3, 255, 2**16, 2**32 - 1])
        )
    return bytes(content)


def test_coded_folders_answer_as_the_plain_ones_without_slimkit(tmp_path: Path) -> None:
    images = torch.randn(3, 3, 32, 32)
    expected = {}
    for bits, scheme in ((8, "static"), (4, "static"), (3, "dynamic")):
        plain, coded = int8_classifier(bits, scheme), tmp_path / f"coded {bits}"
        write_folder(with_coded_weights(plain), coded)
        write_folder(plain, tmp_path / f"plain {bits}")
        expected[str(coded)] = read_folder(tmp_path / f"plain {bits}").module(images)
        assert_equal_states(read_folder(coded).module.state_dict(), plain.module.state_dict())
        (tensor,) = torch.load(coded / WEIGHTS, weights_only=True).values()
        assert tensor.dtype == torch.uint8
    torch.save((images, expected), tmp_path / "expected.pt")
    code = (
        "import sys, torch\n"
        f"sys.path.insert(0, {str(coded)!r})\n"
        "from model_loader import load_model\n"
        f"images, expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        "for folder, logits in expected.items():\n"
        "    assert torch.equal(load_model(folder)(images), logits), folder\n"
        "assert not any(name.startswith('slimkit') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd="/", check=True)


@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_weights_of_all_widths_come_back(bits: int) -> None:
    network = int8_network((5, 3, 3, 3), (7, 5), bits=bits)
    state, largest = network.state_dict(), 2 ** (bits - 1) - 1
    for name, shape in (("layer0.weight", (5, 3, 3, 3)), ("layer1.weight", (7, 5))):
        codes = torch.randint(-largest, largest + 1, shape, generator=torch.Generator().manual_seed(0)).char()
        state[name].copy_(pack(codes) if bits == 4 else codes)
    network.load_state_dict(state)
    assert_equal_states(decode_weights(encode_weights(network), network), state)


def test_numbers_of_any_kind_come_back() -> None:
    """Bytes of all 256 values, alike ones, extremes of float32, kernels with many taps, layers of one weight."""
    network = int8_network((16, 8, 3, 3), (8, 4), (2, 2, 9, 9), (1, 1), (3, 1, 1, 5), (4, 4, 1, 1))
    state = network.state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if tensor.dtype == torch.int8:
            tensor.copy_(torch.randint(-128, 128, tensor.shape, generator=generator))
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        if name == "layer1.weight":
            tensor.fill_(-128)
    state["layer0.bias"][:4] = torch.tensor([math.inf, -0.0, 1e-45, 3.4e38])
    network.load_state_dict(state)
    assert_equal_states(decode_weights(encode_weights(network), network), state)


def test_coded_weights_take_no_more_than_their_entropy_allows() -> None:
    network = int8_network((256, 128, 3, 3), (512, 512), (64, 64, 3, 3))
    state = network.state_dict()
    least = 0.0
    for name, spread in (("layer0", 12.0), ("layer1", 3.0), ("layer2", 0.7)):
        state[f"{name}.weight"].copy_(codes := laplacian(*state[f"{name}.weight"].shape, spread=spread))
        shares = codes.unique(return_counts=True)[1].double() / codes.numel()
        least -= float((shares * shares.log2()).sum()) * codes.numel() / 8
    network.load_state_dict(state)
    assert least < len(serialize_weights(network, coded=True)) < 1.02 * least


def reference_decode(blob: bytes, columns: list[int]) -> list[bytes]:
    """One lane after the other, one byte at a time, in Python's integers; columns: how many bytes each has."""
    *_, lanes, count, size = HEADER.unpack_from(blob)
    tables, rest = zlib.decompress(blob[24 : 24 + size]), blob[24 + size :]
    states = list(struct.unpack_from(f"<{lanes}I", rest))
    words = iter(struct.unpack_from(f"<{count}H", rest, 4 * lanes))
    levels, found = [1] * 256, []
    for rows in columns:
        kind, tables = tables[0], tables[1:]
        if kind == 0:
            levels = [1] * 256
        elif kind == 2:
            low, high = tables[:2]
            levels = [0] * low + list(tables[2 : 3 + high - low]) + [0] * (255 - high)
            tables = tables[3 + high - low :]
        weights = [math.isqrt(math.isqrt(math.isqrt(2 ** (level + 63)))) if level else 0 for level in levels]
        present, ends, sums = 0, [0], 0
        for weight in weights:
            present, sums = present + (weight > 0), sums + weight
            ends.append(sums * (2**14 - sum(level > 0 for level in levels)) // sum(weights) + present)
        column = []
        for row in range(rows):
            lane = row % lanes
            slot = states[lane] % 2**14
            symbol = next(byte for byte in range(256) if ends[byte] <= slot < ends[byte + 1])
            column.append(symbol)
            states[lane] = (ends[symbol + 1] - ends[symbol]) * (states[lane] >> 14) + slot - ends[symbol]
            if states[lane] < 2**16:
                states[lane] = states[lane] << 16 | next(words)
        found.append(bytes(column))
    assert not tables
    assert set(states) == {2**16}
    assert next(words, None) is None
    return found


def test_the_string_is_what_its_description_says() -> None:
    network = int8_network((8, 5, 3, 3), (7, 9))
    state = network.state_dict()
    state["layer0.weight"].copy_(laplacian(8, 5, 3, 3))
    state["layer1.weight"].copy_(laplacian(7, 9, spread=2))
    network.load_state_dict(state)
    blob = bytes(encode_weights(network).tolist())
    columns = reference_decode(blob, [40] * 9 + [63] + [1] * 4 + [1] + [15] * 4 + [15] * 4)
    taps = torch.tensor([list(column) for column in columns[:9]])
    assert torch.equal(taps.T.reshape(8, 5, 3, 3) - 128, state["layer0.weight"].long())
    assert torch.equal(torch.tensor(list(columns[9])).view(7, 9) - 128, state["layer1.weight"].long())


@pytest.fixture(scope="module")
def small() -> Int8Network:
    network = int8_network((4, 2, 3, 3), (3, 4))
    state = network.state_dict()
    state["layer0.weight"].copy_(laplacian(4, 2, 3, 3))
    state["layer1.bias"].copy_(torch.randn(3, generator=torch.Generator().manual_seed(0)))
    network.load_state_dict(state)
    return network


def as_tensor(blob: bytes) -> Tensor:
    return torch.frombuffer(bytearray(blob), dtype=torch.uint8) if blob else torch.empty(0, dtype=torch.uint8)


def signed(blob: bytes) -> bytes:
    """With the checksum that a liar would compute."""
    return blob[:4] + struct.pack("<I", zlib.crc32(blob[8:])) + blob[8:]


def test_no_mutation_is_taken_for_weights(small: Int8Network) -> None:
    """Thousands of bit flips, cuts, insertions and lies in the header, half of them with a checksum that fits.

    SLIMKIT_MUTATIONS=10000 in the environment tries so many.
    """
    blob, wanted = bytes(encode_weights(small).tolist()), small.state_dict()
    for seed in range(int(os.environ.get("SLIMKIT_MUTATIONS", "2000"))):
        mutated = mutate(blob, random.Random(seed))
        if seed % 2:
            mutated = signed(mutated)
        if mutated == blob:
            continue
        try:
            got = decode_weights(as_tensor(mutated), small)
        except ValueError:
            continue
        assert_equal_states(got, wanted)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"mark": b"rans"}, "header"),
        ({"lanes": 2**32 - 1}, "header"),
        ({"words": 0}, "header"),
        ({"tables": 2**31}, "header"),
        ({"matrices": 0}, "not those that were coded"),
    ],
)
def test_lies_in_the_header_are_named(small: Int8Network, header: dict[str, Any], message: str) -> None:
    blob = bytes(encode_weights(small).tolist())
    fields = dict(
        zip(("mark", "checksum", "matrices", "lanes", "words", "tables"), HEADER.unpack_from(blob), strict=True)
    )
    with pytest.raises(ValueError, match=message):
        decode_weights(as_tensor(signed(HEADER.pack(*(fields | header).values()) + blob[24:])), small)


def parts_of(blob: bytes) -> tuple[bytes, bytes]:
    """The tables, unpacked, and what follows them."""
    size = HEADER.unpack_from(blob)[-1]
    return zlib.decompress(blob[24 : 24 + size]), blob[24 + size :]


@pytest.mark.parametrize("tables", [b"", b"\0" * 2**24, b"\1\3", b"\2\5\4", b"\2\0\1\0\0", b"\2\0\0\xff"], ids=len)
def test_tables_that_can_not_be_are_refused(small: Int8Network, tables: bytes) -> None:
    blob = bytes(encode_weights(small).tolist())
    packed = zlib.compress(tables)
    header = HEADER.pack(*HEADER.unpack_from(blob)[:-1], len(packed))
    with pytest.raises(ValueError, match="table"):
        decode_weights(as_tensor(signed(header + packed + parts_of(blob)[1])), small)


def test_too_few_lanes_are_refused_before_they_take_long(small: Int8Network) -> None:
    network = int8_network((4096, 4096))
    blob = bytes(encode_weights(small).tolist())
    with pytest.raises(ValueError, match="too few lanes"):
        decode_weights(as_tensor(blob), network)


def test_the_weights_of_another_network_are_refused(small: Int8Network) -> None:
    for shapes in ([(4, 2, 3, 3)], [(4, 2, 3, 3), (3, 5)], [(3, 4), (4, 2, 3, 3)]):
        with pytest.raises(ValueError, match="coded weights"):
            decode_weights(encode_weights(small), int8_network(*shapes))


def test_weights_that_are_all_alike_make_a_file_that_is_read(tmp_path: Path) -> None:
    """A file may not stand for any number of bytes: one that would is made longer."""
    network = int8_network((4096, 8192))
    blob = encode_weights(network)
    assert 64 * len(blob) >= 4096 * 8192
    assert_equal_states(decode_weights(blob, network), network.state_dict())


def test_a_damaged_file_and_one_of_the_other_kind_are_named(tmp_path: Path) -> None:
    made = with_coded_weights(int8_classifier(width=4))
    folder = write_folder(made, tmp_path / "model").folder or tmp_path
    blob = bytearray(encode_weights(made.module).tolist())  # type: ignore[arg-type]  # it is an Int8Network
    blob[-1] ^= 1
    for content, message in (
        ({"coded_weights": as_tensor(bytes(blob))}, "checksum"),
        (made.module.state_dict(), "no coded weights"),
        ({"coded_weights": torch.zeros(3)}, "bytes"),
    ):
        torch.save(content, folder / WEIGHTS)
        sign(folder)
        with pytest.raises(FolderError, match=message) as error:
            read_folder(folder)
        assert WEIGHTS in str(error.value)
    torch.save({"coded_weights": encode_weights(made.module)}, folder / WEIGHTS)  # type: ignore[arg-type]  # likewise
    architecture = json.loads((folder / ARCHITECTURE).read_text())
    (folder / ARCHITECTURE).write_text(json.dumps(architecture | {"format_version": 1}))
    sign(folder)
    with pytest.raises(FolderError, match="disagree"):
        read_folder(folder)


def sign(folder: Path) -> None:
    """Hash all files anew, as one who edits a folder on purpose would."""
    metadata = json.loads((folder / METADATA).read_text())
    metadata["sha256"] = {name: sha256_of(folder / name) for name in metadata["sha256"]}
    (folder / METADATA).write_text(json.dumps(metadata))


def test_inspect_lists_the_coded_bytes_of_each_layer(tmp_path: Path) -> None:
    plain = int8_classifier(4)
    coded = with_coded_weights(plain)
    write_folder(coded, tmp_path / "model")
    layers = inspect_folder(tmp_path / "model").architecture.layers
    size = (tmp_path / "model" / WEIGHTS).stat().st_size
    assert 0.8 * size < sum(layer.bytes for layer in layers) < size
    assert sum(layer.bytes for layer in layers) < sum(layer.bytes for layer in plain.architecture.layers)
    assert all(layer.bytes for layer in layers if layer.macs)


@pytest.mark.parametrize("bits", [2, 3, 6])
def test_quantize_codes_weights_of_any_width(bits: int, image_folder: Path, tmp_path: Path) -> None:
    model = write_folder(short_classifier(), tmp_path / "float").folder
    common: dict[str, Any] = {"model": str(model), "data": str(image_folder), "weight_bits": bits, "min_agreement": 0.0}
    coded = run_quantize(QuantizeOptions(output=tmp_path / "coded", **common))
    plain = run_quantize(QuantizeOptions(output=tmp_path / "plain", compress_weights=False, **common))
    made, other = read_folder(tmp_path / "coded"), read_folder(tmp_path / "plain")
    assert_equal_states(made.module.state_dict(), other.module.state_dict())
    largest = {name: int(layer.codes.abs().max()) for name, layer in read_rounded(made).items()}
    assert largest.pop("stem") > 31
    assert largest.pop("fc") > 31
    assert max(largest.values()) == 2 ** (bits - 1) - 1
    for name, result in (("coded", coded), ("plain", plain)):
        size = (tmp_path / name / "compressed_shortresnet.pth").stat().st_size
        assert size == sum(result.figures[f"{part}_bytes"] for part in ("weights", "scales", "container"))
    assert coded.figures["weights_bytes"] < plain.figures["weights_bytes"] * (bits + 2) / 8
