"""The library's messages as the command line shows them."""

import pytest

from repquant.cli.flags import with_flags
from repquant.errors import given


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (f"{given('batch_size', 0)} was given", "--batch-size 0 was given"),
        (f"{given('method', 'magic')} was given", "--method magic was given"),
        (f"{given('output', 'a`b')} was given", "--output a`b was given"),
        ("lower `accumulation_steps` or pass `sync_bn=True`", "lower --accumulation-steps or pass --sync-bn"),
        ("pass `custom_l2=False`", "pass --custom-l2 false"),
        ("keep it in float (`keep_float=('stem',)`)", "keep it in float (--keep-float stem)"),
        ("with `fast_int8_dot=True`", "with --vnni yes"),
        ("lower `workspace_mib`; write it with `stored_weights='float'`", "lower --workspace; write it with "
        "--tensorrt-weights float"),
        ("the method is `plain`, and `example` is no option", "the method is `plain`, and `example` is no option"),
        ("`repquant insert-bn` takes all", "`repquant insert-bn` takes all"),
    ],
)  # fmt: skip
def test_arguments_stand_as_a_person_types_them(message, shown):
    assert with_flags(message) == shown


def test_values_from_outside_can_be_shown():
    assert with_flags(given("seed", 10**5000)) == "--seed with thousands of digits"
    assert given("output", "x" * 300) == f"`output='{'x' * 119}... (302 characters)`"
