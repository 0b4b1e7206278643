import json
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np

from repquant.bench import environment as module
from repquant.bench.environment import environment, machine_lines


def test_says_what_a_measurement_depends_on():
    facts = environment()
    assert facts["packages"]["numpy"] == np.__version__ == version("numpy")
    assert all(facts["packages"].values())
    assert 1 <= facts["cores"] <= os.cpu_count()
    assert facts["torch_threads"] >= 1
    assert isinstance(facts["cpu_int8_flags"], list)


def test_engines_tell_their_kernels():
    class Telling:
        def integer_kernels(self):
            return ["tiles_i8"]

    assert environment({"a": Telling(), "b": object()})["integer_kernels"] == {"a": ["tiles_i8"]}
    assert environment()["integer_kernels"] == {}


def test_is_strict_json_and_names_no_path_of_the_machine():
    text = json.dumps(environment(), allow_nan=False)
    assert json.loads(text) == environment()
    for path in (Path.home(), Path.cwd(), Path(module.__file__).parent):
        assert str(path) not in text


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr(module, "_PACKAGES", ("numpy", "no-such-package"))
    assert environment()["packages"] == {"numpy": np.__version__, "no-such-package": None}


def test_lines_under_a_table():
    facts = environment() | {
        "cpu": None,
        "machine": "x86",
        "cores": 2,
        "torch_threads": 1,
        "repquant": "1",
        "python": "3",
    }
    facts |= {"cpu_int8_flags": ["avx_vnni"], "packages": {"numpy": "2", "openvino": None}}
    assert machine_lines(facts, 0.5) == [
        "- x86 (avx_vnni), 2 cores, 1 threads in torch, load average 0.5 before the start",
        "- repquant 1, python 3, numpy 2",
    ]
    assert machine_lines(facts | {"cpu_int8_flags": []}, 0.5)[0].startswith("- x86, 2 cores")
