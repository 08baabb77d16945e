"""The images that a model was made with, so that it isn't scored on them: recorded, and met again."""

import dataclasses
import logging
from collections.abc import Iterable

from slimkit.core.architecture import Architecture, SeenData
from slimkit.core.data import ImageSet
from slimkit.standalone import model_loader

log = logging.getLogger("slimkit")


def record_data(architecture: Architecture, data: ImageSet) -> Architecture:
    """`architecture` of a model that was made with `data`. What is kept says nothing of where they lie."""
    if data.sketch is None:
        return architecture
    images = len(data.splits.get("all", data.train))
    unsplit = {"all", "test"} <= data.splits.keys()
    seen = (*architecture.data_seen, SeenData(data.name, images, unsplit, data.sketch))
    return dataclasses.replace(architecture, data_seen=tuple(dict.fromkeys(seen)))


def with_test_images(data: ImageSet, architectures: Iterable[Architecture]) -> ImageSet:
    """`data` with a test split that models of `architectures` can be scored on.

    Class folders without a split are scored whole, unless a model was made with these very folders: then it is scored
    on the images that were set aside. Which it is, is said in the log.
    """
    if "all" not in data.splits or data.sketch is None:
        return data
    whole, sketch = data.splits["all"], data.sketch
    known = [seen for architecture in architectures for seen in architecture.data_seen]
    known = [seen for seen in known if model_loader.same_images(seen.sketch, sketch)]
    if any(seen.unsplit for seen in known):
        count = len(data.test)
        log.info("%s: the model was made with these images: scored on the %d that were set aside.", data.name, count)
        if all((seen.sketch, seen.images) != (sketch, len(whole)) for seen in known):
            log.warning("%s has changed since: the model may have learned from some of the %d.", data.name, count)
        return data
    if known:
        log.warning("%s: the model was made with these images, so its accuracy on them reads high.", data.name)
    log.info("%s comes without a split: all its %d images are scored.", data.name, len(whole))
    return dataclasses.replace(data, splits={**data.splits, "test": whole})
