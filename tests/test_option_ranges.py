"""Every number that a person can give has a range, and it is checked in one place."""

import importlib
from dataclasses import MISSING, dataclass, field, fields
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from repquant.cli.main import VERBS
from repquant.errors import InputError
from repquant.option_ranges import Names, Numbers, check_ranges


def options_of(verb):
    return importlib.import_module(f"repquant.cli.{verb.replace('-', '_')}").Options


@pytest.mark.parametrize("verb", VERBS)
def test_every_number_of_a_verb_has_a_range_that_its_default_lies_in(verb):
    hints = get_type_hints(options_of(verb))
    for each in fields(options_of(verb)):
        hint = hints[each.name]
        if hint in (str, bool, tuple[str, ...]) or get_origin(hint) is Literal:
            assert each.default is MISSING or get_origin(hint) is not Literal or each.default in get_args(hint)
            continue
        allowed = each.metadata.get("allowed")
        assert isinstance(allowed, Numbers), each.name
        for number in each.default if isinstance(each.default, tuple) else (each.default,):
            assert number in allowed, each.name


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (Numbers(1, 10), (1, 5.5, 10), (0, 11, -1, float("nan"), float("inf"), 10**30), "from 1 to 10"),
        (Numbers(0, 1, below=True), (0, 0.999), (1, -0.1), "from 0 to less than 1"),
        (Numbers(0, 5000, above=True), (1e-300, 5000), (0, 5001), "more than 0 and at most 5,000"),
        (Numbers(0.5, 2, or_zero=True), (0, 0.5, 2), (0.1, -0.0001), "0, or from 0.5 to 2"),
    ],
)
def test_ranges(allowed, inside, outside, words):
    assert all(number in allowed for number in inside)
    assert not any(number in allowed for number in outside)
    assert str(allowed) == words


@dataclass(frozen=True, kw_only=True)
class Options:
    batch_size: int = field(default=1, metadata={"allowed": Numbers(1, 8)})
    mean: tuple[float, float, float] = field(default=(0, 0, 0), metadata={"allowed": Numbers(-1, 1)})
    output: str = ""
    runtimes: str = field(default="all", metadata={"allowed": Names(("pytorch", "openvino"))})
    device: Literal["cpu", "cuda"] = "cpu"
    free: int = 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(batch_size=9), "`batch_size=9` was given; allowed is from 1 to 8"),
        (Options(mean=(0, 2, 0)), r"`mean=\(0, 2, 0\)` was given; allowed for each of them is from -1 to 1"),
        (Options(batch_size=10**5000), "`batch_size` with thousands of digits was given"),
        (Options(output="a\0b"), r"`output='a\\x00b'` was given; control characters are not allowed"),
        (Options(device="tpu"), "`device='tpu'` was given; allowed is one of cpu, cuda"),
        (Options(runtimes="openvino,x"), "`runtimes`: 'x' was given; allowed are pytorch, openvino, several with comm"),
        (Options(output="x" * 5000), "`output` has 5,000 characters; allowed are 4,096"),
    ],
)
def test_the_message_names_the_option_the_value_and_the_range(options, message):
    with pytest.raises(InputError, match=message):
        check_ranges(options)
    check_ranges(Options(free=-(10**100), output="ä b"))
