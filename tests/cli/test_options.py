import pytest

from repquant.cli.options import split_names
from repquant.errors import InputError

ALLOWED = ("max", "mse", "entropy")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("max", ("max",)),
        ("mse,max", ("mse", "max")),
        (" mse , max ,", ("mse", "max")),
        ("max,max", ("max",)),
        ("all", ALLOWED),
    ],
)
def test_names_in_a_list(value, names):
    assert split_names(value, ALLOWED, "calibrator") == names


@pytest.mark.parametrize(
    ("value", "given"), [("median", "'median'"), ("max,Max,x", "'Max', 'x'"), ("", "nothing"), ("max,all", "'all'")]
)
def test_names_that_are_not_allowed_are_all_named(value, given):
    with pytest.raises(InputError) as refused:
        split_names(value, ALLOWED, "calibrator")
    assert str(refused.value) == (
        f"calibrator: {given} was given; allowed are max, mse, entropy, several with commas, or all"
    )
