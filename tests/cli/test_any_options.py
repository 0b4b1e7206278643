"""Random values for the options of every verb: each is refused in a sentence, or gets as far as the first batch."""

import functools
import os
import random
import re
from dataclasses import MISSING, fields
from typing import get_type_hints

import pytest

from repquant.cli import convert, main
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
    monkeypatch.setattr(convert, "_difference", stop)
    monkeypatch.setattr(main, "build_parser", functools.cache(main.build_parser))  # takes most of the time
    os.mkfifo("pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")


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


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", main.VERBS)
def test_any_values(verb, reach, repquant, weights, photographs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kind = main._module(verb).Options
    hints = get_type_hints(kind)
    base = valid_options(kind, weights, photographs)
    if verb in ("convert", "export", "insert-bn"):
        base["output"] = {"convert": "out.pth", "export": "out.onnx", "insert-bn": "out.safetensors"}[verb]
    if verb in ("train", "qat"):
        base["held_back_images"] = "0"
    failures: list[str] = []
    dice, counts = random.Random(verb), {"tries": 0, "refusals": 0, "reached": 0, "failures": 0}
    assert {field.name for field in fields(kind) if field.default is MISSING} <= base.keys()
    for _ in range(TRIES):
        given = dict(base)
        for name in dice.sample([field.name for field in fields(kind)], dice.choice((0, 1, 1, 1, 2, 3))):
            given[name] = draw(dice, hints[name], name)
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        status, out, err = repquant(verb, *arguments)
        counts["tries"] += 1
        last = err.strip().splitlines()[-1] if err.strip() else ""
        told = f"{verb} {arguments}: {status}\n{err[-3000:]}"
        if "Traceback" in err or "fault of repquant" in err or "\x1b" in err or len(last) > 4000:
            counts["failures"] += 1
            failures.append(told)
        elif last.endswith("reached"):
            counts["reached"] += 1
        else:
            assert status in (1, 2), told
            assert re.search(rf"^(repquant( {verb})?|error): \S", err, re.MULTILINE), told
            assert out == "", told
            counts["refusals"] += 1
        assert not list(tmp_path.glob("out*")), told
    with capsys.disabled():
        print(f"\n{verb}: {counts}")
    assert not failures, "\n\n".join(failures)
    assert counts["reached"] > 0
