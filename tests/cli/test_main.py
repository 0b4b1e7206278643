"""The way in: exit status, messages, and how fast it answers."""

import subprocess
import sys

import pytest

from repquant.cli import ptq
from repquant.cli.main import main

REQUIRED = ("--arch", "RepVGG-tiny", "--weights", "w.pth", "--data", "d", "--target", "tensorrt", "--output", "run")
HEAVY = {"numpy", "onnx", "onnxruntime", "onnxscript", "openvino", "PIL", "safetensors", "torch"}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), '"verb" to be one of {demo,convert,quantize,ptq'),
        (("quantise",), "invalid choice: 'quantise' (choose from 'demo', 'convert', 'quantize', 'ptq'"),
        (("ptq",), "required: ptq.arch, ptq.weights, ptq.data, ptq.target, ptq.output"),
        (("ptq", *REQUIRED, "--calibrater", "max"), "unrecognized arguments: --calibrater max"),
        (("ptq", *REQUIRED, "--batch", "8"), "unrecognized arguments: --batch 8"),
        (("ptq", *REQUIRED, "surplus"), "unrecognized arguments: surplus"),
        (("ptq", *REQUIRED, "--batch-size", "many"), "batch_size"),
        (("ptq", *REQUIRED, "--batch-size", "1.5"), "batch_size"),
        (("ptq", *REQUIRED, "--mean", "[0.5,0.5]"), "3 elements"),
        (("ptq", *REQUIRED, "--overwrite", "maybe"), "overwrite"),
        (("ptq", *REQUIRED, "--config", "missing.yaml"), "missing.yaml"),
    ],
)
def test_what_the_parser_refuses(repquant, arguments, message):
    status, out, err = repquant(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("batchsize: 4", "'ptq' does not accept option 'batchsize'"),
        ("batch_size: many", "batch_size"),
        ("batch_size: [", "parsing config"),
        ("- a list", "config"),
    ],
)
def test_configuration_that_can_not_be_used(repquant, tmp_path, content, message):
    (tmp_path / "run.yaml").write_text(content)
    status, _, err = repquant("ptq", "--config", "run.yaml", *REQUIRED)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_process_ends_with_the_status():
    done = subprocess.run([sys.executable, "-m", "repquant", "ptq"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("required: ptq.arch, ptq.weights, ptq.data, ptq.target, ptq.output\n")


def test_version(repquant):
    status, out, _ = repquant("--version")
    assert status == 0
    assert out.split()[1][0].isdigit()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "repquant ptq: [Errno 28] No space left on device"),
        (FloatingPointError("runtime pytorch returned NaN"), "repquant ptq: runtime pytorch returned NaN"),
        (KeyboardInterrupt(), "repquant ptq: interrupted"),
    ],
)
def test_what_the_world_does_wrong_is_status_1_in_a_sentence(repquant, monkeypatch, error, message):
    def fail(_options):
        raise error

    monkeypatch.setattr(ptq, "run", fail)
    status, out, err = repquant("ptq", *REQUIRED)
    assert (status, out) == (1, "")
    assert err.startswith(message)


def test_a_defect_of_the_program_keeps_its_traceback(monkeypatch):
    """Python then ends with status 1."""

    def fail(_options):
        raise KeyError("a defect")

    monkeypatch.setattr(ptq, "run", fail)
    with pytest.raises(KeyError, match="a defect"):
        main(["ptq", *REQUIRED])


@pytest.mark.parametrize("arguments", [["--help"], ["ptq", "--help"], ["ptq", *REQUIRED, "--print_config"], ["ptq"]])
def test_nothing_heavy_is_imported_before_a_verb_runs(arguments):
    code = f"""if True:
        import sys
        from repquant.cli.main import main
        try:
            main({arguments})
        except SystemExit:
            pass
        print(*sorted({HEAVY} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
