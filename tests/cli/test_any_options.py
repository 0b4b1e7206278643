"""Random values for the options of every verb: each is refused in a sentence, or gets as far as the first batch."""

import functools
import importlib
import os
import random
import re
import shutil
from dataclasses import MISSING, fields
from typing import get_type_hints

import numpy as np
import onnx
import pytest
from captured_once import PLACES, capture_once
from onnx import TensorProto, helper, numpy_helper

from repquant.cli import convert, main
from repquant.cli.verbs import module_of
from repquant.data import loading
from repquant.errors import InputError

TRIES = 300
NUMBERS = (
    "0", "-0", "1", "-1", "2", "7", "0.5", "1e-320", "1e30", "1e400", "-1e400", "nan", "inf", ".inf", ".nan", "1_000",
    "0x10", "1.5", "٣", "2147483648", "9223372036854775808", "18446744073709551616", "9" * 30, "9" * 5000,
)  # fmt: skip
TEXTS = (
    "", " ", "null", "~", "true", "[]", "{}", "[1", "{a", "&a", "*a", "&a [*a]", "!!python/object/apply:os.abort []",
    "é" * 9, "😀", "\x1b[31mred", "a\0b", "a\nb", "\udc80", "x" * 300, "x" * 5000, "x" * 10**5, "[" * 500, "-", "--x",
    "0:96", "n2m9", "n0m0", "first,last", ",", "all", "pytorch", "max", "none", "builtin", "%s", "{0}", "$HOME",
)  # fmt: skip
TRIPLES = ("0.5,0.5,0.5", "[1,1]", "[.inf,1,1]", "nan,0,0", "1e30,0,0", "[[1],2,3]", "a,b,c")
PATHS = ("/", "/dev/zero", "/proc/self/mem", ".", "..", "pipe", "loop", "folder", "missing/deep", "file", "~")


OF_VERBS = {
    "convert": {"output": "out.pth"},
    "export": {"output": "out.onnx", "calibrator": "max"},
    "insert-bn": {"output": "out.safetensors"},
    "engine": {"output": "out.engine", "file": "model.onnx"},
    "check": {"file": "model.onnx"},
    "benchmark": {"files": "model.onnx", "rounds": "1", "runtimes": "onnxruntime", "output": "out.json"},
    "report": {"runs": "folder", "output": "out.html"},
    "train": {"held_back_images": "0"},
    "qat": {"held_back_images": "0"},
}


EMPTY_RUN = ["out", "out/run", "out/run/recipe.yaml"]
"""What a training leaves that has begun, and a folder that is as good as new."""


class ReachedError(InputError):
    """The options were accepted: here the work would begin."""


@pytest.fixture
def reach(monkeypatch, tmp_path):
    """Stop every verb where its work begins, in a folder with traps."""

    def stop(*_, **__):
        raise ReachedError("reached")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading._AheadLoader, "__iter__", stop)
    monkeypatch.setattr("repquant.export.files.export_file", stop)
    monkeypatch.setattr("repquant.runtimes.tensorrt_build.build_engine", stop)
    monkeypatch.setattr(importlib.import_module("repquant.benchmark"), "benchmark", stop)
    monkeypatch.setattr("repquant.report.run.read_runs", stop)
    monkeypatch.setattr(convert, "_difference", stop)
    for place in PLACES:
        monkeypatch.setattr(place, capture_once)
    monkeypatch.setattr(main, "build_parser", functools.cache(main.build_parser))  # takes most of the time
    os.mkfifo("pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    images, pixels = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in ("a", "b"))
    grid = [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.int8(0), "zero")]
    nodes = [
        helper.make_node("QuantizeLinear", ["a", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["b"]),
    ]
    graph = helper.make_graph(nodes, "small", [images], [pixels], grid)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), "model.onnx")


def valid_options(kind, weights, photographs):
    """What the verb needs, and small values for what takes time."""
    known = {
        "arch": "RepVGG-tiny", "num_classes": "2", "weights": str(weights), "data": str(photographs),
        "output": "out/run", "target": "onnxruntime", "image_size": "32", "crop_ratio": "1.0", "batch_size": "4",
        "calibration_images": "4", "rounding_images": "4", "analysis_images": "4", "held_back_images": "4",
        "runtimes": "pytorch", "epochs": "1",
    }  # fmt: skip
    return {field.name: known[field.name] for field in fields(kind) if field.name in known}


def draw(dice, hint, name):
    if hint is bool:
        return dice.choice(("true", "false", "", "maybe", "1", "null"))
    if hint not in (str, int, float):
        return dice.choice((*TRIPLES, *NUMBERS, *TEXTS))
    if hint is str and dice.random() < 0.5:
        return dice.choice(PATHS)
    if hint is str or dice.random() < 0.2:
        return dice.choice(TEXTS)
    return dice.choice(NUMBERS)


def problem(verb: str, status: int, out: str, err: str) -> str:
    """Say what is wrong with a refusal; nothing where it is a sentence, on stderr alone, and the status one of two."""
    last = err.strip().splitlines()[-1] if err.strip() else ""
    if "Traceback" in err or "fault of repquant" in err:
        return "a fault of repquant"
    if "\x1b" in err or len(last) > 4000:
        return "shows what a terminal obeys, or all of a long text"
    if status not in (1, 2) or out:
        return "is neither done nor refused"
    return "" if re.search(rf"^(repquant( {verb})?|error): \S", err, re.MULTILINE) else "says nothing"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", main.VERBS)
def test_any_values(verb, reach, repquant, weights, photographs, tmp_path, monkeypatch, record_property):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kind = module_of(verb).Options
    hints = get_type_hints(kind)
    by_place = {field.name for field in fields(kind) if field.metadata.get("positional")}
    base = valid_options(kind, weights, photographs)
    base |= OF_VERBS.get(verb, {})
    failures: list[str] = []
    dice, counts = random.Random(verb), {"tries": 0, "refusals": 0, "accepted": 0, "failures": 0}
    assert {field.name for field in fields(kind) if field.default is MISSING} <= base.keys()
    names = [field.name for field in fields(kind)]
    for _ in range(TRIES):
        given = dict(base)
        for name in dice.sample(names, min(len(names), dice.choice((0, 1, 1, 1, 2, 3)))):
            given[name] = draw(dice, hints[name], name)
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if name not in by_place]
        arguments = [*flags, *(value for name, value in given.items() if name in by_place)]
        status, out, err = repquant(verb, *arguments)
        counts["tries"] += 1
        is_accepted = err.strip().endswith("reached") or (verb == "check" and status == 0)
        wrong = "" if is_accepted else problem(verb, status, out, err)
        found = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")]
        left = sorted(name for name in found if "out" in name and "/tensorboard" not in name)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        if left != (EMPTY_RUN if is_accepted and verb in ("train", "qat") and left else []):
            wrong = f"leaves {left}"
        counts["failures" if wrong else "accepted" if is_accepted else "refusals"] += 1
        if wrong:
            failures.append(f"{wrong}: {verb} {arguments}: {status}\n{out}{err[-3000:]}")
    record_property("counts", counts)
    assert not failures, "\n\n".join(failures)
    assert counts["accepted"] > 0
