"""Names in a text, with commas."""

import pytest

from repquant.errors import InputError
from repquant.option_ranges import Names

ALLOWED = Names(("max", "mse", "entropy"))


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("max", ("max",)),
        ("mse,max", ("mse", "max")),
        (" mse , max ,", ("mse", "max")),
        ("max,max", ("max",)),
        ("all", ALLOWED.names),
    ],
)
def test_names_in_a_list(value, names):
    assert ALLOWED.split(value) == names


@pytest.mark.parametrize(
    ("value", "given"), [("median", "'median'"), ("max,Max,x", "'Max', 'x'"), ("", "no name"), ("max,all", "'all'")]
)
def test_names_that_are_not_allowed_are_all_named(value, given):
    with pytest.raises(InputError) as refused:
        ALLOWED.split(value)
    assert str(refused.value) == f"{given} was given; allowed are max, mse, entropy, several with commas, or all"


def test_all_may_stand_for_what_there_is():
    assert ALLOWED.split("all", ("mse",)) == ("mse",)
