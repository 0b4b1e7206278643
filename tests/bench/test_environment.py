import json
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np

from repquant.bench import environment as module
from repquant.bench.environment import environment


def test_says_what_a_measurement_depends_on():
    facts = environment()
    assert facts["packages"]["numpy"] == np.__version__ == version("numpy")
    assert all(facts["packages"].values())
    assert 1 <= facts["cores"] <= os.cpu_count()
    assert facts["torch_threads"] >= 1
    assert isinstance(facts["cpu_int8_flags"], list)


def test_is_strict_json_and_names_no_path_of_the_machine():
    text = json.dumps(environment(), allow_nan=False)
    assert json.loads(text) == environment()
    for path in (Path.home(), Path.cwd(), Path(module.__file__).parent):
        assert str(path) not in text


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr(module, "_PACKAGES", ("numpy", "no-such-package"))
    assert environment()["packages"] == {"numpy": np.__version__, "no-such-package": None}
