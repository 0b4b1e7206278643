import pytest

from repquant.errors import InputError
from repquant.models.network import build
from repquant.models.spec import ArchSpec
from repquant.train.task import FloatTask


def network(block: str = "repvgg"):
    return build(ArchSpec(name="test", blocks=(1, 1, 2, 1), widths=(0.25,) * 4, block=block), 2)


@pytest.mark.parametrize("block", ["qarepvgg", "repopt", "repopt-search"])
def test_the_custom_l2_needs_blocks_of_repvgg(recipe, block):
    FloatTask(network(block), recipe())
    with pytest.raises(InputError, match="`custom_l2` is for the blocks of RepVGG, and RepVGG-test has none"):
        FloatTask(network(block), recipe(custom_l2=True))


@pytest.mark.parametrize("block", ["repvgg", "plus"])
def test_the_custom_l2_is_for_repvgg_and_repvggplus(recipe, block):
    FloatTask(network(block), recipe(custom_l2=True))


@pytest.mark.parametrize(("block", "parts"), [("repvgg", 5), ("plus", 6)])
def test_all_parts_but_the_heads_can_be_frozen(recipe, block, parts):
    task = FloatTask(network(block), recipe(freeze_stages=parts))
    trained = {name.split(".")[0] for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    assert trained == {"head"} | ({"auxiliary"} if block == "plus" else set())
    with pytest.raises(InputError, match=rf"`freeze_stages={parts + 1}` was given; allowed is from 0 to {parts} for"):
        FloatTask(network(block), recipe(freeze_stages=parts + 1))
