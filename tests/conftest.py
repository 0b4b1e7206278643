"""Fixtures that several layers share."""

import os
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest
import torch

REPOSITORY = Path(__file__).parent.parent


def pytest_configure() -> None:
    is_alone = "PYTEST_XDIST_WORKER" not in os.environ
    torch.set_num_threads(min(2, os.cpu_count() or 1) if is_alone else 1)
    # Two runs try the same examples: a failure belongs to the change, not to the day.
    hypothesis.settings.register_profile("repeatable", derandomize=True)
    hypothesis.settings.load_profile("repeatable")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have counted with `record_property("counts", {"tries": ..., "failures": ..., ...})`."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    counts = [
        (report.nodeid, dict(value))
        for report in reports
        if report.when == "call"
        for name, value in report.user_properties
        if name == "counts"
    ]
    if not counts:
        return
    terminalreporter.section("tries")
    for test, found in counts:
        terminalreporter.line(f"{test}: {', '.join(f'{count:,} {what}' for what, count in found.items())}")
    tries, failures = (sum(found[what] for _, found in counts) for what in ("tries", "failures"))
    terminalreporter.line(f"all: {tries:,} tries, {failures:,} failures")


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """The GPU, for tests marked `cuda`."""
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU here")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with imagenette160.zip and the two RepVGG-A0 checkpoints."""
    folder = os.environ.get("REPQUANT_DATA")
    if not folder:
        pytest.skip("REPQUANT_DATA is not set: it names the folder with imagenette160.zip and the checkpoints")
    path = Path(folder)
    assert path.is_dir(), f"REPQUANT_DATA={folder} is not a folder"
    return path


@pytest.fixture(scope="session")
def imagenette(real_data: Path) -> Path:
    """The ten-class ImageNet subset, unpacked once into an ignored cache."""
    folder = REPOSITORY / ".cache" / "imagenette160"
    if not folder.is_dir():
        staging = REPOSITORY / ".cache" / f"unpacking-{os.getpid()}"
        with zipfile.ZipFile(real_data / "imagenette160.zip") as archive:
            archive.extractall(staging)
        with suppress(OSError):  # another process of the same tests may have been faster
            (staging / "imagenette160").rename(folder)
        shutil.rmtree(staging)
        assert folder.is_dir()
    return folder
