"""Amounts of memory as users write them: 4GiB, 500MB, or bytes."""

from __future__ import annotations

import re

from slimkit.core.errors import UsageError

UNITS = {"": 1, "b": 1}
UNITS |= {
    f"{prefix}{ending}": base**power
    for power, prefix in enumerate("kmgt", 1)
    for ending, base in (("", 1024), ("b", 1000), ("ib", 1024))
}


def parse_bytes(text: str) -> int:
    """The number of bytes. Raises UsageError for anything but a number above 0 with a unit."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]*)", text.strip().lower())
    amount = int(float(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS else 0
    if amount < 1:
        raise UsageError(f"{text!r} is no amount of memory.", "Give a number with a unit, such as 4GiB or 500MB.")
    return amount
