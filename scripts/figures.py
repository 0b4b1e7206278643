"""Draw the figures of docs/figures again, from what was measured and lies in results/; no data or weights are needed.

    make figures

The measurements themselves are made again by the commands that the pages name: `repquant analyze` for
results/a0-analysis.json, on the ten-class subset of ImageNet, and benchmarks/qat_evidence.py for
results/qat-evidence.json, on what ships with the package.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from repquant.report.analysis import read_analysis
from repquant.report.figures import write_figures

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import qat_evidence_report  # noqa: E402  # a script beside the benchmark, not a part of the package


def draw_analysis(record: Path, folder: Path) -> None:
    """Draw how far weights stand out: by layers, and in one of them."""
    with TemporaryDirectory() as drawn:
        write_figures(read_analysis(record).sensitivity, Path(drawn))
        for name, kept in (("range", "range_over_sigma"), ("weights", "weight_steps")):
            shutil.copyfile(Path(drawn) / f"{name}.svg", folder / f"{kept}.svg")


def draw_training(record: Path, folder: Path) -> None:
    """Draw what happens while a network trains with rounding in the loop."""
    qat_evidence_report.write_figures(json.loads(record.read_text(encoding="utf-8"))["rows"], folder)


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "figures", help="folder; it has to exist")
    folder = parser.parse_args().output
    draw_analysis(ROOT / "results" / "a0-analysis.json", folder)
    draw_training(ROOT / "results" / "qat-evidence.json", folder)
    print(f"{len(list(folder.glob('*.svg')))} figures in {folder}")


if __name__ == "__main__":
    main()
