"""Networks as graphs: what is captured of a user's network, what is refused, and what the graph's own network does."""

import copy
import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import user_networks
from families import family
from torch import Tensor, nn

from slimkit.core.errors import ModelError
from slimkit.core.graph import Graph, capture
from slimkit.core.graph.capture import network_of
from slimkit.standalone.model import GraphNetwork

SHAPE = (3, 32, 32)


class Small(nn.Module):
    """A network of users' kinds: BatchNorm, dropout, a layer that is called twice, a head for training alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 4)
        self.auxiliary = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.norm(self.conv(x)).relu_()
        x = self.twice(self.twice(x))
        x = self.drop(x.mean((2, 3)))
        return (self.fc(x), self.auxiliary(x)) if self.training else self.fc(x)


class Function(nn.Module):
    """A function of the image."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> object:
        return self.function(x * self.scale)


def images(count: int, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def assert_same_bits(module: nn.Module, network: nn.Module, *shapes: tuple[int, int]) -> None:
    for count, size in shapes:
        with torch.no_grad():
            assert torch.equal(module(images(count, size)), network(images(count, size))), (count, size)


@pytest.mark.parametrize("kind", user_networks(), ids=lambda kind: kind.__name__)
def test_networks_as_users_write_them_give_the_same_bits(kind: type[nn.Module]) -> None:
    module = kind().eval()
    assert_same_bits(module, capture(module, SHAPE).network(), (1, 32), (2, 32), (5, 32))


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v3", "squeezenet", "densenet"])
def test_torchvision_networks_give_the_same_bits_at_other_sizes(name: str) -> None:
    module = family(name)
    graph = capture(module, (3, 64, 64))
    assert graph.free == {0, 2, 3}
    assert_same_bits(module, graph.network(), (1, 64), (3, 96))


def test_a_size_that_is_fixed_is_written_into_the_graph() -> None:
    module = Function(lambda x: x.flatten(2).sum(2) / (x.shape[2] * torch.arange(1, x.shape[3] + 1).sum()))
    graph = capture(module, SHAPE, fixed_size=True)
    assert graph.free == {0}
    assert "arange" not in {node.operation for node in graph.nodes}
    assert_same_bits(module, graph.network(), (1, 32), (5, 32))
    assert capture(module, SHAPE).free == {0, 2, 3}  # the two are not taken for each other


def test_nodes_know_the_users_names_modules_and_lines() -> None:
    graph = capture(Small(), SHAPE)
    conv = graph.by_name["conv"]
    assert conv.operation == "conv2d"
    assert conv.weight("weight") == "conv.weight"
    assert conv.weight("bias") is None
    assert conv.source.startswith("test_graph.py:")
    assert "self.conv(x)" in conv.source
    twice = [node for node in graph.nodes if node.module == "twice"]
    assert [node.weights for node in twice] == [("twice.weight", "twice.bias")] * 2
    assert [node.operation for node in graph.consumers["conv"]] == ["batch_norm"]


def test_what_inference_does_not_reach_is_dropped_and_said() -> None:
    graph = capture(Small(), SHAPE)
    assert graph.unused == ("auxiliary.weight", "auxiliary.bias")
    assert not [name for name in graph.tensors if name.startswith("auxiliary")]


def test_the_state_dict_has_the_users_names() -> None:
    module = Small()
    own = capture(module, SHAPE).network().state_dict()
    theirs = module.state_dict()
    expected = {k for k in theirs if not k.startswith("auxiliary") and not k.endswith("num_batches_tracked")}
    assert set(own) == expected
    assert all(torch.equal(own[key], theirs[key]) for key in own)


def test_the_users_network_is_never_touched() -> None:
    module = Small()
    module.train()
    before = copy.deepcopy(module.state_dict())
    network = capture(module, SHAPE).network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_training_updates_statistics_and_drops_as_the_original() -> None:
    module = Small()
    network = capture(module, SHAPE).network()
    module.train()
    network.train()
    torch.manual_seed(7)
    wanted, _ = module(images(6))
    torch.manual_seed(7)
    got = network(images(6))
    assert torch.equal(got, wanted)
    assert torch.equal(network.get_buffer("norm.running_mean"), module.norm.running_mean)
    wanted.sum().backward()
    got.sum().backward()
    assert torch.equal(network.get_parameter("conv.weight").grad, module.conv.weight.grad)


def test_each_norm_heeds_its_own_mode() -> None:
    network = capture(Small(), SHAPE).network().train()
    network.get_submodule("norm").eval()
    before = network.get_buffer("norm.running_mean").clone()
    network(images(4))
    assert torch.equal(network.get_buffer("norm.running_mean"), before)


def test_a_copy_stands_alone() -> None:
    network = capture(Small(), SHAPE).network()
    copied = copy.deepcopy(network)
    with torch.no_grad():
        copied.get_parameter("fc.bias").add_(1)
        assert torch.allclose(copied(images(2)), network(images(2)) + 1, atol=1e-6)


def test_tensors_can_be_exchanged_for_a_call() -> None:
    network = capture(Small(), SHAPE).network()
    bias = torch.full((4,), 100.0)
    with torch.no_grad():
        changed = torch.func.functional_call(network, {"fc.bias": bias}, (images(2),))
        assert float((changed - network(images(2)) - bias + network.get_parameter("fc.bias")).abs().max()) < 1e-4


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel])
def test_wrappers_are_taken_off(wrap: Callable[[nn.Module], nn.Module]) -> None:
    graph = capture(wrap(Small()), SHAPE)
    assert "conv.weight" in graph.tensors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    module = Small().to(dtype)
    graph = capture(module, SHAPE)
    assert {t.dtype for t in graph.tensors.values()} == {torch.float32}
    assert next(module.parameters()).dtype == dtype


