"""The architectures by name, and what has been published about them."""

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

from repquant.errors import InputError
from repquant.models.spec import ArchSpec, BlockKind

_BLOCKS_A = (2, 4, 14, 1)
_BLOCKS_B = (4, 6, 16, 1)
_BLOCKS_D = (8, 14, 24, 1)

_REPVGG = (
    ArchSpec(name="RepVGG-tiny", blocks=(2, 3, 4, 1), widths=(0.25, 0.25, 0.25, 0.5)),
    ArchSpec(name="RepVGG-half", blocks=_BLOCKS_A, widths=(0.375, 0.375, 0.375, 1.25)),
    ArchSpec(name="RepVGG-A0", blocks=_BLOCKS_A, widths=(0.75, 0.75, 0.75, 2.5)),
    ArchSpec(name="RepVGG-A1", blocks=_BLOCKS_A, widths=(1, 1, 1, 2.5)),
    ArchSpec(name="RepVGG-A2", blocks=_BLOCKS_A, widths=(1.5, 1.5, 1.5, 2.75)),
    ArchSpec(name="RepVGG-B0", blocks=_BLOCKS_B, widths=(1, 1, 1, 2.5)),
    ArchSpec(name="RepVGG-B1", blocks=_BLOCKS_B, widths=(2, 2, 2, 4)),
    ArchSpec(name="RepVGG-B1g2", blocks=_BLOCKS_B, widths=(2, 2, 2, 4), groups=2),
    ArchSpec(name="RepVGG-B1g4", blocks=_BLOCKS_B, widths=(2, 2, 2, 4), groups=4),
    ArchSpec(name="RepVGG-B2", blocks=_BLOCKS_B, widths=(2.5, 2.5, 2.5, 5)),
    ArchSpec(name="RepVGG-B2g2", blocks=_BLOCKS_B, widths=(2.5, 2.5, 2.5, 5), groups=2),
    ArchSpec(name="RepVGG-B2g4", blocks=_BLOCKS_B, widths=(2.5, 2.5, 2.5, 5), groups=4),
    ArchSpec(name="RepVGG-B3", blocks=_BLOCKS_B, widths=(3, 3, 3, 5)),
    ArchSpec(name="RepVGG-B3g2", blocks=_BLOCKS_B, widths=(3, 3, 3, 5), groups=2),
    ArchSpec(name="RepVGG-B3g4", blocks=_BLOCKS_B, widths=(3, 3, 3, 5), groups=4),
    ArchSpec(name="RepVGG-D2se", blocks=_BLOCKS_D, widths=(2.5, 2.5, 2.5, 5), squeeze_excite=True),
)
_REPVGGPLUS = ArchSpec(name="RepVGGplus-L2pse", blocks=_BLOCKS_D, widths=(2.5, 2.5, 2.5, 5), block="plus")
_REPOPT_ONLY = (
    ArchSpec(name="RepOpt-VGG-L1", blocks=_BLOCKS_D, widths=(2, 2, 2, 4), block="repopt"),
    ArchSpec(name="RepOpt-VGG-L2", blocks=_BLOCKS_D, widths=(2.5, 2.5, 2.5, 5), block="repopt"),
)
SEARCH_SUFFIX = "-search"
"""Ends the name of the network that finds the scales of a RepOpt-VGG."""


def _with_block(spec: ArchSpec, block: BlockKind, prefix: str) -> ArchSpec:
    return replace(spec, name=spec.name.replace("RepVGG", prefix), block=block)


def _qarepvgg() -> list[ArchSpec]:
    return [_with_block(spec, "qarepvgg", "QARepVGG") for spec in _REPVGG if not spec.squeeze_excite]


def _repopt() -> list[ArchSpec]:
    plain = [spec for spec in _REPVGG if spec.groups == 1 and not spec.squeeze_excite]
    targets = [*(_with_block(spec, "repopt", "RepOpt-VGG") for spec in plain), *_REPOPT_ONLY]
    searches = [replace(spec, name=spec.name + SEARCH_SUFFIX, block="repopt-search") for spec in targets]
    return targets + searches


