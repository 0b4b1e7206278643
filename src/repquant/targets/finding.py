"""What a check finds in a file."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from repquant.errors import shortened

Severity = Literal["refused", "inexact", "runs in float", "slower"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a target asks of a file.

    Attributes:
        name: short, of lower-case words joined by hyphens.
        severity: what happens where it is not met. "refused": no engine, or one that silently computes something else.
            "inexact": other integers than the file's on some hardware. "runs in float", "slower": as it says.
        source: where it is written: documentation, or code of the target.
        remedy: what to do.
    """

    name: str
    severity: Severity
    source: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A place where a file does not meet a rule.

    Attributes:
        rule: that is not met.
        node: name of the ONNX node, or of its first output where it has none; "" for the file as a whole.
        detail: what is there.
    """

    rule: Rule
    node: str
    detail: str

    @property
    def is_refused(self) -> bool:
        """Whether the target does not take the file."""
        return self.rule.severity == "refused"

    def as_dict(self) -> dict[str, Any]:
        """Return the finding for JSON, flat."""
        rule = asdict(self.rule)
        return {"node": self.node, "rule": rule.pop("name"), **rule, "detail": self.detail}

    def __str__(self) -> str:
        """Return it for a person."""
        place = shortened(self.node) or "the file"
        return f"{self.rule.severity}: {place}: {self.detail} [{self.rule.name}]; {self.rule.remedy}"
