"""Latency, size and accuracy of a network."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
import scipy.stats
import torch
from conftest import small_classifier
from torch import Tensor, nn

from slimkit.core.architecture import Preprocessing
from slimkit.core.errors import DataError, ModelError, UsageError
from slimkit.core.folder import changed_code, write_folder
from slimkit.core.measure.accuracy import evaluate
from slimkit.core.measure.latency import Target, measure_latencies, round_order, split_runs, summarize
from slimkit.core.measure.processes import worker_environment
from slimkit.core.measure.size import size_breakdown, size_mb

ROOT = Path(__file__).resolve().parents[1]
needs_proc = pytest.mark.skipif(not Path("/proc").exists(), reason="finds other processes through /proc")

# code in a model folder that would win any race, were it run
STUB = "from pathlib import Path\nPath({log!r}).write_text('run')\n"


def make_folder(path: Path) -> Path:
    return write_folder(small_classifier(("ant", "bee")), path).folder or path


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def make_onnx(path: Path, sides: tuple[int | str, int | str] = (4, 4)) -> Path:
    image = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n", 3, *sides])
    output = onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, ["n", 3, *sides])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["input"], ["output"])], "relu", [image], [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has reaped yet does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


class TestLatency:
    def test_folders_and_onnx_are_timed(self, tmp_path: Path) -> None:
        targets = [Target(make_folder(tmp_path / "first")), Target(make_onnx(tmp_path / "relu.onnx"))]
        latencies = measure_latencies(targets, runs=4, batch_size=3, threads=1, warmup=1)
        assert [(latency.runs, latency.batch_size, latency.threads) for latency in latencies] == [(4, 3, 1)] * 2
        assert all(len(latency.samples) == 4 and min(latency.samples) > 0 for latency in latencies)
        assert latencies[0].median > latencies[1].median  # a network takes longer than one ReLU of 48 values

    def test_rounds_go_there_and_back(self) -> None:
        assert [list(round_order(3, index)) for index in range(3)] == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]

    def test_code_in_the_folder_is_not_run(self, tmp_path: Path) -> None:
        folder, log = make_folder(tmp_path / "model"), tmp_path / "log"
        metadata = json.loads((folder / "model_metadata.json").read_text())
        for name in ("model.py", "model_loader.py"):
            (folder / name).write_text(STUB.format(log=str(log)))
            metadata["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        (folder / "model_metadata.json").write_text(json.dumps(metadata))
        measure_latencies([Target(folder)], runs=1, threads=1, warmup=1)
        assert not log.exists()
        assert changed_code(folder) == ("model.py", "model_loader.py")

    def test_workers_inherit_no_secrets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("API_TOKEN", "secret")
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        environment = worker_environment(3)
        assert "API_TOKEN" not in environment
        assert environment["ONEDNN_MAX_CPU_ISA"] == "AVX2"
        assert environment["OMP_NUM_THREADS"] == "3"

    def test_statistics(self) -> None:
        rounds = [[1.0, 2.0], [3.0, 9.0], [5.0, 4.0]]
        samples = np.array(rounds)
        latency = summarize(rounds, batch_size=1, threads=2)
        assert latency.samples == (1, 2, 3, 9, 5, 4)
        assert latency.mean == pytest.approx(4)
        assert latency.median == pytest.approx(3.5)
        assert latency.p10 == pytest.approx(np.percentile(samples, 10))
        assert latency.p90 == pytest.approx(np.percentile(samples, 90))
        assert latency.confidence is not None
        assert 1.5 <= latency.confidence[0] < 4 < latency.confidence[1] <= 6  # the rounds' own means are 1.5, 6 and 4.5
        assert latency.median_confidence is not None
        assert 1 <= latency.median_confidence[0] < 3.5 < latency.median_confidence[1] <= 9
        assert latency.uncertainty == pytest.approx((latency.confidence[1] - latency.confidence[0]) / 2 / 4)

    def test_an_interval_counts_every_run_of_rounds_of_different_lengths(self) -> None:
        latency = summarize([[1.0, 9.0]] * 5 + [[1.0]] * 5, batch_size=1, threads=1)
        assert latency.confidence is not None
        assert latency.confidence[0] < latency.mean < latency.confidence[1]

    @pytest.mark.parametrize(("figure", "field"), [(np.mean, "confidence"), (np.median, "median_confidence")])
    def test_intervals_are_those_of_a_bootstrap_of_the_rounds(
        self, figure: Callable[..., np.ndarray], field: str
    ) -> None:
        rounds = np.random.default_rng(1).lognormal(0, 0.3, (8, 10)) * np.linspace(1, 2, 8)[:, None]
        expected = scipy.stats.bootstrap(
            tuple(rounds.T),
            lambda *columns, axis: figure(np.stack(columns), axis=(0, axis)),
            paired=True,
            method="percentile",
            rng=2,
        ).confidence_interval
        interval = getattr(summarize(rounds.tolist(), batch_size=1, threads=2), field)
        width = expected.high - expected.low
        assert interval == pytest.approx((expected.low, expected.high), abs=0.15 * width)

    def test_intervals_stay_within_what_was_measured(self) -> None:
        """One round in ten was held up by another program: Student's interval of the mean would reach below 0."""
        latency = summarize([[0.4] * 10] * 9 + [[0.4, 107.0] * 5], batch_size=1, threads=1)
        assert latency.confidence is not None
        assert latency.confidence[0] >= 0.4 - 1e-9
        assert latency.median_confidence == pytest.approx((0.4, 0.4))

    def test_intervals_hold_what_they_say(self) -> None:
        """Of 200 measurements with a known mean, few miss it: 5 % in theory, some more with ten rounds."""
        draws = np.random.default_rng(0)
        found = [summarize(draws.gamma(2.0, 2.0, (10, 10)).tolist(), batch_size=1, threads=1) for _ in range(200)]
        hits = [latency.confidence[0] <= 4 <= latency.confidence[1] for latency in found if latency.confidence]
        assert 170 <= sum(hits) <= 200

    def test_a_single_run_has_no_confidence_interval(self) -> None:
        latency = summarize([[2.0]], batch_size=1, threads=1)
        assert latency.confidence is None
        assert latency.uncertainty is None

    @pytest.mark.parametrize(("runs", "rounds"), [(100, (10,) * 10), (13, (2, 2, 2, 1, 1, 1, 1, 1, 1, 1)), (1, (1,))])
    def test_runs_are_split_into_rounds(self, runs: int, rounds: tuple[int, ...]) -> None:
        assert split_runs(runs) == rounds

    def test_error_of_the_folder_is_named(self, tmp_path: Path) -> None:
        folder = make_folder(tmp_path / "model")
        (folder / "compressed_resnet18.pth").write_bytes(b"damaged")
        with pytest.raises(ModelError, match=r"model can't be timed: ValueError: .*\.pth was changed or damaged"):
            measure_latencies([Target(folder)], runs=1)

    @needs_proc
    def test_death_without_a_word_is_named(self, tmp_path: Path) -> None:
        @contextmanager
        def murderous(description: str, total: int) -> Iterator[Callable[[int], None]]:
            def advance(units: int) -> None:
                for child in children(os.getpid()):
                    os.kill(child, signal.SIGKILL)

            yield advance

        with pytest.raises(ModelError, match="ended with code -9"):
            measure_latencies([Target(make_onnx(tmp_path / "relu.onnx"))], progress=murderous)

    def test_onnx_input_without_a_size_is_an_error(self, tmp_path: Path) -> None:
        file = make_onnx(tmp_path / "free.onnx", sides=("h", "w"))
        with pytest.raises(ModelError, match="no fixed size"):
            measure_latencies([Target(file)], runs=1)

    def test_missing_onnx_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"gone\.onnx"):
            measure_latencies([Target(tmp_path / "gone.onnx")], runs=1)

    @pytest.mark.parametrize("option", ["runs", "batch_size", "threads"])
    def test_counts_below_one_are_errors(self, option: str) -> None:
        with pytest.raises(UsageError, match="is 0"):
            measure_latencies([], **{option: 0})  # type: ignore[arg-type]  # every one of them is an int

    @needs_proc
    def test_interrupt_ends_the_workers(self, tmp_path: Path) -> None:
        workers: list[int] = []

        @contextmanager
        def interrupted(description: str, total: int) -> Iterator[Callable[[int], None]]:
            def advance(units: int) -> None:
                workers.extend(children(os.getpid()))
                raise KeyboardInterrupt

            yield advance

        with pytest.raises(KeyboardInterrupt):
            measure_latencies([Target(make_onnx(tmp_path / "relu.onnx"))], progress=interrupted)
        assert workers
        assert not any(is_alive(worker) for worker in workers)

    @needs_proc
    def test_workers_die_with_a_killed_parent(self, tmp_path: Path) -> None:
        code = (
            "from pathlib import Path\n"
            "from slimkit.core.measure.latency import Target, measure_latencies\n"
            f"measure_latencies([Target(Path({str(make_onnx(tmp_path / 'relu.onnx'))!r}))], runs=10**9)"
        )
        parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        try:
            assert wait_until(lambda: bool(children(parent.pid)))
            workers = children(parent.pid)
        finally:
            parent.send_signal(signal.SIGKILL)
            parent.wait()
        assert wait_until(lambda: not any(is_alive(worker) for worker in workers), seconds=10)


