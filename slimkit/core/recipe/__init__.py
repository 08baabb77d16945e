"""The whole chain as one recipe, resumed where it was left."""

from slimkit.core.recipe.resolve import Recipe, resolve_recipe
from slimkit.core.recipe.run import CompressReport, run_recipe

__all__ = ["CompressReport", "Recipe", "resolve_recipe", "run_recipe"]
