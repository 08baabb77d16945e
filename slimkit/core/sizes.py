"""Sizes of images as users write them: 224, or 192x320 (height and width)."""

from __future__ import annotations

import re

Size = int | tuple[int, int]  # pixels: the side of a square, or height and width; see `model_loader.sides`


def as_size(height: int, width: int) -> Size:
    """A square's size is a single number."""
    return height if height == width else (height, width)


def show_size(size: Size) -> str:
    """As it is written on the command line."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def parse_size(text: str) -> Size | None:
    """What `show_size` writes; None for anything else."""
    if not re.fullmatch(r"[0-9]{1,6}(x[0-9]{1,6})?", text.strip().lower()):
        return None
    height, _, width = text.strip().lower().partition("x")
    return as_size(int(height), int(width or height))


def covers(whole: Size, part: Size) -> bool:
    """Whether `part` can be cut from `whole`."""
    pairs = [(size, size) if isinstance(size, int) else size for size in (whole, part)]
    return all(have >= cut for have, cut in zip(*pairs, strict=True))