class TestSize:
    def test_mb_is_two_to_the_twentieth(self, tmp_path: Path) -> None:
        file = tmp_path / "weights.pth"
        file.write_bytes(bytes(3 * 2**19))
        assert size_mb(file) == 1.5

    def test_breakdown_adds_up_to_the_file(self, tmp_path: Path) -> None:
        state = {
            "conv1.weight": torch.zeros(8, 3, 3, 3, dtype=torch.int8),  # 216 bytes
            "conv1.bias": torch.zeros(8),  # 32
            "conv1.weight_scale": torch.zeros(8),  # 32
            "downsample.0.weight": torch.zeros(5, dtype=torch.int8),  # 5, and no scale
            "conv1.zero_point": torch.zeros((), dtype=torch.int64),  # 8
        }
        file = tmp_path / "weights.pth"
        torch.save(state, file)
        sizes = size_breakdown({name: tensor.nbytes for name, tensor in state.items()}, file)
        assert (sizes.weights, sizes.scales) == (216 + 32 + 5, 32 + 8)
        assert sizes.weights + sizes.scales + sizes.container == file.stat().st_size


class ListedImages:
    """Images in memory whose every pixel is their own number."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for indices in order.split(batch_size):
            pixels = indices.to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
            yield pixels, self.labels[indices], indices


class Table(nn.Module):
    """Answers image number i, as ListedImages gives it, with row i of a table."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return self.rows[(images[:, 0, 0, 0] * 255).round().long()]


