import pytest
import torch

from repquant.models.checkpoints import load_model, load_tensors
from repquant.models.reparam import reparameterize


@pytest.fixture
def convert(repquant, weights, tmp_path):
    """Run `convert` with changed options: (status, stderr); the output is tmp_path / "model.pth"."""

    def run(**changes):
        options = {"arch": "RepVGG-tiny", "num_classes": 2, "weights": weights, "output": tmp_path / "model.pth"}
        pairs = {f"--{key.replace('_', '-')}": value for key, value in (options | changes).items()}
        status, _, err = repquant("convert", *(part for pair in pairs.items() for part in pair))
        return status, err

    return run


def test_training_form_is_kept_on_request(convert, weights, tmp_path):
    status, err = convert(form="training", dialect="timm")
    assert status == 0, err
    source, copied = (load_model(path, "RepVGG-tiny", 2) for path in (weights, tmp_path / "model.pth"))
    assert copied.form == "training"
    assert all(tensor.equal(copied.state_dict()[name]) for name, tensor in source.state_dict().items())


def test_branches_can_not_be_recovered(convert, tmp_path):
    assert convert(output=tmp_path / "deploy.pth")[0] == 0
    status, err = convert(weights=tmp_path / "deploy.pth", form="training")
    assert status == 2
    assert "the branches can't be recovered; use --form deploy" in err


@pytest.fixture
def changed_weights(weights, tmp_path):
    """Save the checkpoint with some tensors filled with one value each."""

    def save(values):
        tensors = load_tensors(weights)
        for name, value in values.items():
            tensors[name].fill_(value)
        torch.save(tensors, tmp_path / "changed.pth")
        return tmp_path / "changed.pth"

    return save


def test_a_network_that_says_nothing_is_converted(convert, changed_weights, tmp_path):
    status, err = convert(weights=changed_weights({"linear.weight": 0, "linear.bias": 0}))
    assert status == 0, err
    assert "logits differ by 0.0e+00 of the largest" in err
    assert (tmp_path / "model.pth").is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stage0.rbr_dense.bn.running_var": -1}, "changed.pth gives logits that are NaN or infinite"),
        ({"stage0.rbr_dense.bn.weight": 3e38}, "float32 can't hold its branches as one kernel"),
    ],
)
def test_logits_that_are_no_numbers_are_found_before_anything_is_written(
    convert, changed_weights, tmp_path, values, message
):
    status, err = convert(weights=changed_weights(values))
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "model.pth").exists()


@pytest.mark.parametrize(("factor", "status"), [(1 + 1e-5, 0), (1.01, 2)])
def test_forms_that_differ_by_more_than_float32_explains_are_not_written(
    convert, tmp_path, monkeypatch, factor, status
):
    def imprecise(model):
        deploy = reparameterize(model)
        deploy.head.weight.data.mul_(factor)
        return deploy

    monkeypatch.setattr("repquant.models.reparam.reparameterize", imprecise)
    found, err = convert()
    assert found == status, err
    assert (tmp_path / "model.pth").exists() == (status == 0)
    assert ("one kernel. Nothing was written; --form training keeps the branches" in err) == (status == 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "folded"}, "--form folded was given; allowed is one of training, deploy"),
        ({"dialect": "keras"}, "--dialect keras was given; allowed is one of official, timm, mmpretrain"),
        ({"output": "model.onnx"}, "output model.onnx does not end in .safetensors or .pth"),
        ({"output": "there.pth/model.pth"}, "can't write to there.pth; choose a folder that is writable, or can be"),
        ({"output": "/proc/model.pth"}, "can't write to /proc"),
        ({"output": "folder.pth"}, "output folder.pth is a folder; give a file"),
        ({"output": "there.pth"}, "output there.pth exists; choose another file or pass --overwrite"),
        ({"arch": "RepVGG-A9"}, "did you mean RepVGG-A"),
        ({"weights": "missing.pth"}, "missing.pth does not exist"),
    ],
)
def test_bad_input_leaves_nothing(convert, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "there.pth").write_text("old")
    status, err = convert(**changes)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.pth", "there.pth"]
    assert (tmp_path / "there.pth").read_text() == "old"
