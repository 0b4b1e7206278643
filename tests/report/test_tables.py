import io
from dataclasses import replace

from rich.console import Console

from repquant.report.tables import ACCURACY, COMPARISON, markdown_section, markdown_table, screen_table


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_markdown_table(record):
    header, rule, float_line, simulated, deployed = map(cells, markdown_table(record, COMPARISON).splitlines())
    assert len(header) == len(rule) == len(float_line) == len(simulated) == len(deployed)
    assert rule[0] == "---"
    assert rule[-1] == "---:"
    assert dict(zip(header, deployed, strict=True)) == {
        "model": "entropy",
        "runs in": "onnxruntime",
        "top-1 %": "85.55",
        "drop": "0.20",
        "95 % interval": "[-0.27, 0.68]",
        "agree %": "96.90",
        "KL x1000": "9.35",
        "SQNR dB": "24.0",
        "parity %": "99.95",
        "max steps": "0.60",
        "time s": "12.3",
        "size MB": "7.24",
    }
    assert float_line == ["float", "pytorch", "85.55", "-", "-", "-", "-", "-", "-", "-", "12.3", "-"]
    assert simulated[:2] == ["entropy", "simulated"]
    assert simulated[header.index("parity %")] == "-"


def test_screen_table_has_the_same_figures_in_80_columns(record):
    shown = render(record, width=80).splitlines()[3:]
    groups = {"float": ["pytorch"], "entropy": ["simulated", "onnxruntime"]}
    expected = iter(markdown_table(record, COMPARISON).splitlines()[2:])
    for calibrator, engines in groups.items():
        assert shown.pop(0).strip() == calibrator
        for engine in engines:
            figures = cells(next(expected))[1:]
            assert figures[0] == engine
            assert shown.pop(0).split() == " ".join(figures).split()
    assert not shown


def test_screen_table_says_what_the_columns_are(record):
    names, units = (line.split() for line in render(record, width=80).splitlines()[:2])
    assert names == ["top-1", "drop", "95", "%", "agree", "KL", "SQNR", "parity", "max", "time", "size"]
    assert units == ["%", "interval", "%", "x1000", "dB", "%", "steps", "s", "MB"]


def test_accuracy_of_given_models(record):
    given = replace(record.results[1], calibrator=None)
    record = replace(record, float_row=None, results=(given, replace(given, top1=None, top1_ci95=None, top5=None)))
    assert [cells(line) for line in markdown_table(record, ACCURACY).splitlines()] == [
        ["model", "runs in", "top-1 %", "95 % interval", "top-5 %", "images per s", "time s", "size MB"],
        ["---", "---", *["---:"] * 6],
        ["as given", "onnxruntime", "85.55", "[84.40, 86.60]", "99.00", "318", "12.3", "7.24"],
        ["as given", "onnxruntime", "-", "-", "-", "318", "12.3", "7.24"],
    ]
    assert render(record, width=60, columns=ACCURACY).splitlines()[3].strip() == "as given"


def render(record, width: int, columns=COMPARISON) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(screen_table(record, columns))
    return console.file.getvalue()


def test_section_says_what_it_was_measured_with(record):
    text = markdown_section(record, COMPARISON, "RepVGG-A0, custom L2")
    assert text.startswith("## RepVGG-A0, custom L2\n\n| model |")
    assert "- 3,925 images evaluated, 1 unreadable skipped, 512 for calibration (seed 0).\n" in text
    assert (
        "- AMD EPYC (avx512_vnni), 2 cores; repquant 0.1.0, python 3.11.7, torch 2.13.0, onnxruntime 1.32.0.\n" in text
    )
    assert "openvino" not in text
    assert text.endswith("- This CPU has VNNI.\n")


def test_section_names_the_kernels_that_engines_told_of(record):
    told = replace(record, environment=record.environment | {"integer_kernels": {"openvino": ["tiles_i8", "dot_i8"]}})
    text = markdown_section(told, COMPARISON, "RepVGG-A0")
    assert "onnxruntime 1.32.0; openvino multiplied integers with tiles_i8, dot_i8.\n" in text


def test_section_of_a_bare_record(record):
    bare = replace(record, float_row=None, results=(), skipped={}, calibration=None)
    assert "- 0 images evaluated.\n" in markdown_section(bare, COMPARISON, "Nothing")
