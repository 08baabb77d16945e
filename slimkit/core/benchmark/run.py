"""`slimkit benchmark`: from options to benchmark.json, with every run beside it and a picture on request."""

from __future__ import annotations

import json
from collections.abc import Sequence

from slimkit.core.benchmark.answers import compared, own_logits
from slimkit.core.benchmark.candidates import Candidate, open_candidates, require_backends
from slimkit.core.benchmark.models import Foreign
from slimkit.core.benchmark.plot import draw_benchmark
from slimkit.core.benchmark.report import BenchmarkReport, Result, result_of, samples_file, warnings_of
from slimkit.core.benchmark.streams import Streams, run_streams
from slimkit.core.benchmark.turns import Plan, Start, judged, reference_of, take_turns
from slimkit.core.environment import describe_environment
from slimkit.core.files import write_atomically
from slimkit.core.folder import changed_code
from slimkit.core.load import OutsideLoad, Strain
from slimkit.core.options import BenchmarkOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.run import checked


@checked
def run_benchmark(options: BenchmarkOptions, progress: Progress = silent) -> BenchmarkReport:
    """Time every model in every backend beside the baseline, where there is one; write the report to `options.output`.

    The samples go beside it, and the picture where that is asked for. All are shown, and compared on, held-out images
    of `options.data`; without data, random images. Raises FolderError where an output exists, UsageError for a backend
    that is not installed, ModelError when one of them can't be run, and what reading the models and the data raises.
    """
    require_backends(options)
    plan = Plan(options.batch_size, options.restarts, options.min_seconds, options.precision / 100)
    with open_candidates(options, progress) as candidates:
        load = OutsideLoad()
        starts = take_turns(candidates, plan, progress)
        strain = load.strain()
        together = run_streams(candidates, options.streams, options.batch_size, progress)
        turns = [[start.turns for start in own] for own in starts]
        results = _results(candidates, starts, together, options.batch_size)
        report = _report(options, candidates, results, len(starts[0]), strain)
    samples, picture = options.beside
    write_atomically(samples, samples_file(results, turns))
    if options.plot:
        write_atomically(picture, draw_benchmark(report, turns))
    write_atomically(options.output, json.dumps(report.to_dict(), indent=2) + "\n")
    return report


def _results(
    candidates: Sequence[Candidate],
    starts: Sequence[Sequence[Start]],
    together: Sequence[Streams | None],
    batch_size: int,
) -> tuple[Result, ...]:
    ratios = judged(candidates, [[start.turns for start in own] for own in starts])
    logits = {model: own_logits(model) for model in dict.fromkeys(each.model for each in candidates)}
    return tuple(
        result_of(each, own, ratio, compared(each, logits[each.model]), streams, batch_size)
        for each, own, ratio, streams in zip(candidates, starts, ratios, together, strict=True)
    )


def _report(
    options: BenchmarkOptions, candidates: Sequence[Candidate], results: tuple[Result, ...], starts: int, strain: Strain
) -> BenchmarkReport:
    environment = describe_environment()
    models = dict.fromkeys(each.model for each in candidates)
    folders = dict.fromkeys(model.folder for model in models)
    walls = {model.name: model.source.walls for model in models if isinstance(model.source, Foreign)}
    return BenchmarkReport(
        model=options.model,
        reference=reference_of(candidates),
        candidates=results,
        batch_size=options.batch_size,
        starts=starts,
        precision=options.precision,
        warnings=tuple(warnings_of(results, options.precision, strain, environment["cpu"]["governor"])),
        changed_code=tuple(str(folder / name) for folder in folders if folder for name in changed_code(folder)),
        walls=walls,
        environment=environment | {"strain": vars(strain)},
    )
