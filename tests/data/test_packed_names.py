import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repquant.data.packed_names import PackedNames

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"])))


@given(NAMES, NAMES)
def test_it_is_the_sequence_that_was_packed(first, second):
    packed = PackedNames.concatenate([PackedNames.pack(first), PackedNames.pack([]), PackedNames.pack(second)])
    names = first + second
    assert list(packed) == names
    assert len(packed) == len(names)
    assert list(pickle.loads(pickle.dumps(packed))) == names
    assert list(packed.part(len(first), len(names))) == second
    assert packed[1:] == names[1:]
    if names:
        assert packed[-1] == names[-1]
    with pytest.raises(IndexError):
        packed[len(names)]


def test_a_name_that_is_not_utf8_survives():
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    assert PackedNames.pack(["a", name])[1] == name


def test_nothing_concatenated_is_empty():
    assert list(PackedNames.concatenate([])) == []


def test_a_million_names_take_the_bytes_of_their_letters_and_eight_more_each():
    packed = PackedNames.pack(f"n{number:08d}" for number in range(1000))
    assert packed.content.nbytes + packed.starts.nbytes == 1000 * (9 + 8) + 8


@pytest.mark.parametrize("starts", [[], [1, 2], [0, 1], [0, 3, 2]])
def test_starts_that_do_not_fit_are_refused(starts):
    with pytest.raises(ValueError, match="do not fit"):
        PackedNames(np.zeros(2, np.uint8), np.array(starts, np.int64))
