"""From values to places on a drawing."""

from dataclasses import dataclass
from math import ceil, floor, log10


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values from `low` to `high` on a line from `start` to `end`; values beyond are put at the ends.

    Attributes:
        low, high: of the values; on a logarithmic scale above 0.
        start, end: of the line, in units of the drawing.
        is_log: whether equal ratios take equal room.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value, to a hundredth."""
        low, high, at = (self._level(each) for each in (self.low, self.high, value))
        share = 0.5 if high == low else min(max((at - low) / (high - low), 0.0), 1.0)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, most: int = 6) -> list[float]:
        """Return at most so many round values within the scale, in steps of 1, 2 or 5 times a power of ten."""
        if self.high <= self.low:
            return [self.low]
        step = _round_step((self.high - self.low) / most)
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [round(place * step, 12) for place in range(first, last + 1)]

    def _level(self, value: float) -> float:
        return log10(max(value, self.low)) if self.is_log else value


def _round_step(least: float) -> float:
    power: float = 10.0 ** floor(log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
