import pytest

from repquant.models.checkpoints import load_model


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "folded"}, "form 'folded' was given; allowed are deploy and training"),
        ({"dialect": "keras"}, "unknown checkpoint dialect 'keras'; choose one of official, timm, mmpretrain"),
        ({"output": "model.onnx"}, "output model.onnx does not end in .safetensors or .pth"),
        ({"output": "missing/model.pth"}, "can't write to missing; choose a folder that exists and is writable"),
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
