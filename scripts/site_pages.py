"""What the documentation site has beside docs/: hooks of mkdocs.

Pages keep the links that work in the repository; here they are turned to where the page is in the site.
"""

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from option_pages import field_table, verb_page, verb_table

from repquant.cli.verbs import VERBS

ROOT = Path(__file__).parent.parent
OUTSIDE = ("results/*.md", "recipes/README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages of the repository that the site takes besides those of docs/."""
EXAMPLES = "examples/**/*.py"

_LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"<!-- (verbs|options)(?: ([\w.]+))? -->")
_MADE: dict[str, Callable[[str], str]] = {"verbs": lambda _: verb_table(), "options": field_table}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, and those that are made."""
    for place, text in _pages():
        files.append(File.generated(config, place, content=text))
    _fill(config.nav, files)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site, and fill in what is made from options."""
    del config
    place = page.file.src_uri

    def turned(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(_home(place)), link[2]))
        found = _place(target, files)
        return link[0] if found is None else f"{link[1]}{_relative(found, place)}{link[3] or ''}"

    filled = _MARKER.sub(lambda marker: _MADE[marker[1]](marker[2] or ""), markdown)
    parts = _FENCE.split(filled)
    return "".join(part if number % 2 else _LINK.sub(turned, part) for number, part in enumerate(parts))


def _pages() -> Iterator[tuple[str, str]]:
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in sorted(ROOT.glob(EXAMPLES)):
        yield path.relative_to(ROOT).with_suffix(".md").as_posix(), _example(path)
    for verb in VERBS:
        yield f"reference/command-line/{verb}.md", verb_page(verb)


def _example(path: Path) -> str:
    """Return a program as a page under the first words that it says about itself."""
    text = path.read_text(encoding="utf-8")
    title = re.split(r"[.,:]?\n|[,:]", text.removeprefix('"""'), maxsplit=1)[0]
    return f"# {title}\n\n```python\n{text}```\n"


def _home(place: str) -> str:
    """Return where a page of the site lies in the repository."""
    return place if (ROOT / place).is_file() else f"docs/{place}"


def _place(path: str, files: Files) -> str | None:
    """Return where a file or folder of the repository lies in the site; None where it does not."""
    candidates = [path.removeprefix("docs/"), f"{path}/README.md"]
    if path.startswith("examples"):
        candidates.append(path.replace(".py", ".md"))
    return next((each for each in candidates if files.get_file_from_path(each)), None)


def _relative(target: str, place: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(place) or ".")


def _fill(nav: Any, files: Files) -> None:
    """Replace each entry of the navigation that ends in / by the pages of that folder, but for those that are named."""
    named = set(_leaves(nav))
    for entries in _lists(nav):
        filled = []
        for entry in entries:
            name, folder = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
            if not (isinstance(folder, str) and folder.endswith("/")):
                filled.append(entry)
                continue
            inside = [file.src_uri for file in files.documentation_pages() if file.src_uri.startswith(folder)]
            pages = sorted(each for each in inside if each not in named)
            filled += [{name: pages}] if name else pages
        entries[:] = filled


def _lists(nav: Any) -> Iterator[list[Any]]:
    if isinstance(nav, list):
        for entry in nav:
            yield from _lists(entry)
        yield nav
    elif isinstance(nav, dict):
        for value in nav.values():
            yield from _lists(value)


def _leaves(nav: Any) -> Iterator[str]:
    for entries in _lists(nav):
        for entry in entries:
            value = next(iter(entry.values())) if isinstance(entry, dict) else entry
            if isinstance(value, str):
                yield value
