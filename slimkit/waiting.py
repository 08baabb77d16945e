"""How long OpenMP's threads spin while they wait for one another; to be said before torch is loaded."""

from collections.abc import MutableMapping

SPIN_COUNT = 2000  # turns, some 60 µs: free when quiet as 300,000 are, and 3 ms where those take 200 beside another job
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")  # by which a user decides it


def limit_spinning(environment: MutableMapping[str, str]) -> None:
    """Let threads spin SPIN_COUNT turns and then sleep, unless the user has decided how they wait."""
    if not any(choice in environment for choice in CHOICES):
        environment["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
