import dataclasses
import itertools

import pytest

from repquant.models.spec import ArchSpec, BlockSpec


def arch(**changes: object) -> ArchSpec:
    a0 = ArchSpec(name="A0", blocks=(2, 4, 14, 1), widths=(0.75, 0.75, 0.75, 2.5))
    return dataclasses.replace(a0, **changes)


def test_channels_of_a0() -> None:
    spec = arch()
    assert spec.stem == BlockSpec(in_channels=3, out_channels=48, stride=2, groups=1, squeeze_excite=False)
    assert [stage[-1].out_channels for stage in spec.stages] == [48, 96, 192, 1280]
    assert [len(stage) for stage in spec.stages] == [2, 4, 14, 1]
    assert spec.features == 1280


def test_stem_has_at_most_64_channels_and_the_first_stage_widens() -> None:
    spec = arch(widths=(2.5, 2.5, 2.5, 5))
    assert spec.stem.out_channels == 64
    assert (spec.stages[0][0].in_channels, spec.stages[0][0].out_channels) == (64, 160)


def test_each_block_takes_what_the_one_before_gives() -> None:
    spec = arch()
    blocks = [spec.stem, *(block for stage in spec.stages for block in stage)]
    assert all(b.in_channels == a.out_channels for a, b in itertools.pairwise(blocks))


def test_only_the_first_block_of_a_stage_has_stride_2() -> None:
    for stage in arch().stages:
        assert [block.stride for block in stage] == [2] + [1] * (len(stage) - 1)


def test_groups_are_on_even_layer_indices_2_to_26_counted_from_1_after_the_stem() -> None:
    spec = arch(blocks=(8, 14, 24, 1), groups=4)
    grouped = [
        index
        for index, block in enumerate((block for stage in spec.stages for block in stage), start=1)
        if block.groups == 4
    ]
    assert spec.stem.groups == 1
    assert grouped == list(range(2, 27, 2))


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "stride", "expected"),
    [(8, 8, 1, True), (8, 8, 2, False), (8, 16, 1, False), (8, 16, 2, False)],
)
def test_identity_needs_equal_shapes(in_channels: int, out_channels: int, stride: int, expected: bool) -> None:
    block = BlockSpec(in_channels=in_channels, out_channels=out_channels, stride=stride, groups=1, squeeze_excite=False)
    assert block.has_identity is expected


def test_repvggplus_splits_the_third_stage_and_has_no_squeeze_excite_before_the_relu() -> None:
    spec = arch(block="plus", blocks=(8, 14, 24, 1))
    assert [len(stage) for stage in spec.stages] == [8, 14, 12, 12, 1]
    assert [stage[0].stride for stage in spec.stages] == [2, 2, 2, 1, 2]
    assert all(block.post_squeeze_excite and not block.squeeze_excite for stage in spec.stages for block in stage)
    assert spec.stem.post_squeeze_excite


def test_kind_and_position_of_each_block() -> None:
    spec = arch(block="repopt")
    assert (spec.stem.kind, spec.stem.position) == ("repopt", 0)
    assert [block.position for block in spec.stages[1]] == [0, 1, 2, 3]
    assert {block.kind for stage in spec.stages for block in stage} == {"repopt"}


def test_squeeze_excite_is_in_every_block_and_the_stem() -> None:
    spec = arch(squeeze_excite=True)
    assert all(block.squeeze_excite for block in (spec.stem, *(b for stage in spec.stages for b in stage)))