def test_two_names_of_one_weight_are_one_tensor() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Flatten(), nn.LazyLinear(2))
    module(images(1))
    module[1].weight = module[0].weight
    graph = capture(module, SHAPE)
    assert graph.by_name["1"].weight("weight") == "0.weight"
    assert graph.by_name["1"].weight("bias") == "1.bias"


class Standardized(nn.Conv2d):
    """A weight that is computed from the parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def test_what_weights_alone_give_is_computed_once() -> None:
    module = nn.Sequential(Standardized(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    graph = capture(module, SHAPE)
    assert [node.operation for node in graph.nodes] == ["conv2d", "adaptive_avg_pool2d", "flatten"]
    wanted = module[0].weight - module[0].weight.mean((1, 2, 3), keepdim=True)
    assert torch.equal(graph.tensors["0.weight"], wanted)
    assert isinstance(graph.tensors["0.weight"], nn.Parameter)
    assert_same_bits(module, graph.network(), (2, 32))


class Gained(Standardized):
    """A weight that is computed from two parameters, as in networks without norms."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.gain = nn.Parameter(torch.rand(4, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) * self.gain, self.bias)


def test_a_weight_that_is_computed_from_several_parameters_is_the_layers() -> None:
    module = nn.Sequential(Gained(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    graph = capture(module, SHAPE)
    assert set(graph.tensors) == {"0.weight", "0.bias"}
    assert graph.unused == ()
    assert_same_bits(module, graph.network(), (2, 32))


class Computing(nn.Module):
    """A network whose tensors are computed from others in the ways that users have for it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3))
        self.gains = nn.Parameter(torch.rand(2))
        self.qkv = nn.Parameter(torch.randn(12, 6))
        self.scale = nn.Parameter(torch.rand(6))
        self.both = nn.Parameter(torch.rand(6))
        self.register_buffer("table", torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x) * self.gains[0] * self.scale.view(1, -1, 1, 1) + self.gains[1]
        x = x.mean((2, 3)) * self.both.exp() + self.both + self.table.square()
        first, second = self.qkv.chunk(2)
        return F.linear(x, first) - F.linear(x, second)


class Shared(nn.Module):
    """Values that the code makes for each image, through a weight and of constants alone, and one for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[0], 2, 1, 1)
        return (self.conv(x) * self.mix(ones) + ones.sum((1, 2, 3), keepdim=True)).mean((2, 3)) / ones.mean()


def test_what_is_alike_for_each_image_is_computed_once() -> None:
    torch.manual_seed(0)
    module = Shared().eval()
    graph = capture(module, SHAPE)
    assert "full" not in [node.operation for node in graph.nodes]
    for count in (1, 3):
        with torch.no_grad():
            torch.testing.assert_close(graph.network()(images(count)), module(images(count)))


def test_what_is_computed_keeps_apart_and_is_trained() -> None:
    module = Computing().eval()
    graph = capture(module, SHAPE)
    network = graph.network()
    assert_same_bits(module, network, (1, 32), (3, 32))
    names = [name for node in graph.nodes for name in node.weights]
    assert len(set(names)) == len(names)
    assert {name: tuple(graph.tensors[name].shape) for name in ("both", "conv.bias")} == {
        "both": (6,),
        "conv.bias": (6,),
    }
    assert "scale" not in graph.tensors  # of shape [1, 6, 1, 1] it is no tensor that the user knows by that name
    trained = {name for name, _ in network.named_parameters()}
    constant = {name for name in graph.tensors if name not in trained}
    assert len(constant) == 1  # what comes of the table
    network(images(2)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def refusal(module: nn.Module, **options: int) -> ModelError:
    with pytest.raises(ModelError) as error:
        capture(module, SHAPE, **options)
    return error.value


def test_several_outputs_are_refused_unless_one_is_chosen() -> None:
    module = Function(lambda x: {"logits": x.mean((2, 3)), "maps": x})
    assert "2 outputs, of shapes (3,), (3, 32, 32)" in str(refusal(module))
    assert "There is no output 2" in str(refusal(module, output_index=2))
    graph = capture(module, SHAPE, output_index=0)
    assert graph.nodes[-1].operation == "mean"


def test_a_batch_size_in_the_code_is_refused() -> None:
    assert "fixes the number of images" in str(refusal(Function(lambda x: x + torch.ones(len(x), 1, 1, 1))))


def test_a_network_that_looks_like_one_from_before_is_its_own() -> None:
    class Bounded(nn.Module):
        def __init__(self, function: Callable[[Tensor], Tensor], factor: float) -> None:
            super().__init__()
            self.conv, self.function, self.factor = nn.Conv2d(3, 2, 1), function, factor

        def forward(self, x: Tensor) -> Tensor:
            return self.function(self.conv(x) * self.factor).mean((2, 3))

    first, copied = Bounded(F.relu, 1.0).eval(), Bounded(F.relu, 1.0).eval()
    others = [Bounded(F.relu6, 1.0).eval(), Bounded(F.relu, 1.0001).eval()]  # hardly to be told by small answers
    graph = capture(first, SHAPE)
    assert_same_bits(copied, capture(copied, SHAPE).network(), (2, 32))
    assert graph.tensors["conv.weight"] is first.conv.weight
    for other in others:
        assert_same_bits(other, capture(other, SHAPE).network(), (2, 32))
    assert [node.operation for node in capture(others[0], SHAPE).nodes] == ["conv2d", "mul", "relu6", "mean"]


def test_the_network_of_a_graph_knows_the_users_lines() -> None:
    graph = capture(Small().eval(), SHAPE)
    network = network_of(graph)
    with torch.no_grad():
        network.tensor("conv.weight").zero_()  # it stands for what it has now
    again = capture(network, SHAPE)
    assert [node.source for node in again.nodes] == [node.source for node in graph.nodes]
    assert "test_graph.py" in again.nodes[0].source
    assert again.tensors["conv.weight"] is network.tensor("conv.weight")
    assert_same_bits(network, again.network(), (2, 32))


def test_values_that_decide_are_refused_with_the_line() -> None:
    error = refusal(Function(lambda x: x.relu() if x.sum() > 0 else x))
    assert "test_graph.py" in str(error)
    assert "if x.sum() > 0" in str(error)


def test_an_unknown_operation_is_refused_with_the_line() -> None:
    error = refusal(Function(lambda x: torch.linalg.svdvals(x.mean((2, 3)))))
    assert "svd" in str(error)
    assert "test_graph.py" in str(error)


OTHER_WORDS = {  # operations without a normal form of their own
    "glu": lambda x: F.glu(x.repeat(1, 2, 1, 1), dim=1),
    "channel_shuffle": lambda x: F.channel_shuffle(x.repeat(1, 2, 1, 1), 3),
    "linspace": lambda x: x * torch.linspace(-1, 1, x.shape[3]),
    "threshold": lambda x: F.threshold(x, 0.1, 20.0),
    "rrelu": lambda x: F.rrelu(x, 0.1, 0.3),
    "einsum": lambda x: torch.einsum("nchw,ndhw->ncd", x, x),
    "cdist": lambda x: torch.cdist(x.mean(3), x.amax(3)),
    "where": lambda x: torch.where(x > 0, x, 0.5),
    "vdot": lambda x: x * torch.vdot(torch.ones(3), torch.ones(3)),
}


@pytest.mark.parametrize("word", OTHER_WORDS)
def test_other_words_are_read_as_known_operations(word: str) -> None:
    module = Function(OTHER_WORDS[word])
    network = capture(module, SHAPE).network()
    with torch.no_grad():
        torch.testing.assert_close(network(images(3)), module(images(3)))


def test_a_word_that_an_operation_takes_may_be_the_name_of_a_node() -> None:
    module = Function(lambda x: F.gelu(torch.tanh(x), approximate="tanh"))
    assert_same_bits(module, capture(module, SHAPE).network(), (2, 32))


def test_arithmetic_beyond_symbols_fixes_the_size() -> None:
    strided = nn.Conv2d(3, 4, 3, 2, 1)
    module = Function(lambda x: F.avg_pool2d(strided(x), strided(x).size(3)).flatten(1))
    graph = capture(module, SHAPE)
    assert graph.free == {0}
    assert_same_bits(module, graph.network(), (1, 32), (5, 32))


@dataclasses.dataclass
class Answer:
    maps: Tensor
    inner: object


@dataclasses.dataclass
class Logits:
    logits: Tensor


def test_the_users_dataclasses_are_seen_into() -> None:
    module = Function(lambda x: Answer(x, Logits(x.mean((2, 3)))))
    assert "2 outputs, of shapes (3, 32, 32), (3,)" in str(refusal(module))
    assert capture(module, SHAPE, output_index=1).nodes[-1].operation == "mean"


def test_what_may_hide_tensors_is_refused_by_its_name() -> None:
    class Opaque: ...

    assert "an object of class Opaque" in str(refusal(Function(lambda x: Opaque())))


def test_autocast_is_refused_with_the_line() -> None:
    def half(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (x.flatten(2) @ x.flatten(2).mT).mean(2)

    assert "autocast" in str(refusal(Function(half)))


class Drifting(nn.Module):
    """A network whose answers depend on how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = itertools.count(1)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self.weight * next(self.asked)


def test_a_network_that_answers_otherwise_than_its_graph_is_refused() -> None:
    assert "answers otherwise" in str(refusal(Drifting()))


def test_modules_may_have_any_name() -> None:
    module = nn.Module()
    module.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)])
    module._steps = nn.Linear(4, 2)
    module.input = nn.ReLU()
    kind = type("Named", (type(module),), {})

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.input(layer(x))
        return self._steps(x.mean((2, 3)))

    kind.forward = forward
    module.__class__ = kind
    assert_same_bits(module.eval(), capture(module, SHAPE).network(), (1, 32), (3, 40))


def test_a_wrong_image_is_refused() -> None:
    with pytest.raises(ModelError, match=r"not run on images of shape \(4, 32, 32\) at test_graph\.py"):
        capture(Small(), (4, 32, 32))


def test_torchscript_is_refused() -> None:
    assert "TorchScript" in str(refusal(torch.jit.trace(Small().eval(), images(1))))


def entries(graph: Graph) -> list[dict[str, object]]:
    return [node.to_json() for node in graph.nodes]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operation": "eval"}, "no operation called 'eval'"),
        ({"operation": "__class__"}, "no operation called"),
        ({"arguments": {"nonsense": 1}}, "takes no nonsense"),
        ({"inputs": ["later"]}, "no earlier layer"),
        ({"name": "input"}, "no name of its own"),
    ],
)
def test_an_entry_that_is_none_is_refused_by_its_name(change: dict[str, object], message: str) -> None:
    graph = capture(Small(), SHAPE)
    layers = entries(graph)
    layers[3] = layers[3] | change
    with pytest.raises(ValueError, match=message):
        GraphNetwork(layers, graph.tensors)


class Modes(nn.Module):
    """With parts below modes that change nothing where nothing is trained and all is float32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        with torch.autocast("cpu", enabled=False):
            y = x.float() * 2 + 1
        with torch.no_grad():
            scale = y.mean((2, 3), keepdim=True)
        return self.head((y * scale).mean((2, 3)))


def test_modes_that_change_nothing_are_put_in_line() -> None:
    torch.manual_seed(0)
    module = Modes().eval()
    images = torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(capture(module, (3, 12, 12)).network()(images), module(images))
