"""The layers: a file imports from its own layer or from one below, never from one above."""

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from repquant.cli.flags import flag_of
from repquant.cli.verbs import VERBS, module_of

PACKAGE = Path(__file__).parent.parent / "src" / "repquant"
LAYERS = (
    ("numerics",),
    ("targets",),
    ("graph",),
    ("reader",),
    ("simulation",),
    ("methods",),
    ("models",),
    ("data",),
    ("train",),
    ("qat",),
    ("repvgg",),
    ("export",),
    ("runtimes",),
    ("evaluate", "bench"),
    ("report",),
    ("cli",),
)
ASK_FOR_MODELS = {
    "models": "its own",
    "train": "the float recipes of RepVGG: initial weights, terms of the loss, rates for a block's branches",
    "repvgg": "quantization-aware training of the branches",
    "cli": "the verbs for RepVGG checkpoints",
}
"""Rooms that may import `repquant.models`, and what for; every other one serves any network."""
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(module: str) -> str | None:
    """Return the layer of `repquant.layer.file`; None for a module at the root, which any layer may import."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in RANK else None


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {name for name in found if name.split(".")[0] == "repquant"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_import_points_up(path):
    layer = layer_of(name_of(path))
    for module in imports(path):
        above = layer_of(module)
        if layer and above:
            assert RANK[above] <= RANK[layer], f"{name_of(path)} imports {module}, which lies above it"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_have_one_noun_for_a_name_and_stay_small(path):
    assert path.stem not in {"utils", "util", "common", "helpers", "helper", "misc"}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_no_two_test_files_have_one_name():
    """pytest imports them by it, and collects neither."""
    names = [path.name for path in (PACKAGE.parent.parent / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_every_folder_is_a_layer():
    folders = {path.relative_to(PACKAGE).parts[0] for path in FILES if path.parent != PACKAGE}
    assert folders <= set(RANK)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_rooms_for_any_network_do_not_know_the_blocks_of_one(path):
    if layer_of(name_of(path)) not in ASK_FOR_MODELS:
        assert not {module for module in imports(path) if layer_of(module) in ("models", "repvgg")}


def test_the_list_of_those_who_know_them_is_not_longer_than_needed():
    asking = {layer_of(name_of(path)) for path in FILES if any(layer_of(name) == "models" for name in imports(path))}
    assert asking == set(ASK_FOR_MODELS)


def test_only_the_command_line_knows_its_flags():
    """Messages elsewhere name arguments, in backticks; `cli.flags` shows them as what a person types."""
    flags = {flag_of(field.name) for verb in VERBS for field in fields(module_of(verb).Options)}
    for path in FILES:
        if layer_of(name_of(path)) != "cli":
            assert not flags & set(re.findall(r"--[a-z][a-z-]*", path.read_text(encoding="utf-8"))), path


def test_the_check_sees_an_arrow_that_points_up(tmp_path):
    file = tmp_path / "up.py"
    file.write_text("def f():\n    from repquant.cli import main\n")
    assert {layer_of(module) for module in imports(file)} == {"cli"}


def test_import_of_the_package_is_light():
    code = "import sys, repquant; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
