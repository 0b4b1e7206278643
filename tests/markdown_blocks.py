"""The blocks of code in Markdown pages, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>run|not run: [^\n]+?) -->\n\n?)?^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: that it is in.
        line: of its first line of code.
        language: behind the fence.
        text: the code.
        note: of the comment in front of it: "run", "not run: and the reason", or "".
    """

    page: Path
    line: int
    language: str
    text: str
    note: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block, without comments and what is redirected."""
        words = [shlex.split(line, comments=True) for line in _lines(self.text.replace("\\\n", " "))]
        return [line[: line.index(">")] if ">" in line else line for line in words if line]


def _lines(text: str) -> list[str]:
    """Split where a command ends: at the end of a line and at `&&`, but not within quotes."""
    return re.findall(r"(?:'[^']*'|[^'\n&])+", text)


def blocks_in(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("text")) + 1
        yield Block(page, line, found["language"], found["text"], found["note"] or "")
