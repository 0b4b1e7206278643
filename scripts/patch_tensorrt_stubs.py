"""Mend the installed tensorrt-stubs, so that mypy reads them: five lines are no valid Python, and a marker is missing.

The stubs ask for packages that only NVIDIA's index serves, so they are installed without what they depend on:

    pip install --no-deps tensorrt-stubs==10.13.0.35.1
    python scripts/patch_tensorrt_stubs.py

The second command may be repeated: what is mended already stays as it is. `make setup` runs both.
"""

import ast
import sys
from importlib.metadata import distribution
from pathlib import Path

REPLACEMENTS = {
    # A parameter without default behind one that has a default.
    "power: Weights = None, channel_axis: int)": "power: Weights = None, channel_axis: int = ...)",
    # A keyword of Python as the name of a parameter.
    ", in: list[": ", in_: list[",
}


def main() -> int:
    """Mend them."""
    path = Path(str(distribution("tensorrt-stubs").locate_file("tensorrt_bindings/tensorrt.pyi")))
    text = path.read_text(encoding="utf-8")
    for wrong, right in REPLACEMENTS.items():
        text = text.replace(wrong, right)
    ast.parse(text)
    path.write_text(text, encoding="utf-8")
    for package in ("tensorrt", "tensorrt_bindings"):
        (path.parent.parent / package / "py.typed").touch()
    print(f"{path} can be read")
    return 0


if __name__ == "__main__":
    sys.exit(main())
