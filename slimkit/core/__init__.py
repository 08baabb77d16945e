"""slimkit as a library: `from slimkit.core import run_prune, PruneOptions`.

Names are imported when they are first used, so that the command line can show its help without loading torch.
"""

import importlib
from typing import Any

_HOME = {
    "Architecture": "architecture",
    "BenchmarkOptions": "options",
    "Classifier": "folder",
    "DistillOptions": "options",
    "ExportOptions": "options",
    "ImageSet": "data",
    "Preprocessing": "architecture",
    "PruneOptions": "options",
    "QuantizeOptions": "options",
    "ScoreOptions": "options",
    "SlimkitError": "errors",
    "TrainOptions": "options",
    "as_classifier": "models.resolve",
    "augment": "data",
    "epoch_order": "data",
    "evaluate": "measure.accuracy",
    "evaluation_input": "data",
    "export_onnx": "export",
    "inspect_folder": "inspection",
    "open_dataset": "data",
    "prune": "pruning",
    "prune_module": "pruning",
    "quantize": "quantization",
    "read_folder": "folder",
    "resolve_recipe": "recipe",
    "run_benchmark": "benchmark.run",
    "run_distill": "stages",
    "run_export": "export",
    "run_goal": "search.run",
    "run_prune": "stages",
    "run_quantize": "stages",
    "run_recipe": "recipe",
    "run_board": "scoring.board",
    "run_score": "scoring.run",
    "run_sensitivity": "stages",
    "run_train": "stages",
    "run_tune": "tune.run",
    "write_folder": "folder",
    "write_image_folder": "data",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
