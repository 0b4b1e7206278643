"""The JSON schema of a run: what `result.json` holds."""

import json
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path, PurePath
from typing import Any, Self

from repquant.report.reading import parsed, read_file, write_text
from repquant.report.rows import Row

SCHEMA_VERSION = 1

_HEADLINE_DIGITS = 6
_HEADLINE_KEYS = (
    "calibrator",
    "runtime",
    "top1",
    "top5",
    "drop",
    "drop_ci95",
    "agreement",
    "kl",
    "sqnr_db",
    "parity",
    "max_logit_steps",
    "seconds",
    "images_per_second",
    "latency_ms",
    "latency_ratio",
    "latency_ratio_ci95",
    "file_bytes",
    "model",
)


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """The images that the ranges came from.

    Attributes:
        images: how many were read.
        seed: of their selection.
        sha256: of the names and contents selected, as `data.calibration` defines it.
        seconds: of the pass over them.
        examples: names of the first ones drawn.
    """

    images: int
    seed: int
    sha256: str
    seconds: float | None = None
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """One method that a search tried, and what it gave on held-back calibration images.

    Attributes:
        name: the method, for a person.
        keep_float: layers that stayed in float.
        images: held-back images.
        agreement, kl: to the float model, as in `Row`.
        expected_drop: points of top-1, estimated without labels.
        seconds: to quantize and to measure.
        chosen: the one that the search ended with.
    """

    name: str
    keep_float: tuple[str, ...]
    images: int
    agreement: float | None
    kl: float | None
    expected_drop: float
    seconds: float
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class DisagreementRecord:
    """An image on which a quantized model, as it is simulated, differs much from its float original.

    Attributes:
        calibrator: of the quantized model, as in `Row`.
        image: its name, or its place among those that were evaluated.
        label: its class; None without labels.
        kl: of the two softmaxes, in nats.
        float_answer, float_probability: class that the float model names, and what its softmax gives it, 0 to 1.
        answer, probability: the same of the quantized model.
    """

    calibrator: str
    image: str
    label: str | None
    kl: float
    float_answer: str
    float_probability: float
    answer: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything a run was given and everything it measured.

    Attributes:
        command: the verb.
        output: the folder that the run wrote, as it was given; None when it wrote none.
        config: the resolved configuration.
        inputs: role -> SHA-256 of the file, for example "weights".
        environment: as `bench.environment` gives it.
        calibration: None when nothing was calibrated.
        notes: sentences for the reader, for example about the CPU.
        skipped: unreadable images that were left out -> the reason.
        float_row: the float model; None when none was run.
        results: the other rows, in the order of the table.
        disagreements: of each quantized model the images on which it differs most from the float one, worst first.
        trail: what a search tried, in order.
        weight_bits: layer -> bits of its weights; empty where all have those of the configuration.
        work_seconds: to make the models out of the float one: calibration, rounding, training; None where nothing was.
        schema_version: of this layout; a program refuses the ones that it does not know.
    """

    command: str
    output: str | None
    config: dict[str, Any]
    inputs: dict[str, str]
    environment: dict[str, Any]
    calibration: CalibrationRecord | None = None
    notes: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    float_row: Row | None = None
    results: tuple[Row, ...] = ()
    disagreements: tuple[DisagreementRecord, ...] = ()
    trail: tuple[AttemptRecord, ...] = ()
    weight_bits: dict[str, int] = field(default_factory=dict)
    work_seconds: float | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def rows(self) -> tuple[Row, ...]:
        """The float row, where there is one, and the others, in the order of the table."""
        return self.results if self.float_row is None else (self.float_row, *self.results)

    def to_json(self) -> str:
        """Return the record as strict JSON, indented; numbers that are not finite become null."""
        return json.dumps(_plain(asdict(self)), allow_nan=False, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the record that `to_json` wrote.

        Raises:
            ValueError: the text is not JSON, has another schema version, or fields that do not fit.
        """
        return parsed(cls, text, SCHEMA_VERSION)


def write_record(record: Record, path: Path) -> None:
    """Write the record to `path`, whole or not at all.

    Raises:
        InputError: the folder of `path` does not exist or can't be written.
    """
    write_text(record.to_json(), path)


def read_record(path: Path) -> Record:
    """Read a record that `write_record` wrote.

    Raises:
        InputError: there is no such file, or it is not a record that this version reads.
    """
    return read_file(path, Record.from_json, "a record of a run", "the result.json of a run")


def headline(record: Record) -> dict[str, Any]:
    """Return the figures that a run ends with on stdout, ready for strict JSON, to six significant digits."""
    float_row = record.float_row
    figures = {
        "float_top1": None if float_row is None else float_row.top1,
        "output": record.output,
        "images": max((row.images for row in record.rows), default=0),
        "skipped": len(record.skipped),
        "results": [{key: getattr(row, key) for key in _HEADLINE_KEYS} for row in record.results],
    }
    return {key: _rounded(value) for key, value in figures.items()}


def _plain(value: Any) -> Any:
    """Replace what strict JSON does not have: numbers that are not finite by None, paths by strings."""
    match value:
        case float():
            return value if isfinite(value) else None
        case PurePath():
            return str(value)
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return value


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.{_HEADLINE_DIGITS}g}")
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
        case list() | tuple():
            return [_rounded(item) for item in value]
    return value
