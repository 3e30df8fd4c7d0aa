"""What to do to which model: YAML, validated as a whole before anything starts."""

from compressor.gate.budget import Budget
from compressor.recipe.load import builtin_recipes, load_recipe
from compressor.recipe.schema import Recipe, recipe_json_schema

__all__ = ["Budget", "Recipe", "builtin_recipes", "load_recipe", "recipe_json_schema"]
