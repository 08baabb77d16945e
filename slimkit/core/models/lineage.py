"""Where a model came from: what slimkit made in this working folder, and from what.

A model folder names what it was cut from by a hash alone: it is made to be handed on, and what a stranger's folder says
leads nowhere. Which folder has that hash, and which data a model was trained on, stands in the working folder's record.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from slimkit.core.architecture import Architecture
from slimkit.core.errors import FolderError
from slimkit.core.files import write_atomically
from slimkit.core.folder import Classifier, sha256_of, weights_file

log = logging.getLogger("slimkit")

RECORD = Path(".slimkit", "models.json")  # in the working folder


def find_baseline(classifier: Classifier) -> Path | None:
    """The folder of the model that `classifier` was cut from; None where this working folder knows none.

    It was made here, and its weights have the hash that `classifier` names.
    """
    digest = classifier.architecture.base.get("weights_sha256")
    entry = _entry(digest)
    if entry is None or not isinstance(entry.get("folder"), str):
        return None
    folder = Path(entry["folder"])
    try:
        return folder if weights_sha256(folder) == digest else None
    except (FolderError, OSError):
        return None


def recorded_data(classifier: Classifier) -> str | None:
    """The data that `classifier` was made with in this working folder, as they were named then."""
    try:
        entry = _entry(weights_sha256(classifier.folder)) if classifier.folder else None
    except (FolderError, OSError):
        return None
    data = entry.get("data") if entry else None
    return data if isinstance(data, str) else None


def remember(folder: Path, data: str | None) -> None:
    """Note that slimkit made the model folder `folder` here, with `data` as the user called them."""
    known = _read()
    known[weights_sha256(folder)] = {"folder": str(folder), "data": data}
    try:
        write_atomically(RECORD, json.dumps(known, indent=2) + "\n")
    except (FolderError, OSError) as error:
        log.warning("%s can't be written, so later commands won't find the baseline by themselves: %s", RECORD, error)


def record_baseline(architecture: Architecture, source: Classifier) -> Architecture:
    """`architecture` of a model made from `source`, with the hash of what it was first cut from."""
    digest = source.architecture.base.get("weights_sha256")
    if digest is None and source.folder is not None:
        digest = weights_sha256(source.folder)
    if digest is None:
        return architecture
    base = {"name": source.architecture.base["name"], "weights_sha256": digest}
    return dataclasses.replace(architecture, base=base)


def weights_sha256(folder: Path) -> str:
    """The hash of the weights in a model folder. Raises FolderError or OSError where there are none."""
    return sha256_of(weights_file(folder))


def _entry(digest: object) -> dict[str, Any] | None:
    entry = _read().get(digest) if isinstance(digest, str) else None
    return entry if isinstance(entry, dict) else None


def _read() -> dict[str, Any]:
    try:
        known = json.loads(RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a broken record is begun anew
        return {}
    return known if isinstance(known, dict) else {}