RAW = Preprocessing(resize=4, crop=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
# in each row the classes come in the order 6, 5, 4, 3, 2, 1, 0
FALLING = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


class TestAccuracy:
    def test_top1_and_top5_in_batches_with_a_rest(self) -> None:
        labels = [6, 6, 5, 2, 1, 0, 6]  # ranks 0, 0, 1, 4, 5, 6, 0
        result = evaluate(Table([FALLING] * 7), ListedImages(labels), RAW, batch_size=3)
        assert (result.correct, result.images) == (3, 7)
        assert result.top1 == pytest.approx(100 * 3 / 7)
        assert result.top5 == pytest.approx(100 * 5 / 7)

    def test_classes_are_matched_through_the_label_map(self) -> None:
        result = evaluate(Table([FALLING] * 2), ListedImages([0, 1]), RAW, label_map=torch.tensor([6, 0]))
        assert result.correct == 1

    def test_two_classes_are_all_among_the_first_five(self) -> None:
        result = evaluate(Table([[1.0, 2.0]] * 2), ListedImages([0, 1]), RAW)
        assert (result.top1, result.top5) == (50, 100)

    def test_ties_are_broken_as_argmax_does(self) -> None:
        assert evaluate(Table([[1.0, 1.0]] * 2), ListedImages([0, 1]), RAW).correct == 1

    def test_nan_is_no_answer(self) -> None:
        result = evaluate(Table([[float("nan"), 1.0]] * 2), ListedImages([0, 1]), RAW)
        assert (result.top1, result.top5) == (0, 0)

    def test_module_keeps_its_mode_and_progress_counts_images(self) -> None:
        seen: list[int] = []

        @contextmanager
        def counting(description: str, total: int) -> Iterator[Callable[[int], None]]:
            assert total == 5
            yield seen.append

        module = Table([FALLING] * 5).train()
        evaluate(module, ListedImages([0] * 5), RAW, batch_size=2, progress=counting)
        assert module.training
        assert seen == [2, 2, 1]

    def test_no_image_is_an_error(self) -> None:
        with pytest.raises(DataError, match="no image"):
            evaluate(Table([FALLING]), ListedImages([]), RAW)

    def test_answers_that_are_no_logits_are_an_error(self) -> None:
        with pytest.raises(ModelError, match=r"shape \[2, 3, 4, 4\]"):
            evaluate(nn.Identity(), ListedImages([0, 1]), RAW)
