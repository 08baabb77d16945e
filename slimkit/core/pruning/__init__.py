"""Structured pruning: cutting whole channels out of a network, and proving that nothing else changed."""

from slimkit.core.pruning.channels.groups import find_groups
from slimkit.core.pruning.prune import prune, prune_module
from slimkit.core.pruning.report import PrunedModule, PruneReport, PruneResult

__all__ = ["PruneReport", "PruneResult", "PrunedModule", "find_groups", "prune", "prune_module"]
