"""What a person installs holds all that the demo needs."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SOURCES = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "MANIFEST.in",
    "src",
    "constraints.txt",
    "Makefile",
    "CHANGELOG.md",
)


def run(*command, **options):
    """Run a command without this checkout on its path, and return what it wrote to stdout."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], env=clean, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The Python of an environment with the wheel; other packages are those of the tests, read from where they are."""
    pytest.importorskip("build", reason="what builds the wheel is not installed here")
    root = tmp_path_factory.mktemp("wheel")
    tree = root / "tree"
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            tree.mkdir(exist_ok=True)
            shutil.copy(source, tree)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", root / "dist", tree)
    venv.create(root / "venv", with_pip=False)
    python = root / "venv" / "bin" / "python"
    here = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (wheel,) = (root / "dist").glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    (here / "tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # its own .pth files are not read
    return python


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_runs_the_demo(installed, tmp_path):
    where = run(installed, "-c", "import repquant; print(repquant.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent.parent)
    out = run(installed.parent / "repquant", "demo", "--output", tmp_path / "demo", cwd=tmp_path)
    headline = json.loads(out.strip().splitlines()[-1])
    assert headline["float_top1"] > 85
    assert {row["calibrator"] for row in headline["results"]} == {"max", "percentile", "mse", "entropy"}
    assert (tmp_path / "demo" / "mse.onnx").is_file()
