"""Recipes: how each method is trained, by name. Importing this package loads none of them."""

from collections.abc import Iterable
from pathlib import Path

from pydantic import ConfigDict

from osdhuman.config import Config, load_config
from osdhuman.registry import find_class
from osdhuman.train.config import TrainConfig
from osdhuman.train.recipe import Recipe

RECIPES = {
    "osdhuman": "osdhuman.recipes.osdhuman:OSDHumanRecipe",
}


class _Choice(Config):
    """The one setting that says which class reads the others."""

    model_config = ConfigDict(extra="ignore")
    recipe: str = TrainConfig.model_fields["recipe"].default


def find_recipe(name: str) -> type[Recipe]:
    """The class of a registered recipe. Raises ValueError with the nearest name."""
    return find_class(name, RECIPES, "recipe")


def load_training(path: str | Path | None = None, overrides: Iterable[str] = ()) -> TrainConfig:
    """The settings of a training run, of the class that belongs to its `recipe`; see `osdhuman.config.load_config`."""
    overrides = list(overrides)
    recipe = find_recipe(load_config(_Choice, path, overrides).recipe)
    return load_config(recipe.Settings, path, overrides)
