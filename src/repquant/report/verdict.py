"""A run in three sentences: what was lost, where, and what to do."""

from dataclasses import dataclass
from typing import Literal

from repquant.report.advice import NEGLIGIBLE_KL
from repquant.report.analysis import MOST, recovered_share, weights_share, worst_layer
from repquant.report.record import Record
from repquant.report.rows import Row
from repquant.report.run import Run

MINUS = "\N{MINUS SIGN}"
TREATMENT = ("equalization", "identity", "weight_ranges", "rounding")
"""Options that say what is done about the loss."""

_PARITY = 99.9  # percent; below it a runtime computes something else than what was simulated
_LARGE_DROP = 1.0  # points of top-1; images that can't rule it out are too few


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a reader wants to know first.

    Attributes:
        lost: what was lost, and whether it is within noise.
        within_noise: whether the interval of the drop holds zero; None where no drop was measured.
        mood: "good", "bad" where a loss is real, or "open" where that is not known, or not well.
        where: the loss comes from.
        next_step: what to do.
        row: that it is about; None where the run holds no quantized model.
    """

    lost: str
    within_noise: bool | None
    mood: Literal["good", "bad", "open"]
    where: str
    next_step: str
    row: Row | None


def verdict(run: Run) -> Verdict:
    """Judge a run by the model that is to be served."""
    row = None if run.record is None else served_row(run.record)
    within = None if row is None or row.drop_ci95 is None else row.drop_ci95[0] <= 0 <= row.drop_ci95[1]
    return Verdict(
        lost=_lost(run, row, within),
        within_noise=within,
        mood=_mood(row),
        where=_where(run),
        next_step=_next_step(run, row, within),
        row=row,
    )


def served_row(record: Record) -> Row | None:
    """Return the row that a headline is about.

    It runs in the target's runtime where that was measured, else in another one, else in the simulation; of several
    models it is the one with the smallest KL to float.
    """
    target = record.config.get("target")
    rows = [row for row in record.results if row.calibrator is not None]
    for chosen in (
        [row for row in rows if row.runtime == target],
        [row for row in rows if row.runtime != "pytorch"],
        rows,
    ):
        if chosen:
            return min(chosen, key=lambda row: float("inf") if row.kl is None else row.kl)
    return None


def _mood(row: Row | None) -> Literal["good", "bad", "open"]:
    if row is None or row.drop_ci95 is None:
        return "open"
    low, high = row.drop_ci95
    if low > 0:
        return "bad"
    return "good" if high <= _LARGE_DROP else "open"


def signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign, and zero without one."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{MINUS if value < 0 else '+'}{text}"


def _lost(run: Run, row: Row | None, within: bool | None) -> str:
    if row is None:
        kl = None if run.measured is None else run.measured.both.kl
        if kl is None:
            return "No quantized model was measured."
        return f"The network as it was analyzed has a KL to float of {1000 * kl:.2f} thousandths of a nat."
    who = f"INT8 ({row.calibrator}, {_place(row)})"
    if row.drop is None or row.drop_ci95 is None or row.top1 is None:
        return f"{who} {_unlabelled(row)}"
    before, low, high = row.top1 + row.drop, *row.drop_ci95
    change = (
        "keeps" if round(row.drop, 2) == 0 else f"{'loses' if row.drop > 0 else 'gains'} {abs(row.drop):.2f} points of"
    )
    noise = "within noise" if within else "more than noise"
    return (
        f"{who} {change} top-1 ({before:.2f} to {row.top1:.2f} %): {noise}, as the 95 % interval of the drop on "
        f"{row.images:,} images runs from {signed(low)} to {signed(high)}."
    )


def _unlabelled(row: Row) -> str:
    if row.metric is not None and row.metric_drop is not None:
        return f"changes the metric by {signed(-row.metric_drop, 4)} to {row.metric:.4f}; there is no interval for it."
    if row.agreement is not None:
        return (
            f"names the class that float names on {row.agreement:.2f} % of {row.images:,} images; without labels "
            "nothing says whether that costs accuracy."
        )
    if row.sqnr_db is not None:
        return f"differs from float by a noise {row.sqnr_db:.1f} dB below the signal; there are no classes to compare."
    return "was not compared with a float model."


def _place(row: Row) -> str:
    return "simulated" if row.runtime == "pytorch" else f"in {row.runtime}"


def _where(run: Run) -> str:
    measured = run.measured
    if measured is None:
        return "Not analyzed."
    whole, share, worst = measured.both.harm, weights_share(measured), worst_layer(measured)
    if whole < NEGLIGIBLE_KL:
        return f"Nowhere in particular: the KL to float of the network as it was analyzed is {whole:.1e}."
    parts = []
    if share is not None:
        what, part = ("weights", share) if share >= MOST else ("activations", 1 - share)
        parts.append(f"{100 * part:.0f} % of the KL to float comes from the {what}")
    if worst is not None and (part := recovered_share(measured, worst)) > 0:
        parts.append(f"{worst.name} costs most: in float it would take {100 * part:.0f} % away")
    return f"{_before(run)}{'; '.join(parts)}." if parts else "From no layer by itself."


def _before(run: Run) -> str:
    """Say so where the network was analyzed with less done about the loss than in the run."""
    if run.record is None or run.analysis is None:
        return ""
    given, done = run.analysis.config, run.record.config
    differing = [
        f"{name.replace('_', ' ')} {given.get(name)}" for name in TREATMENT if given.get(name) != done.get(name)
    ]
    return f"As it was analyzed, with {', '.join(differing)}: " if differing else ""


def _next_step(run: Run, row: Row | None, within: bool | None) -> str:
    differs = ""
    if row is not None and row.parity is not None and row.parity < _PARITY:
        differs = f" In {row.runtime} {100 - row.parity:.2f} % of the images get another class than was simulated."
    if row is not None and row.drop is not None and row.drop_ci95 is not None and (within or row.drop <= 0):
        if row.drop_ci95[1] > _LARGE_DROP:
            images, most = f"{row.images:,}", f"{row.drop_ci95[1]:.1f}"
            return f"Measure on more images: {images} can't rule out a loss of {most} points.{differs}"
        return f"Nothing: take {row.model or 'the model'}.{differs}"
    if run.analysis is not None:
        return f"{run.analysis.advice}{differs}"
    if run.measured is None:
        return f"Find out where it is lost: repquant analyze, see below.{differs}"
    return f"Look below at the layers that lose most.{differs}"
