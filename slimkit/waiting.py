"""How long OpenMP's threads spin while they wait for one another; to be said before torch is loaded."""

from collections.abc import MutableMapping

SPIN_COUNT = 10_000  # turns; libgomp's own 300,000 cost a hundred times what a small network takes on a busy machine
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")  # by which a user decides it


def limit_spinning(environment: MutableMapping[str, str]) -> None:
    """Let threads spin SPIN_COUNT turns and then sleep, unless the user has decided how they wait."""
    if not any(choice in environment for choice in CHOICES):
        environment["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
