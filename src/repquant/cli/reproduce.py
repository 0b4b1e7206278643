"""Put the known ways to an INT8 RepVGG side by side, on any data folder and from one checkpoint in training form.

  inserted-bn        the original pipeline: batch normalization inserted, training on labels (lr 1e-3, decay 4e-5)
  plain              the mended one: the deploy kernels train, with the same settings
  plain-tuned        the same with a thousandth of the float training's learning rate and weight decay 55e-6
  ptq                percentile, MSE and entropy ranges, weights rounded to the nearest, nothing else
  ptq-default        what `repquant ptq` does
  equivalent-kernel  what `repquant qat` does
  plain-distilled    the same with the deploy kernels: --method plain

Each row is a run of its own in a folder of its own: the same command goes on where it was interrupted, and skips the
rows that are complete. The last file is table.md.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from repquant.choices import Device
from repquant.cli.console import finish, say, show, show_configuration
from repquant.cli.flags import with_flags
from repquant.cli.options import RUNTIME_NAMES, CalibrationOptions, DataOptions, ModelOptions, TargetOptions
from repquant.errors import InputError, shortened
from repquant.option_ranges import BATCH, COUNT, EPOCHS, RATE, SEED, Names, option

AS_IT_IS = {"equalization": "none", "identity": "fused", "rounding": "nearest", "rounding_images": 0}
ON_LABELS = {
    **AS_IT_IS,
    "calibrator": "max",
    "distillation": 0.0,
    "activation_scales": "fixed",
    "weight_scales": "max",
    "optimizer": "sgd",
    "augmentation": "random-resized-crop",
    "learning_rate": 1e-3,
    "weight_decay": 4e-5,
}
QAT_ROWS: dict[str, dict[str, Any]] = {
    "inserted-bn": {"method": "inserted-bn", **ON_LABELS},
    "plain": {"method": "plain", **ON_LABELS},
    "plain-tuned": {"method": "plain", **ON_LABELS, "weight_decay": 55e-6},
    "equivalent-kernel": {"method": "equivalent-kernel"},
    "plain-distilled": {"method": "plain"},
}
PTQ_ROWS: dict[str, dict[str, Any]] = {
    "ptq": {**AS_IT_IS, "calibrator": "percentile,mse,entropy"},
    "ptq-default": {"calibrator": "mse"},
}
ROW_NAMES = Names(("ptq", "ptq-default", *QAT_ROWS))
_THOUSANDTH = 1e-3
_DIVERGED = "diverged.json"
_MOST_BYTES = 2**20
_OF_THE_MACHINE = ("output", "resume", "overwrite", "device", "workers", "benchmark")


EXAMPLE = (
    "repquant reproduce --arch RepVGG-A0 --weights A0.pth "
    "--data FOLDER --target tensorrt --rows ptq,ptq-default --output runs/reproduce"
)


@dataclass(frozen=True, kw_only=True)
class Options(TargetOptions, CalibrationOptions, DataOptions, ModelOptions):
    """Options of `repquant reproduce`."""

    output: str = option("folder with a folder for each row, and table.md")
    rows: str = option("rows of the table", "all", ROW_NAMES)
    identity: Literal["fused", "residual"] = option(
        "where identity branches go in ptq-default, equivalent-kernel and plain-distilled: in the kernel, or residual "
        "(an addition; for few bits)",
        "fused",
    )
    epochs: int = option("epochs of the rows that train on labels", 20, EPOCHS)
    equivalent_epochs: int = option("epochs of equivalent-kernel and plain-distilled", 3, EPOCHS)
    training_rate: float = option("learning rate that the float network was trained with", 0.1, RATE)
    training_batch: int = option("images a step in training, then and now", 256, BATCH)
    training_images: int = option("train on so many images, those of all classes alike; 0: on all", 0, COUNT)
    seeds: str = option("seeds of the rows that train, with commas", "0")
    device: Device = option("where to train", "cpu")
    runtimes: str = option("what executes the models", "pytorch", RUNTIME_NAMES)


def run(options: Options) -> None:
    """Run the verb."""
    from repquant.cli.inputs import identified

    options = identified(options)
    config = show_configuration("reproduce", options)
    from repquant.atomic import replace_file
    from repquant.cli.outputs import output_folder
    from repquant.report.comparison import comparison_markdown, comparison_rows, comparison_table
    from repquant.report.record import read_record

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "reproduce makes its rows one after another in one process; start it without torchrun (a row that trains "
            "alone can be made by `torchrun -m repquant qat`)"
        )
    names = ROW_NAMES.split(options.rows)
    seeds = _seeds(options.seeds)
    output = output_folder(options)
    folders: dict[str, Path] = {}
    diverged = []
    for name in names:
        for seed in seeds if name in QAT_ROWS else seeds[:1]:
            title = f"{name}, seed {seed}" if name in QAT_ROWS and len(seeds) > 1 else name
            folder = _complete(name, seed, options, output)
            if (folder / _DIVERGED).is_file():
                diverged.append(f"{title}: diverged: {_divergence(folder)['error']}")
            else:
                folders[title] = folder
    rows = comparison_rows({title: read_record(folder / "result.json") for title, folder in folders.items()})
    with replace_file(output / "table.md") as temporary:
        temporary.write_text(comparison_markdown(rows, config, diverged), encoding="utf-8")
    show(comparison_table(rows))
    for line in diverged:
        say(line)
    finish({"output": options.output, "rows": [row.headline() for row in rows]})


def _complete(name: str, seed: int, options: Options, output: Path) -> Path:
    """Return the folder of a row's finished run, which is made or gone on with where it is not there yet.

    A training that diverges leaves a file that says so, and is not begun again.
    """
    from repquant.atomic import replace_file
    from repquant.cli import ptq, qat
    from repquant.train.loop import DivergedError
    from repquant.train.stopping import StoppedError

    folder = output / (f"{name}-seed{seed}" if name in QAT_ROWS else name)
    common = {field.name: getattr(options, field.name) for field in fields(Options)} | {"output": str(folder)}
    verb: ModuleType
    row: Any
    if name in PTQ_ROWS:
        verb, row = ptq, _options(ptq.Options, common | PTQ_ROWS[name])
    else:
        verb, row = (
            qat,
            _options(qat.Options, common | _qat_settings(name, seed, options) | {"resume": folder.exists()}),
        )
    if (folder / "result.json").is_file():
        _require_same(name, folder, row)
        say(f"{name}: complete in {folder}")
        return folder
    if (folder / _DIVERGED).is_file():
        _require_same(name, folder, row)
        return folder
    say(f"{name}: {folder}")
    with redirect_stdout(sys.stderr):  # the last line of stdout is this verb's
        try:
            verb.run(row)
        except StoppedError:
            raise StoppedError("stopped as asked; the same command goes on where it was") from None
        except DivergedError as error:
            with replace_file(folder / _DIVERGED) as temporary:
                temporary.write_text(json.dumps({"error": with_flags(str(error)), "config": asdict(row)}))
    return folder


def _require_same(name: str, folder: Path, row: Any) -> None:
    """Refuse a row that was made, or diverged, with other settings.

    Raises:
        InputError: the settings differ; each is named.
    """
    from repquant.report.record import read_record

    diverged = folder / _DIVERGED
    before = _divergence(folder)["config"] if diverged.is_file() else read_record(folder / "result.json").config
    now = json.loads(json.dumps(asdict(row)))
    differing = [key for key in now if key not in _OF_THE_MACHINE and before.get(key) != now[key]]
    if differing:
        changes = "; ".join(f"{key} was {before.get(key)} and is {now[key]} now" for key in differing)
        raise InputError(f"row {name} in {folder} has other settings: {changes}. Choose another output folder")


def _divergence(folder: Path) -> dict[str, Any]:
    """Read what `_complete` left for a training that diverged.

    Raises:
        InputError: the file is damaged.
    """
    from repquant.regular_files import read_regular

    path = folder / _DIVERGED
    try:
        content = json.loads(read_regular(path, _MOST_BYTES))
        if not (isinstance(content["error"], str) and isinstance(content["config"], dict)):
            raise ValueError("other entries")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path} is damaged; remove {folder} to train the row again") from error
    return {"error": content["error"], "config": content["config"]}


def _seeds(given: str) -> list[int]:
    try:
        seeds = [int(seed) for seed in given.split(",")]
    except ValueError:
        seeds = []
    if not seeds or not all(seed in SEED for seed in seeds):
        raise InputError(f"--seeds {shortened(given)} was given; allowed are integers {SEED}, with commas")
    return seeds


def _qat_settings(name: str, seed: int, options: Options) -> dict[str, Any]:
    settings = {"batch_size": options.training_batch, "epochs": options.epochs, "seed": seed} | QAT_ROWS[name]
    if name == "plain-tuned":
        settings["learning_rate"] = options.training_rate * _THOUSANDTH
    if name in ("equivalent-kernel", "plain-distilled"):
        settings["epochs"] = options.equivalent_epochs
    if name == "inserted-bn":
        settings["freeze_epochs"] = options.epochs / 2
    return settings


def _options(kind: Any, values: Mapping[str, Any]) -> Any:
    """Make the options of a verb from those values that it knows."""
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in known})
