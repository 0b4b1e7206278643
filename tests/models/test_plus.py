import pytest
import torch
from torch import Tensor, nn

from repquant.errors import InputError
from repquant.models.checkpoints import load_model, save_model
from repquant.models.network import RepVGG, build
from repquant.models.plus import AuxiliaryHead
from repquant.models.reparam import reparameterize
from repquant.models.spec import ArchSpec
from repquant.models.zoo import ARCHITECTURES

SPEC = ArchSpec(name="plus-test", blocks=(1, 2, 4, 1), widths=(0.25,) * 4, block="plus")
STAGES = {"stage1": (1, 16), "stage2": (2, 32), "stage3_first": (2, 64), "stage3_second": (2, 64), "stage4": (1, 128)}
"""Blocks and channels of SPEC by the official name of the stage."""


@pytest.fixture(autouse=True)
def _in_the_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, SPEC.name, SPEC)


@pytest.fixture
def model(randomize) -> RepVGG:
    return randomize(build(SPEC, 5))


def official_state(form: str) -> dict[str, Tensor]:
    """A state dict with the keys and shapes of the official repvggplus.py, listed without the code under test."""
    state: dict[str, Tensor] = {}

    def add_bn(prefix: str, channels: int) -> None:
        for leaf in ("weight", "bias", "running_mean"):
            state[f"{prefix}.{leaf}"] = torch.randn(channels)
        state[f"{prefix}.running_var"] = torch.rand(channels) + 0.5
        state[f"{prefix}.num_batches_tracked"] = torch.tensor(7)

    def add_block(prefix: str, inputs: int, outputs: int, identity: bool) -> None:
        for part, shape in (("down", (outputs // 4, outputs, 1, 1)), ("up", (outputs, outputs // 4, 1, 1))):
            state[f"{prefix}.post_se.{part}.weight"] = torch.randn(shape)
            state[f"{prefix}.post_se.{part}.bias"] = torch.randn(shape[0])
        if form == "deploy":
            state[f"{prefix}.rbr_reparam.weight"] = torch.randn(outputs, inputs, 3, 3)
            state[f"{prefix}.rbr_reparam.bias"] = torch.randn(outputs)
            return
        if identity:
            add_bn(f"{prefix}.rbr_identity", outputs)
        for branch, size in (("rbr_dense", 3), ("rbr_1x1", 1)):
            state[f"{prefix}.{branch}.conv.weight"] = torch.randn(outputs, inputs, size, size)
            add_bn(f"{prefix}.{branch}.bn", outputs)

    add_block("stage0", 3, 16, identity=False)
    inputs = 16
    for stage, (blocks, channels) in STAGES.items():
        for index in range(blocks):
            add_block(f"{stage}.blocks.{index}", inputs, channels, identity=index > 0 or stage == "stage3_second")
            inputs = channels
    state["linear.weight"], state["linear.bias"] = torch.randn(5, inputs), torch.randn(5)
    if form == "training":
        for stage in ("stage1", "stage2", "stage3_first"):
            channels = STAGES[stage][1]
            state[f"{stage}_aux.0.conv.weight"] = torch.randn(channels, channels, 3, 3)
            add_bn(f"{stage}_aux.0.bn", channels)
            state[f"{stage}_aux.3.weight"], state[f"{stage}_aux.3.bias"] = torch.randn(5, channels), torch.randn(5)
    return state


@pytest.mark.parametrize("form", ["training", "deploy"])
def test_official_checkpoint_is_read_and_written_under_the_same_keys(form, tmp_path) -> None:
    state = official_state(form)
    torch.save({"state_dict": state}, tmp_path / "official.pth")
    model = load_model(tmp_path / "official.pth", SPEC.name, 5)
    assert model.form == form
    save_model(model, tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_official_keys_reach_the_right_modules(tmp_path) -> None:
    state = official_state("training")
    torch.save(state, tmp_path / "official.pth")
    model = load_model(tmp_path / "official.pth", SPEC.name, 5)
    block = model.stages[3][1]
    assert torch.equal(block.conv3x3.conv.weight, state["stage3_second.blocks.1.rbr_dense.conv.weight"])
    assert torch.equal(block.post_se.up.bias, state["stage3_second.blocks.1.post_se.up.bias"])
    assert torch.equal(model.auxiliary[2].linear.weight, state["stage3_first_aux.3.weight"])


def test_file_of_another_architecture_is_explained(tmp_path) -> None:
    torch.save(official_state("training"), tmp_path / "official.pth")
    with pytest.raises(InputError) as caught:
        load_model(tmp_path / "official.pth", "RepVGG-A0", 10)
    assert "(official RepVGGplus keys, training form) do not fit RepVGG-A0" in str(caught.value)
    assert f"pass `arch='{SPEC.name}'` `num_classes=5`" in str(caught.value)


def test_dialects_without_names_for_it_are_refused(model, tmp_path) -> None:
    with pytest.raises(InputError, match=r"the timm dialect has no key for stem\.post_se\.down\.weight"):
        save_model(model, tmp_path / "w.pth", "timm")


def test_training_mode_gives_the_logits_of_every_classifier(model) -> None:
    images = torch.randn(2, 3, 64, 48)
    logits, auxiliary = model.train()(images)
    assert logits.shape == (2, 5)
    assert [output.shape for output in auxiliary] == [(2, 5)] * 3
    (logits.sum() + sum(output.sum() for output in auxiliary)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_auxiliary_classifiers_see_the_first_three_of_five_stages(model) -> None:
    images = torch.randn(2, 3, 64, 48)
    inputs = [model.stem(images)]
    for stage in model.stages:
        inputs.append(stage(inputs[-1]))
    expected = [head(x) for head, x in zip(model.auxiliary, inputs[1:4], strict=True)]
    model.training = True  # the flag alone, so that batch normalization stays with its statistics
    logits, actual = model(images)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(logits, model.head(inputs[-1].mean((2, 3))))


def test_evaluation_mode_and_deploy_form_give_logits_alone(model) -> None:
    images = torch.randn(2, 3, 64, 48)
    deploy = reparameterize(model)
    assert model.eval()(images).shape == (2, 5)
    assert deploy.train()(images).shape == (2, 5)
    assert len(deploy.auxiliary) == 0
    assert len(model.auxiliary) == 3


def test_auxiliary_classifier_by_hand(randomize) -> None:
    head = randomize(AuxiliaryHead(4, 3))
    x = torch.randn(2, 4, 7, 9)
    reduced = head.reduce.bn(nn.functional.conv2d(x, head.reduce.conv.weight, stride=2, padding=1)).relu()
    assert reduced.shape == (2, 4, 4, 5)
    torch.testing.assert_close(head(x), head.linear(reduced.mean((2, 3))))


def test_published_network_has_the_official_stages() -> None:
    with torch.device("meta"):
        model = build("RepVGGplus-L2pse", 1000)
    assert [len(stage) for stage in model.stages] == [8, 14, 12, 12, 1]
    assert [stage[-1].spec.out_channels for stage in model.stages] == [160, 320, 640, 640, 2560]
    assert model.stem.spec.out_channels == 64
