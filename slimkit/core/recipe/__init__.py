"""The whole chain as one recipe, resumed where it was left."""

from slimkit.core.recipe.resolve import SECTIONS, Recipe, resolve_recipe
from slimkit.core.recipe.run import CompressReport, run_recipe, run_stages

__all__ = ["SECTIONS", "CompressReport", "Recipe", "resolve_recipe", "run_recipe", "run_stages"]
