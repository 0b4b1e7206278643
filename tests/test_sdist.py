"""What is released as source can be tested from it."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
NOT_RELEASED = (
    ".git",
    ".venv",
    ".cache",
    "runs",
    "build",
    "dist",
    "site",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypo*",
)
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


@pytest.mark.slow
def test_the_source_archive_is_complete(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="what builds the archive is not installed here")
    tree = shutil.copytree(REPOSITORY, tmp_path / "tree", ignore=shutil.ignore_patterns(*NOT_RELEASED))
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("src/repquant", "tests", "recipes", "docs", "benchmarks", "examples", "results", "scripts"):
        files = {
            path.relative_to(tree).as_posix()
            for path in (tree / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert files - names == set(), folder
    assert {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "LICENSE",
        "README.md",
        "Makefile",
        "constraints.txt",
    } <= names
