"""The recipes that ship: every one is read by the real command line, and says what it is."""

import re
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from repquant.cli.main import build_parser
from repquant.models.zoo import ARCHITECTURES, PUBLISHED, SEARCH_SUFFIX
from repquant.repvgg.qat_recipe import RepVGGQatRecipe
from repquant.train.recipe import Recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return build_parser()


def read_recipe(parser: ArgumentParser, path: Path) -> dict[str, Any]:
    """The options of a recipe as the verb has them that it is for."""
    verb = "qat" if path.stem.startswith("qat-") else "train"
    call = [verb, "--config", str(path), "--data", "images", "--output", "run"]
    parsed = parser.parse_args([*call, "--weights", "float.pth"] if verb == "qat" else call)
    return vars(parsed[verb])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_read_by_the_command_line(parser, recipe):
    parsed = read_recipe(parser, recipe)
    for name, value in yaml.safe_load(recipe.read_text()).items():
        expected = "images" if name == "data" else value
        assert parsed[name] == (tuple(expected) if isinstance(expected, list) else expected)
    kind = RepVGGQatRecipe if recipe.stem.startswith("qat-") else Recipe
    settings = kind(**{field.name: parsed[field.name] for field in fields(kind)})
    assert settings.arch in ARCHITECTURES or "--model " in recipe.read_text()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_head_comment_of_a_recipe_says_what_it_is(recipe):
    head = "\n".join(takewhile(lambda line: line.startswith("#"), recipe.read_text().splitlines()))
    assert f"--config recipes/{recipe.name}" in head
    for what in ("Cost: ", "Result: "):
        assert what in head


def test_the_table_of_recipes_names_every_network_of_the_zoo_with_what_is_published():
    lines = (RECIPES[0].parent / "README.md").read_text().splitlines()
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in lines if line.startswith("| "))}
    named = {path.stem for path in RECIPES}
    for name in ARCHITECTURES:
        if not name.endswith(SEARCH_SUFFIX):
            assert re.findall(r"([\w-]+)\.yaml", rows[name][2])[0] in named
    for name, figures in PUBLISHED.items():
        assert float(re.split("[; ]", rows[name][4].strip())[0]) == figures.top1_percent


def test_there_are_recipes():
    assert {"builtin", "imagenet-120", "qat-imagenet"} <= {path.stem for path in RECIPES}
