"""Several models scored against one baseline, and ranked. A failure of one is its own: the rest are scored."""

from __future__ import annotations

import dataclasses
import html
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimkit.core.data import decoded_once
from slimkit.core.errors import MissedError, ModelError, SlimkitError, UsageError
from slimkit.core.files import csv_text, write_atomically
from slimkit.core.models.resolve import open_model_and_data
from slimkit.core.models.seen import with_test_images
from slimkit.core.options import ScoreOptions
from slimkit.core.progress import Progress, silent
from slimkit.core.run import checked
from slimkit.core.scoring.alone import measure_alone
from slimkit.core.scoring.formula import FIGURES
from slimkit.core.scoring.report import Baseline, ScoreReport
from slimkit.core.scoring.run import baseline_figures, given_figures, score_model
from slimkit.core.strangers.convention import is_foreign

log = logging.getLogger("slimkit")

COLUMNS = ("rank", "model", "total", "size_mb", "latency_ms", "accuracy_%", "low_%", "high_%", "images", "remark")
FORMATS = (".json", ".csv", ".md", ".html")


@dataclass(frozen=True)
class Board:
    """The models in their order, degenerate ones below the others, and those that failed."""

    ranked: tuple[ScoreReport, ...]
    failures: dict[str, str]  # what was wrong, by model
    baseline: Baseline

    def rows(self) -> list[tuple[object, ...]]:
        """Of COLUMNS."""
        rows: list[tuple[object, ...]] = []
        for rank, report in enumerate(self.ranked, 1):
            low, high = report.accuracy.confidence
            figures = (report.score.total, report.figures.size, report.figures.latency, report.figures.accuracy)
            remark = "degenerate" if report.degenerate else ""
            rows.append(
                (
                    rank,
                    report.model,
                    *(round(f, 4) for f in figures),
                    round(low, 2),
                    round(high, 2),
                    report.accuracy.images,
                    remark,
                )
            )
        return rows + [("", model, *[""] * 7, f"failed: {reason}") for model, reason in self.failures.items()]

    def to_dict(self) -> dict[str, Any]:
        """The content of a .json board."""
        return {
            "ranked": [report.to_dict() for report in self.ranked],
            "failures": self.failures,
            "baseline": dataclasses.asdict(self.baseline.figures) | {"sources": self.baseline.sources},
        }


@checked
@decoded_once()
def run_board(options: ScoreOptions, progress: Progress = silent) -> Board:
    """Score `options.model` and `options.others` against one baseline, and write the board to `options.output`.

    Its suffix says how: .json, .csv, .md or .html. Where slimkit did not write one of them, all are timed from outside
    their processes, as that one has to be. Raises UsageError for another, and what measuring the baseline
    raises; when all is written, MissedError where a sandbox lacked a wall, and ModelError where every model failed.
    """
    if options.output.suffix not in FORMATS:
        raise UsageError(f"{options.output} is no board that can be written.", f"End it in {', '.join(FORMATS)}.")
    models = dict.fromkeys((options.model, *options.others))
    with_strangers = any(is_foreign(Path(model)) for model in models)
    baseline = _measure_baseline(options, progress, with_strangers)
    reports: list[ScoreReport] = []
    failures: dict[str, str] = {}
    missed: MissedError | None = None
    for model in models:
        alone = dataclasses.replace(options, model=model, others=())
        try:
            reports.append(score_model(alone, baseline, progress, from_outside=with_strangers)[0])
        except Exception as error:  # whatever one folder does to us, the others are scored
            log.warning("%s", error, exc_info=None if isinstance(error, SlimkitError) else error)
            failures[model] = str(error) or type(error).__name__
            missed = error if isinstance(error, MissedError) else missed
    ranked = sorted(reports, key=lambda report: (report.degenerate, -report.score.total))
    board = Board(tuple(ranked), failures, baseline)
    write_atomically(options.output, WRITERS[options.output.suffix](board))
    if missed:
        raise missed
    if not reports:
        raise ModelError(
            f"None of the {len(failures)} models could be scored.", f"The reason of each is in {options.output}."
        )
    return board


def _measure_baseline(options: ScoreOptions, progress: Progress, from_outside: bool) -> Baseline:
    """What is given; else the model that `--baseline` names, measured once; else the contest's."""
    given = given_figures(options)
    if options.baseline is None or len(given) == len(FIGURES):
        return Baseline(*baseline_figures(given, {}, None))
    named = options.naming(options.baseline, options.baseline_weights, options.baseline_pretrained)
    classifier, data = open_model_and_data(named, progress=progress)
    images = with_test_images(data, [classifier.architecture]).test
    measured = measure_alone(options, classifier, data, images, progress, from_outside=from_outside)
    figures, sources = baseline_figures(given, measured.figures, f"measured: {options.baseline}")
    return Baseline(figures, sources, measured.accuracy, measured.latency)


def _as_json(board: Board) -> str:
    return json.dumps(board.to_dict(), indent=2) + "\n"


def _as_csv(board: Board) -> str:
    return csv_text([COLUMNS, *board.rows()])


def _as_markdown(board: Board) -> str:
    cells = [
        [html.escape(str(cell), quote=False).replace("|", "\\|") for cell in row] for row in (COLUMNS, *board.rows())
    ]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(COLUMNS), *lines[1:]]) + "\n"


def _as_html(board: Board) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS)
    figures = dataclasses.asdict(board.baseline.figures)
    return _PAGE.format(
        head=f"<tr>{head}</tr>",
        rows="\n".join(map(_html_row, board.rows())),
        baseline=html.escape("; ".join(f"{n} {figures[n]:g}, {s}" for n, s in board.baseline.sources.items())),
    )


def _html_row(row: tuple[object, ...]) -> str:
    """What failed has its reason in place of the figures."""
    cells = [html.escape(str(cell)) for cell in row]
    if row[0] == "":
        return f'<tr><td></td><td>{cells[1]}</td><td colspan="{len(COLUMNS) - 2}">{cells[-1]}</td></tr>'
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Board</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ margin: 2rem auto; max-width: 70rem; padding: 0 1rem; overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #8886; text-align: right; }}
th:nth-child(2), td:nth-child(2), th:last-child, td:last-child {{ text-align: left; }}
</style></head><body><h1>Board</h1><table>
{head}
{rows}
</table>
<p>Baseline (MB, ms, %): {baseline}.</p></body></html>
"""

WRITERS = {".json": _as_json, ".csv": _as_csv, ".md": _as_markdown, ".html": _as_html}
