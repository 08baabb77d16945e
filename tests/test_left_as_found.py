"""What a library call leaves as it was: torch's threads and engine, the random states of torch, numpy and Python."""

import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import short_classifier

from slimkit.core import (
    BenchmarkOptions,
    DistillOptions,
    PruneOptions,
    QuantizeOptions,
    ScoreOptions,
    TrainOptions,
    inspect_folder,
    prune_module,
    read_folder,
    run_benchmark,
    run_distill,
    run_prune,
    run_quantize,
    run_score,
    run_train,
    write_folder,
)
from slimkit.core.export import run_export
from slimkit.core.options import ExportOptions
from slimkit.standalone.model_loader import load_model


def state() -> tuple[Any, ...]:
    """Whatever a caller may have set."""
    return (
        torch.get_num_threads(),
        torch.backends.quantized.engine,
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_rng_state().numpy().tobytes(),
        pickle.dumps(np.random.get_state()),
        random.getstate(),
    )


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(write_folder(short_classifier(), tmp_path / "base").folder)


CALLS: dict[str, Callable[..., object]] = {
    "train": lambda base, rest: run_train(TrainOptions(model=base, epochs=1, batch_size=8, **rest)),
    "train by name": lambda base, rest: run_train(TrainOptions(model="slimresnet18", width=4, epochs=0, **rest)),
    "prune": lambda base, rest: run_prune(PruneOptions(model=base, finetune_epochs=1, round_to="none", **rest)),
    "distill": lambda base, rest: run_distill(DistillOptions(model=base, teacher=base, epochs=1, batch_size=8, **rest)),
    "quantize": lambda base, rest: run_quantize(QuantizeOptions(model=base, **rest)),
    "quantize to four bits": lambda base, rest: run_quantize(
        QuantizeOptions(model=base, weight_bits=4, qat_epochs=1, min_agreement=0, **rest)
    ),
    "export": lambda base, rest: run_export(ExportOptions(model=base, **rest)),
    "score": lambda base, rest: run_score(ScoreOptions(model=base, runs=2, **rest)),
    "benchmark": lambda base, rest: run_benchmark(
        BenchmarkOptions(model=base, backend=("torch",), restarts=0, min_seconds=0.02, **rest)
    ),
    "read": lambda base, rest: read_folder(Path(base)),
    "load": lambda base, rest: load_model(base),
    "inspect": lambda base, rest: inspect_folder(Path(base)),
    "prune a module": lambda base, rest: prune_module(short_network(), (3, 32, 32), rate=0.3),
}


def short_network() -> torch.nn.Module:
    """The same network; building it draws nothing."""
    with torch.random.fork_rng():
        return short_classifier().module


@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_everything_as_it_was(name: str, base: str, image_folder: Path, tmp_path: Path) -> None:
    rest = {"data": str(image_folder), "output": tmp_path / "out", "threads": 1, "seed": 5}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = state()
        CALLS[name](base, rest)
        assert state() == before
    finally:
        torch.set_num_threads(threads)


def test_a_call_that_fails_does_so_too(base: str, image_folder: Path, tmp_path: Path) -> None:
    options = TrainOptions(model=base, data=str(image_folder), output=tmp_path / "out", threads=1, batch_size=8)
    before = state()
    with pytest.raises(Exception, match="diverged"):
        run_train(replace(options, optimizer="sgd", lr=1e30))
    assert state() == before


def test_the_random_state_of_the_caller_makes_no_difference(image_folder: Path, tmp_path: Path) -> None:
    """The weights that a training starts from and the dropout in it hang on --seed alone."""
    found = []
    for index, seed in enumerate((0, 0, 1)):
        torch.manual_seed(index)
        options = TrainOptions(
            model="squeezenet1_1",
            data=str(image_folder),
            image_size=32,
            epochs=1,
            batch_size=8,
            seed=seed,
            output=tmp_path / str(index),
        )
        run_train(options)
        found.append(read_folder(options.output).module.state_dict())
    same = [all(torch.equal(found[0][key], other[key]) for key in other) for other in found[1:]]
    assert same == [True, False]
