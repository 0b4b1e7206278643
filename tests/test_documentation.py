"""What the documentation says works: code runs, commands are read, links lead somewhere, the site builds."""

import filecmp
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

import repquant as rq
from markdown_blocks import Block, blocks_in
from repquant.cli.flags import flag_of
from repquant.cli.main import build_parser, main
from repquant.cli.verbs import VERBS, module_of
from repquant.export.files import export_file
from repquant.option_ranges import check_ranges

REPOSITORY = Path(__file__).parent.parent
DOCS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PAGES = [*DOCS, *REPOSITORY.glob("*/*.md"), *(path for path in REPOSITORY.glob("*.md") if path.name != "README.md")]
BLOCKS = [block for page in DOCS for block in blocks_in(page)]
SHELL = [block for block in BLOCKS if block.language == "shell"]
WITH_PYTHON = [page for page in DOCS if any(block.language == "python" for block in blocks_in(page))]

OF_THE_SYSTEM = {"cd", "cp", "echo", "git", "npm"}
"""Programs whose calls are not looked at."""
FLAGS_OF_OTHERS = {
    "--fp16", "--int8", "--stronglyTyped",  # trtexec
    "--max-restarts", "--nnodes",  # torchrun
    "--help",
}  # fmt: skip


def place(item: Block | Path) -> str:
    return str(item) if isinstance(item, Block) else item.relative_to(REPOSITORY).as_posix()


class Network(nn.Module):
    """Two blocks with branches, and logits."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.wide, self.narrow = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, image):
        x = torch.relu(self.norm(self.stem(image)))
        return self.head(torch.relu(self.wide(x) + self.narrow(x) + x).mean((2, 3)))


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    """What the pages take for granted."""
    torch.manual_seed(0)
    images = [torch.randn(8, 3, 32, 32) for _ in range(2)]
    batches = [(batch, torch.randint(0, 10, (8,))) for batch in images]
    return {
        "model": Network().eval(),
        "example": images[0],
        "images": images,
        "array": images[0].numpy(),
        "batches": batches,
        "validation": batches,
    }


@pytest.fixture(scope="module")
def files(given, tmp_path_factory) -> Path:
    """A folder with the files that the pages take for granted."""
    folder = tmp_path_factory.mktemp("files")
    rq.quantize(given["model"], given["batches"], target="onnxruntime").save(folder / "int8.onnx")
    export_file(rq.reparameterize(given["model"], given["example"]), folder / "float.onnx")
    return folder


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return build_parser()


@pytest.mark.parametrize("page", WITH_PYTHON, ids=place)
def test_python_runs(page, given, files, tmp_path, monkeypatch, capsys):
    """The blocks of a page run one after the other, as a reader would type them."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = dict(given)
    for block in blocks_in(page):
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            if not block.note.startswith("not run"):
                exec(code, names)


@pytest.mark.parametrize("block", SHELL, ids=place)
def test_commands_are_read(block, parser, monkeypatch):
    """Each call of repquant by its own parser, and each file, target and extra that another call names exists."""
    monkeypatch.chdir(REPOSITORY)
    for words in block.commands:
        while "=" in words[0]:  # variables of the environment
            words = words[1:]
        if words[0] == "torchrun":
            words = ["repquant", *words[words.index("repquant") + 1 :]]
        program, *arguments = words
        if program == "repquant":
            read(parser, arguments)
        elif program == "make":
            assert re.search(rf"^{arguments[0]}:", Path("Makefile").read_text(), re.MULTILINE), block
        elif program == "pip":
            assert set(extras(words[-1])) <= set(project()["optional-dependencies"]), block
        elif program == "python":
            assert arguments[0] == "-m" or Path(arguments[0]).is_file(), block
        elif program.startswith("scripts/"):
            assert Path(program).is_file(), block
        else:
            assert program in OF_THE_SYSTEM or block.note.startswith("not run: needs"), block


@pytest.mark.parametrize("block", [block for block in SHELL if block.note == "run"], ids=place)
def test_quick_commands_run(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    calls = [words for words in block.commands if words[0] == "repquant"]
    assert calls
    for words in calls:
        assert main(words[1:]) == 0, capsys.readouterr().err


def test_every_block_names_its_language():
    assert BLOCKS
    assert {block.language for block in BLOCKS} <= {"cpp", "kotlin", "python", "shell", "text", "yaml"}
    for page in DOCS:
        fences = re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(list(blocks_in(page))), page
        indented = re.search(r"^\n {4}(?! *(?:[-*]|\d+\.) )\S.*", without_code(page), re.MULTILINE)
        assert not indented, f"{page}: put this between fences: {indented}"


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_links_of_the_repository_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", without_code(page)):
        if target.startswith(("https:", "http:")):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{place(page)} links to {target}"
        assert not anchor or anchor in anchors(path), f"{place(page)} links to {target}#{anchor}"


def test_options_that_pages_name_exist():
    known = {flag_of(field.name) for verb in VERBS for field in fields(module_of(verb).Options)}
    known |= FLAGS_OF_OTHERS | {"--config", "--print_config", "--json", "--version"}
    for page in DOCS:
        if page.name != "log.md":  # which tells of options of its time
            named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", " ".join(re.findall(r"`[^`\n]+`", without_code(page)))))
            assert named <= known, place(page)


def test_every_page_of_results_is_in_its_table():
    table = (REPOSITORY / "results" / "README.md").read_text(encoding="utf-8")
    for page in (REPOSITORY / "results").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in table, page.name


def test_the_readme_is_read_in_three_minutes():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_figures_are_those_of_the_results(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    monkeypatch.setattr(sys, "argv", ["figures.py", "--output", str(tmp_path)])
    import_module("figures").main()
    drawn = {path.name for path in tmp_path.iterdir()}
    kept = REPOSITORY / "docs" / "figures"
    assert drawn == {path.name for path in kept.iterdir()}
    _, other, missing = filecmp.cmpfiles(kept, tmp_path, drawn, shallow=False)
    assert not other + missing, "run make figures"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` does."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="what builds the site is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(DOCS)
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*>", page.read_text()
        )
        assert not loaded, page


def test_the_reference_has_every_option_and_every_name(site):
    for verb in VERBS:
        text = (site / "reference" / "command-line" / f"{verb}.html").read_text()
        for field in fields(module_of(verb).Options):
            name = field.name.upper() if field.metadata.get("positional") else flag_of(field.name)
            assert f"<code>{name}</code>" in text, f"{verb} {name}"
    text = (site / "reference" / "python.html").read_text()
    for name in rq.__all__:
        assert f'.{name}"' in text or name in ("__version__", "PtqMethod", "ReconstructionOptions"), name
    assert "<code>equalization</code>" in text
    assert "<code>granularity</code>" in text


def read(parser: ArgumentParser, arguments: list[str]) -> None:
    """Read a call as the command line does, without running it."""
    if arguments[0].startswith("--"):
        return
    parsed = parser.parse_args(arguments)
    options = module_of(parsed.verb).Options
    given = vars(parsed[parsed.verb])
    check_ranges(options(**{field.name: given[field.name] for field in fields(options)}))


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def extras(requirement: str) -> list[str]:
    found = re.search(r"\[(.+)\]", requirement)
    return found[1].split(",") if found else []


def without_code(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
