import onnx
import pytest
import torch

from repquant.models.checkpoints import load_tensors


@pytest.fixture
def evaluate(repquant, photographs, tmp_path, monkeypatch):
    """Run `evaluate` on the small photographs: (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    options = ("--data", photographs, "--num-classes", 2, "--image-size", 32, "--crop-ratio", 1.0)
    return lambda *arguments: repquant("evaluate", *options, *arguments)


def test_checkpoint_in_pytorch(evaluate, headline, weights):
    status, out, err = evaluate("--arch", "RepVGG-tiny", "--weights", weights)
    assert status == 0, err
    (result,) = headline(out)["results"]
    assert (result["runtime"], result["images"], result["top5"]) == ("pytorch", 16, None)
    low, high = result["top1_ci95"]
    assert 0 <= low <= result["top1"] <= high <= 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(evaluate, weights):
    status, out, err = evaluate("--arch", "RepVGG-tiny", "--weights", weights, "--device", "cuda")
    assert (status, out) == (2, "")
    assert "PyTorch finds no GPU here; pass --device cpu" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which model? Pass --weights for a checkpoint, --model for a file"),
        (("--runtimes", "pytorch"), "the runtime pytorch runs a checkpoint; pass --weights"),
        (("--runtimes", "pytorch", "--mean", "1,2"), "--mean 1,2 was given; expected three numbers"),
        (("--runtimes", "openvino"), "the runtime openvino runs a file; pass --model"),
        (("--runtimes", "onnxruntime", "--model", "missing.onnx"), "model file missing.onnx does not exist"),
        (("--model", "cut.onnx"), "cut.onnx is no ONNX file"),
        (("--runtimes", "caffe"), "--runtimes: 'caffe' was given; allowed are pytorch, onnxruntime, openvino"),
        (("--split", "test"), "--split test was given; allowed is one of train, val"),
    ],
)
def test_bad_input(evaluate, tmp_path, arguments, message):
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x0a cut")
    status, out, err = evaluate(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_labels_that_do_not_fit_the_model(evaluate, weights):
    status, _, err = evaluate("--arch", "RepVGG-tiny", "--weights", weights, "--num-classes", 1000)
    assert status == 2
    assert "pass --arch RepVGG-tiny --num-classes 2" in err


def test_logits_that_are_no_numbers_are_an_error_in_a_sentence(evaluate, weights, tmp_path):
    tensors = load_tensors(weights)
    tensors["linear.weight"].fill_(3e38)
    torch.save(tensors, tmp_path / "huge.pth")
    status, out, err = evaluate("--arch", "RepVGG-tiny", "--weights", "huge.pth")
    assert (status, out) == (2, "")
    assert "returned NaN or infinite values" in err
    assert "Traceback" not in err


def test_a_file_that_gives_another_number_of_logits(evaluate, tmp_path):
    """Flattened images have 3,072 numbers, and the right class is none of the largest."""
    shape = ["n", 3, 32, 32]
    infos = [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, shape)]
    infos.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, ["n", 3072]))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Flatten", ["a"], ["b"])], "g", infos[:1], infos[1:])
    opset = [onnx.helper.make_opsetid("", 21)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "flat.onnx")
    status, out, err = evaluate("--runtimes", "onnxruntime", "--model", "flat.onnx")
    assert (status, out) == (2, "")
    assert "gives 3072 logits an image, and the model is to have 2 classes" in err


@pytest.fixture
def bare(repquant, photographs, tmp_path, monkeypatch):
    """Run `evaluate` on the small photographs without saying what they are prepared for."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: repquant("evaluate", "--data", photographs, *arguments)


def test_a_file_says_by_itself_what_it_needs(bare, headline, ptq_run):
    output, expected, _ = ptq_run
    status, out, err = bare("--model", output / "mse.onnx")
    assert status == 0, err
    (result,) = headline(out)["results"]
    assert result["runtime"] == "onnxruntime"
    known = {(row["calibrator"], row["runtime"]): row["top1"] for row in expected["results"]}
    assert result["top1"] == pytest.approx(known["mse", "onnxruntime"], abs=1e-3)
    assert "images of 32 px, crop ratio 1.0, mean (0.485, 0.456, 0.406)" in err
    assert "2 classes, calibrator mse" in err


def test_what_is_asked_for_goes_before_what_the_file_says(bare, ptq_run):
    status, _, err = bare("--model", ptq_run[0] / "mse.onnx", "--image-size", 40)
    assert status == 2
    assert "choose the image size that it was exported with" in err


def test_a_checkpoint_says_what_it_is_of(bare, headline, weights):
    status, out, err = bare("--weights", weights, "--image-size", 32, "--crop-ratio", 1)
    assert status == 0, err
    assert headline(out)["results"][0]["images"] == 16
    assert "RepVGG-tiny with 2 classes" in err


def test_all_is_what_reads_the_file(bare, headline, ptq_run):
    status, out, err = bare("--model", ptq_run[0] / "mse.onnx", "--runtimes", "all")
    assert status == 0, err
    assert [result["runtime"] for result in headline(out)["results"]] == ["onnxruntime", "openvino"]
