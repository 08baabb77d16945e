"""Amounts of bytes as users write them: 4GiB, 500MB, or bytes. A MB is 2^20 bytes, as it is in all that is shown."""

from __future__ import annotations

import re

from slimkit.core.errors import UsageError

UNITS = {"": 1, "b": 1}
UNITS |= {f"{prefix}{ending}": 1024**power for power, prefix in enumerate("kmgt", 1) for ending in ("", "b", "ib")}


def parse_bytes(text: str) -> int:
    """The number of bytes. Raises UsageError for anything but a number above 0 with a unit."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]*)", text.strip().lower())
    amount = int(float(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS else 0
    if amount < 1:
        raise UsageError(f"{text!r} is no amount of bytes.", "Give a number with a unit, such as 4GiB or 500MB.")
    return amount
