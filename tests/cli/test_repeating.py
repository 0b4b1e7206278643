"""--config result.json."""

import json

import pytest

from repquant.cli import ptq
from repquant.cli.repeating import with_recorded_options


@pytest.fixture
def asked(monkeypatch):
    """The options that `ptq` was run with."""
    asked = []
    monkeypatch.setattr(ptq, "run", asked.append)
    return asked


@pytest.mark.parametrize("form", [("--config", "{}"), ("--config={}",)])
def test_a_record_gives_the_options_of_its_run(repquant, asked, tmp_path, form):
    config = {"weights": "w.pth", "data": "d", "target": "tensorrt", "output": "run", "mean": [0.1, 0.2, 0.3]}
    config |= {"calibration_images": 16, "benchmark": True}
    record = tmp_path / "result.json"
    record.write_text(json.dumps({"schema_version": 1, "config": config, "results": []}))
    status, _, err = repquant("ptq", *(part.format(record) for part in form), "--output", "again")
    assert status == 0, err
    (options,) = asked
    assert (options.target, options.mean, options.benchmark) == ("tensorrt", (0.1, 0.2, 0.3), True)
    assert (options.calibration_images, options.output) == (16, "again")


@pytest.mark.parametrize(
    "content", ['{"target": "tensorrt"}', "no json", '{"schema_version": 1, "config": null}', "[1]"]
)
def test_what_is_no_record_is_left_as_it_is(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    given = ["ptq", "--config", str(tmp_path / "x.json"), "--output", "x.json"]
    assert with_recorded_options(given) == given