ARCHITECTURES: dict[str, ArchSpec] = {spec.name: spec for spec in (*_REPVGG, _REPVGGPLUS, *_qarepvgg(), *_repopt())}
"""Every RepVGG without squeeze-and-excite is there with the QARepVGG block, and every one without groups too as
RepOpt-VGG, whose scales the network of the same name with -search finds. The tiny (for images of 32 to 64 pixels) and
half (half as wide as A0, for small machines) sizes are this project's own; the others are those of the official code.
"""


@dataclass(frozen=True, kw_only=True)
class PublishedFigures:
    """What the authors report on ImageNet (1000 classes).

    Attributes:
        top1_percent: accuracy of the float model at `image_size`.
        image_size: side of the square image, pixels.
        parameters_millions: of the deploy form, biases included; the authors cut after the second decimal.
        multiply_adds_billions: of the deploy form for one image of 224 x 224, rounded to one decimal; the
            authors call them FLOPs.
    """

    top1_percent: float
    image_size: int = 224
    parameters_millions: float | None = None
    multiply_adds_billions: float | None = None


def _at_224(top1: float, parameters: float, multiply_adds: float) -> PublishedFigures:
    return PublishedFigures(top1_percent=top1, parameters_millions=parameters, multiply_adds_billions=multiply_adds)


PUBLISHED: dict[str, PublishedFigures] = {
    "RepVGG-A0": _at_224(72.41, 8.30, 1.4),
    "RepVGG-A1": _at_224(74.46, 12.78, 2.4),
    "RepVGG-A2": _at_224(76.48, 25.49, 5.1),
    "RepVGG-B0": _at_224(75.14, 14.33, 3.1),
    "RepVGG-B1": _at_224(78.37, 51.82, 11.8),
    "RepVGG-B1g2": _at_224(77.78, 41.36, 8.8),
    "RepVGG-B1g4": _at_224(77.58, 36.12, 7.3),
    "RepVGG-B2": _at_224(78.78, 80.31, 18.4),
    "RepVGG-B2g4": _at_224(78.50, 55.77, 11.3),
    "RepVGG-B3": _at_224(80.52, 110.96, 26.2),
    "RepVGG-B3g4": _at_224(80.21, 75.62, 16.1),
    "RepVGG-D2se": PublishedFigures(top1_percent=83.55, image_size=320),
    "RepVGGplus-L2pse": PublishedFigures(top1_percent=84.06, image_size=320),
    "QARepVGG-A0": PublishedFigures(top1_percent=72.2),
    "QARepVGG-B0": PublishedFigures(top1_percent=74.8),
    "QARepVGG-B1": PublishedFigures(top1_percent=78.0),
    "QARepVGG-B1g2": PublishedFigures(top1_percent=77.7),
    "QARepVGG-B2": PublishedFigures(top1_percent=79.0),
    "RepOpt-VGG-A0": PublishedFigures(top1_percent=70.3),
    "RepOpt-VGG-B1": PublishedFigures(top1_percent=78.5),
}
"""From the papers and the official repository; RepOpt-VGG as the QARepVGG paper reports it."""


def get_spec(name: str) -> ArchSpec:
    """Return the architecture of that name.

    Raises:
        InputError: there is none; the message gives the nearest name and all others.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    lower = {known.lower(): known for known in ARCHITECTURES}
    nearest = difflib.get_close_matches(name.lower().replace("_", "-"), lower, n=1, cutoff=0.3)
    hint = f"did you mean {lower[nearest[0]]}? " if nearest else ""
    raise InputError(f"unknown architecture {name!r}; {hint}The zoo has {', '.join(ARCHITECTURES)}")


BUILTIN_ARCH = "RepVGG-tiny"
BUILTIN_CLASSES = 10
BUILTIN_IMAGE_SIZE = 32


def builtin_weights() -> Path:
    """Return the RepVGG-tiny checkpoint that ships with the package, trained on the built-in set."""
    return Path(__file__).parent / "weights" / "repvgg-tiny.safetensors"
