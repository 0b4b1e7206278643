"""The page from the folder of a run, on the command line."""

import shlex

import pytest

from repquant.cli import ptq
from repquant.cli.command_line import analyze_command, command_line


def test_page_of_a_run(repquant, headline, ptq_run, tmp_path):
    output, _, _ = ptq_run
    page = tmp_path / "report.html"
    status, out, err = repquant("report", output, "--output", page)
    assert status == 0, err
    (run,) = headline(out)["runs"]
    assert run["name"] == "run"
    assert run["lost"] in err
    text = page.read_text()
    assert headline(out)["bytes"] == len(text.encode())
    assert "repquant ptq \\\n    --arch RepVGG-tiny" in text
    assert text.count("data:image/png;base64,") > 16 + 8  # calibration, and images that models disagree on
    status, _, err = repquant("report", output, "--output", page)
    assert status == 2
    assert "--overwrite" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing", "--output", "r.html"), "missing holds neither result.json nor analysis.json"),
        (("missing", "--output", "r.pdf"), "does not end in .html"),
        (("--output", "r.html"), "required: RUNS"),
    ],
)
def test_what_is_refused(repquant, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = repquant("report", *arguments)
    assert status == 2
    assert message in err


def test_the_command_of_a_record_is_what_was_typed():
    configuration = {
        "arch": "RepVGG-A0",
        "weights": "my weights.pth",
        "data": "/data",
        "target": "openvino",
        "output": "runs/a0",
        "mean": [0.5, 0.5, 0.5],
        "std": list(ptq.Options.std),
        "skip_unreadable": True,
        "calibrator": "mse",
        "of_another_version": 3,
    }
    words = shlex.split(command_line("ptq", configuration).replace("\\\n", ""))
    assert words[:2] == ["repquant", "ptq"]
    assert words[words.index("--weights") + 1] == "my weights.pth"
    assert "--mean" in words
    assert not {"--std", "--of-another-version"} & set(words)
    assert words[words.index("--skip-unreadable") + 1].startswith("--")
    analysis = analyze_command(configuration, "runs/a0")
    assert analysis.startswith("repquant analyze ")
    assert "--output runs/a0/analysis" in analysis
    assert "--calibrator" not in analysis
