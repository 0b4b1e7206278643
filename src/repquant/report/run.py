"""What a page tells about: one run, from its folder or from the library."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from repquant.errors import InputError, visible
from repquant.methods.sensitivity import Sensitivity
from repquant.report.analysis import Analysis, read_analysis
from repquant.report.record import Record, read_record
from repquant.report.thumbnails import FILE, Thumbnails, read_thumbnails

RECORD, ANALYSIS = "result.json", "analysis.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run. What it does not have is None or empty.

    Attributes:
        name: tells it from other runs on the page.
        record: of the models that it made, and what they reach.
        analysis: of where quantization loses.
        sensitivity: the same, as the library gives it.
        thumbnails: pictures of the images that the record names.
        command: that repeats it.
        analyze: command that would analyze it.
    """

    name: str
    record: Record | None = None
    analysis: Analysis | None = None
    sensitivity: Sensitivity | None = None
    thumbnails: Thumbnails = field(default_factory=lambda: Thumbnails(images={}))
    command: str | None = None
    analyze: str | None = None

    @property
    def measured(self) -> Sensitivity | None:
        """Where quantization loses, from either source."""
        return self.sensitivity if self.analysis is None else self.analysis.sensitivity

    @property
    def source(self) -> Record | Analysis | None:
        """What holds the configuration and the environment."""
        return self.record or self.analysis


def read_run(path: Path) -> Run:
    """Read the folder of a run: its record, its analysis, also from a folder `analysis` within it, and its pictures.

    Raises:
        InputError: there is neither a record nor an analysis, or one of the files can't be used; the file is named.
    """
    folder = path.parent if path.name in (RECORD, ANALYSIS) else path
    analyses = [file for file in (folder / ANALYSIS, folder / "analysis" / ANALYSIS) if file.exists()]
    has_record = (folder / RECORD).exists()
    if not (has_record or analyses):
        raise InputError(f"run {path} holds neither {RECORD} nor {ANALYSIS}; give the folder of a run")
    return Run(
        name=visible(folder.resolve().name, keep=""),
        record=read_record(folder / RECORD) if has_record else None,
        analysis=read_analysis(analyses[0]) if analyses else None,
        thumbnails=read_thumbnails(folder / FILE) if (folder / FILE).exists() else Thumbnails(images={}),
    )


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read several runs; those with equal names are told apart by their paths.

    An analysis in a folder of its own goes to the run of the same weights, where it is clear which one that is.

    Raises:
        InputError: see `read_run`; or a path was given twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("a run was given twice; give each one once")
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    told_apart = [
        replace(run, name=visible(str(path), keep="")) if names.count(run.name) > 1 else run
        for run, path in zip(runs, paths, strict=True)
    ]
    return _paired(told_apart)


def _paired(runs: Sequence[Run]) -> list[Run]:
    """Give an analysis to the run of the same weights, where there is one such run and it has none."""
    found = {run.name: run for run in runs}
    for run in runs:
        if run.record is not None or run.analysis is None:
            continue
        weights = run.analysis.inputs.get("weights")
        owners = [
            other
            for other in found.values()
            if other.record is not None and other.record.inputs.get("weights") == weights is not None
        ]
        if len(owners) == 1 and owners[0].analysis is None:
            found[owners[0].name] = replace(owners[0], analysis=run.analysis)
            del found[run.name]
    return list(found.values())
