"""Timing from outside: images go to a process behind walls, its logits come back, and the clock is on this side.

So a stranger's folder is timed, whose own clock is not to be believed, and slimkit's own where it is held against one.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import torch
from torch import Tensor

from slimkit.core.architecture import Preprocessing
from slimkit.core.data import Images, epoch_order, evaluation_input
from slimkit.core.folder import weights_file
from slimkit.core.measure.latency import Latency, split_runs, summarize
from slimkit.core.options import ScoreOptions
from slimkit.core.progress import Advance, Progress
from slimkit.core.strangers.convention import Submission
from slimkit.core.strangers.host import Stranger
from slimkit.core.strangers.opened import launcher

WARM_UP = 10  # runs that don't count
FROM_OUTSIDE = "It was timed from outside its process, transport of the image included."


def time_own(
    folder: Path, images: Images, preprocessing: Preprocessing, options: ScoreOptions, progress: Progress
) -> Latency:
    """The latency of a model folder of slimkit's, measured as a stranger's is. Raises ModelError where it can't run."""
    threads = options.threads or torch.get_num_threads()
    launch = launcher(Submission(folder.resolve(), weights_file(folder).resolve(), "torch", {}), options)
    timed = shuffled(len(images))[: options.runs]
    with launch(threads) as process, progress("time runs", options.runs) as advance:
        _, rounds = time_round_trips(process, images, preprocessing, timed, options.runs, advance)
    return summarize(rounds, batch_size=1, threads=threads)


def lookalike(pixels: Tensor) -> Tensor:
    """Pixels 0 … 255 that are up to one higher or lower."""
    noise = torch.randint(-1, 2, pixels.shape, generator=torch.Generator().manual_seed(secrets.randbits(62)))
    return (pixels.float() + noise).clamp(0, 255).to(pixels.dtype)


def time_round_trips(
    stranger: Stranger,
    images: Images,
    preprocessing: Preprocessing,
    timed: Tensor,
    runs: int,
    advance: Advance,
) -> tuple[Tensor, list[list[float]]]:
    """The answer in each of `runs` runs [runs] to the `timed` images in turn, and the ms of the runs, in rounds."""
    pixels = torch.cat([pixels for pixels, _, _ in images.batches(timed, 64)])
    inputs = evaluation_input(pixels, preprocessing)
    for i in range(WARM_UP):
        stranger.ask(torch.rand(1, *inputs.shape[1:], generator=torch.Generator().manual_seed(i)))
    given: list[int] = []
    rounds: list[list[float]] = []
    for share in split_runs(runs):
        rounds.append([])
        for _ in range(share):
            place = len(given) % len(timed)
            again = len(given) >= len(timed)  # what it has seen becomes another image: an answer kept is of no use
            one = pixels[place : place + 1]
            shown = evaluation_input(lookalike(one), preprocessing) if again else inputs[place : place + 1]
            logits, took = stranger.ask(shown)
            given.append(int(logits.argmax(1)))
            rounds[-1].append(took)
        advance(share)
    return torch.tensor(given), rounds


def shuffled(count: int) -> Tensor:
    """The numbers below `count` in an order that nobody can foretell: int64 [count]."""
    return epoch_order(count, secrets.randbits(62), epoch=0)
