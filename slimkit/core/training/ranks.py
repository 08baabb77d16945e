"""The processes that share one training: torchrun starts them, torch.distributed lets them speak with one another.

All hold the same weights. Each learns from its part of every batch, and the sum of their gradients is that of the whole
batch; so all take the same step. The first process alone reads checkpoints, writes files and speaks to the user.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slimkit.core.device import resolve_device
from slimkit.core.errors import RankError, UsageError, first_line
from slimkit.core.options import Device
from slimkit.core.torchrun import Launch, launch

log = logging.getLogger("slimkit")

T = TypeVar("T")
PATIENCE = timedelta(hours=12)  # with a process that works alone, as the first does when it writes the result
BACKENDS = "cpu:gloo,cuda:nccl"  # gradients go by that of their device; what is agreed upon is small, and goes by gloo


@dataclass(frozen=True)
class Ranks:
    """The processes of a training, as one of them sees them. Every method but `share` is called by all, or hangs.

    Each raises RankError where another process has ended.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def share(self, items: Tensor) -> Tensor:
        """This process's part of `items` [n]: every `count`-th of them. It may be empty."""
        return items[self.rank :: self.count]

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, which alone calls it."""
        if self.count == 1:
            return make()
        made = [make() if self.is_first else None]
        with _together():
            dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
        value: T = made[0]  # type: ignore[assignment]  # torch's lists are of anything
        return value

    def total(self, number: float) -> float:
        """The sum of the numbers that the processes give."""
        return self._reduced(number, dist.ReduceOp.SUM)

    def highest(self, number: int) -> int:
        """The highest of the numbers that the processes give."""
        return int(self._reduced(number, dist.ReduceOp.MAX))

    def meet(self) -> None:
        """Wait until all processes are here."""
        self.total(0)

    def level(self, module: nn.Module) -> None:
        """Give `module` the weights and buffers that it has in the first process."""
        if self.count > 1:
            module.load_state_dict(self.from_first(module.state_dict))

    def add(self, tensor: Tensor) -> None:
        """Replace `tensor` by the sum of those of all processes, in place."""
        if self.count > 1:
            with _together():
                dist.all_reduce(tensor)

    def add_gradients(self, module: nn.Module) -> None:
        """Replace each gradient of `module` by the sum of those of all processes.

        All travel as one tensor. DistributedDataParallel's buckets change after the first step, and with them the order
        of its sums: a training that is resumed would round otherwise than one that was not interrupted.
        """
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        if self.count == 1 or not gradients:
            return
        whole = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self.add(whole)
        parts = torch.split(whole, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def _reduced(self, number: float, how: dist.ReduceOp.RedOpType) -> float:
        if self.count == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64)
        with _together():
            dist.all_reduce(value, how)
        return value.item()


ALONE = Ranks()


@contextmanager
def joined_ranks(device: Device, batch_size: int) -> Iterator[Ranks]:
    """The processes that torchrun started for this training, ready to speak with one another while the block runs.

    batch_size: images of a step, of all of them together. A process that torchrun did not start is ALONE.
    Raises UsageError where they can't share such a training.
    """
    own = launch()
    if own.count == 1:
        yield ALONE
        return
    _require_parts(own, batch_size)
    _take_device(own, device)
    already = dist.is_initialized()  # by the program that calls this
    if not already:
        with _together():
            has_gpus = torch.cuda.is_available() and dist.is_nccl_available()  # builds for CUDA run without one, too
            dist.init_process_group(BACKENDS if has_gpus else "gloo", timeout=PATIENCE)
    log.info(
        "%d processes share each batch of %d images; threads of each: %d (--threads N or OMP_NUM_THREADS give others)",
        *(own.count, batch_size, torch.get_num_threads()),
    )
    try:
        yield Ranks(own.rank, own.count)
    finally:
        if not already:
            dist.destroy_process_group()


@contextmanager
def first_of_machine_first(ranks: Ranks) -> Iterator[None]:
    """Let one process of each machine do the block first: what it downloads, the others find."""
    waits = ranks.count > 1 and launch().local_rank > 0
    if waits:
        ranks.meet()
    yield
    if not waits:
        ranks.meet()


def _require_parts(own: Launch, batch_size: int) -> None:
    if batch_size % own.count:
        raise UsageError(
            f"--batch-size {batch_size}, of all processes together, is no multiple of their number {own.count}.",
            f"Give a --batch-size such as {max(1, round(batch_size / own.count)) * own.count}.",
        )


def _take_device(own: Launch, device: Device) -> None:
    """Let "cuda" be this process's own GPU. Raises UsageError where there is none for it."""
    kind = resolve_device(device).type
    if kind == "mps":
        raise UsageError("An mps device can't be shared by several processes.", "Give --device cpu.")
    if kind == "cuda":
        if own.local_rank >= (gpus := torch.cuda.device_count()):
            raise UsageError(
                f"There are {own.local_count} processes and {gpus} GPUs on this machine.",
                f"Give torchrun --nproc-per-node {gpus}, or slimkit --device cpu.",
            )
        torch.cuda.set_device(own.local_rank)


@contextmanager
def _together() -> Iterator[None]:
    """Say in our words that another process is gone, which torch does in many."""
    try:
        yield
    except (RuntimeError, ConnectionError, ValueError) as error:  # ValueError where its address is not known
        raise RankError(
            f"Another process of this training has ended, or can't be reached ({first_line(error)}).",
            "Its own lines say why; --resume goes on from the last checkpoint.",
        ) from error
