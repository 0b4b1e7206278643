"""Text from files, in the form to show."""

import pytest

from repquant.errors import shortened, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("linear.weight", "linear.weight"),
        ("Größe 😀", "Größe 😀"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb", "a\\nb"),
        ("\udc80", "\\udc80"),
        ("x" * 1000, "x" * 120 + "... (1,000 characters)"),
    ],
)
def test_shortened(text, shown):
    assert shortened(text) == shown


def test_visible_keeps_lines():
    assert visible("a\nb\x1bc\r") == "a\nb\\x1bc\\r"
