"""The page in a browser: nothing is complained about, tables sort, and no width needs the page to be scrolled aside."""

import re
import shutil
import subprocess

import pytest
from test_page import Document, whole_run

from repquant.report.page import html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium in PATH; Debian's package is called so"),
]

POLICY = re.compile(r"<meta http-equiv[^>]*>")
CLICKS = """
<script>
const headings = [...document.querySelectorAll("#results th")].filter((each) => each.querySelector("button"));
const column = headings.find((each) => each.textContent === "KL x1000");
column.querySelector("button").click();
column.querySelector("button").click();
document.querySelector(".profiles").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
</script>
"""
WIDTHS = """
<script>
const widths = [390, 768, 1280];
addEventListener("load", () => {
  for (const width of widths) {
    const frame = document.getElementById(`w${width}`);
    document.title += ` ${width}:${frame.contentDocument.documentElement.scrollWidth}`;
  }
});
</script>
<iframe id="w390" width="390"></iframe><iframe id="w768" width="768"></iframe><iframe id="w1280" width="1280"></iframe>
"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Open a page and return the document that its scripts leave, and what the console says."""
    profile = tmp_path_factory.mktemp("profile")

    def browse(path):
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom",
            "--enable-logging=stderr", "--allow-file-access-from-files", f"--user-data-dir={profile}", path.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return browse


@pytest.fixture
def page(record):
    return html([whole_run(record), whole_run(record, name="second")])


def test_the_console_stays_empty_and_the_script_runs(browse, page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page)
    document, complaints = browse(path)
    assert complaints == []
    assert document.count("<button") > 20
    assert "<button" not in page


def test_a_click_sorts_and_an_arrow_selects_a_layer(browse, page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(POLICY.sub("", page).replace("</body>", f"{CLICKS}</body>"))
    document, complaints = browse(path)
    assert complaints == []
    found = Document(document)
    (results,) = [table for table in found.tables if "drop" in table[0]]
    order = [row[results[0].index("KL x1000")] for row in results[1:]]
    assert order[0] == "9.35"
    assert order[-2:] == [order[-1]] * 2 != ["9.35"] * 2  # float models have no KL: last, whichever the direction
    assert "descending" in [each.get("aria-sort") for each in found.all("th")]
    assert "stages.0: range/sigma 3.4, weight SQNR 22.0, input SQNR 46.3, only 0.50, all but 2.00" in found.text()


def test_no_width_makes_the_page_wider_than_the_window(browse, page, tmp_path):
    (tmp_path / "report.html").write_text(page)
    path = tmp_path / "widths.html"
    path.write_text(f"<title></title>{WIDTHS}".replace("></iframe>", ' src="report.html"></iframe>'))
    document, _ = browse(path)
    measured = dict(re.findall(r"(\d+):(\d+)", document))
    assert measured.keys() == {"390", "768", "1280"}
    assert all(int(needed) <= int(width) for width, needed in measured.items()), measured
