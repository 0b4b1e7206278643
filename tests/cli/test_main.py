"""The way in: exit status, messages, and how fast it answers."""

import os
import subprocess
import sys

import pytest

from repquant import signals
from repquant.cli import ptq
from repquant.errors import InputError
from repquant.train.stopping import StoppedError

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
        (("ptq",), "required: --data, --target, --output"),
        (("ptq", *REQUIRED, "--calibrater", "max"), "unrecognized arguments: --calibrater max"),
        (("ptq", *REQUIRED, "--batch", "8"), "unrecognized arguments: --batch 8"),
        (("ptq", *REQUIRED, "surplus"), "unrecognized arguments: surplus"),
        (("ptq", *REQUIRED, "--batch-size", "many"), "--batch-size many was given; allowed is a whole number"),
        (("ptq", *REQUIRED, "--batch-size", "1.5"), "--batch-size 1.5 was given; allowed is a whole number"),
        (
            ("ptq", *REQUIRED, "--rounding", "up"),
            "--rounding up was given; allowed is one of feedback, learned, nearest",
        ),
        (("ptq", *REQUIRED, "--mean", "[0.5,0.5]"), "argument --mean: expected three numbers, for example 0.5,0.5,0.5"),
        (("ptq", *REQUIRED, "--overwrite", "maybe"), "--overwrite maybe was given; allowed is true or false"),
        (("ptq", *REQUIRED, "--config", "missing.yaml"), "--config: File does not exist: "),
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
        ("batch_size: many", "--batch-size many was given"),
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
    assert done.stderr.endswith("required: --data, --target, --output\n")


def test_version(repquant):
    status, out, _ = repquant("--version")
    assert status == 0
    assert out.split()[1][0].isdigit()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "repquant ptq: [Errno 28] No space left on device"),
        (MemoryError(), "repquant ptq: the memory is not enough (MemoryError); lower --batch-size or --image-size"),
        (
            RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory"),
            "repquant ptq: the memory is not enough",
        ),
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


def test_logits_that_are_no_numbers_are_status_2_in_every_verb(repquant, monkeypatch):
    def fail(_options):
        raise FloatingPointError("runtime pytorch returned NaN")

    monkeypatch.setattr(ptq, "run", fail)
    assert repquant("ptq", *REQUIRED) == (2, "", "repquant ptq: runtime pytorch returned NaN\n")


def test_a_defect_of_the_program_is_said_to_be_one_and_its_report_kept(repquant, monkeypatch, tmp_path):
    def fail(_options):
        raise KeyError("a defect")

    monkeypatch.setattr(ptq, "run", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, out, err = repquant("ptq", *REQUIRED)
    assert (status, out) == (1, "")
    (report,) = tmp_path.glob("repquant-*.txt")
    assert err == (
        "repquant ptq: this is a fault of repquant, not yours: KeyError: 'a defect'. "
        f"The full report is in {report}; please send it with what you did\n"
    )
    content = report.read_text()
    assert "Traceback" in content
    assert "'--arch', 'RepVGG-tiny'" in content
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert "could not be written, so here it is" in repquant("ptq", *REQUIRED)[2]


@pytest.mark.parametrize("by", ["interrupt", "termination", "stop"])
def test_a_signal_counts_whatever_a_library_makes_of_it(repquant, monkeypatch, by):
    """Some turn an exception in an import into one of their own."""
    asked = {
        "interrupt": KeyboardInterrupt(),
        "termination": SystemExit(143),
        "stop": StoppedError("stopped as asked"),
    }[by]

    def fail(_options):
        try:
            signals.end_with(asked)
        except BaseException as error:
            raise ImportError("no library") from error

    monkeypatch.setattr(ptq, "run", fail)
    status, _, err = repquant("ptq", *REQUIRED)
    assert status == {"interrupt": 1, "termination": 143, "stop": 75}[by]
    assert "library" not in err


@pytest.mark.parametrize(
    "module", ["repquant.signals", "repquant.cli.main", "jsonargparse", "yaml", "repquant.train.stopping"]
)
def test_an_interrupt_while_the_program_starts(module):
    code = f"""if True:
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        waiting = [True]
        def interrupt(event, arguments):
            if event == "import" and arguments[0] == "{module}" and waiting:
                waiting.pop()
                signal.raise_signal(signal.SIGINT)
        sys.addaudithook(interrupt)
        from repquant.__main__ import main
        status = main()
        assert not waiting
        sys.exit(status)
    """
    done = subprocess.run([sys.executable, "-c", code, "ptq", *REQUIRED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "repquant: interrupted\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"arch: Gr\xf6\xdfe", "configuration run.yaml is no text in UTF-8"),
        (b"mean: " + b"[" * 5000, "configuration run.yaml is nested too deeply"),
        (b"- " * 5000, "configuration run.yaml is nested too deeply"),
        (b"".join(b" " * depth + b"a:\n" for depth in range(9)), "configuration run.yaml is nested too deeply"),
        (b"a: &a [1, 1]\nb: &b [*a, *a]", "configuration run.yaml refers to other parts of itself"),
        (b"#" * 10**6, "can't read configuration run.yaml: Larger than 65,536 bytes"),
        (None, "can't read configuration run.yaml: Not a regular file"),
    ],
)
def test_a_configuration_that_would_take_for_ever(repquant, tmp_path, content, message):
    if content is None:
        os.mkfifo(tmp_path / "run.yaml")
    else:
        (tmp_path / "run.yaml").write_bytes(content)
    for given in (("--config", "run.yaml"), ("--config=run.yaml",)):
        status, _, err = repquant("ptq", *given, *REQUIRED)
        assert status == 2
        assert message in err


@pytest.mark.parametrize("verb", ["ptq", "train"])
@pytest.mark.parametrize("name", ["os:abort", "evil.py:network"])
def test_no_configuration_runs_code(repquant, tmp_path, name, verb):
    """Whoever names a network of their own on the command line asks for its code; a file may be somebody else's."""
    (tmp_path / "evil.py").write_text("open('executed', 'w')\n")
    (tmp_path / "run.yaml").write_text(f"model: {name}\n")
    given = (
        "--data",
        "d",
        "--output",
        "run",
        *(("--target", "tensorrt") if verb == "ptq" else ("--num-classes", "10")),
    )
    status, _, err = repquant(verb, "--config", "run.yaml", *given)
    assert status == 2
    assert f"model {name} is code that would be run, and configurations may be from others" in err
    assert not (tmp_path / "executed").exists()
    (tmp_path / "mine.py").write_text("")
    assert repquant(verb, *given, "--model", "mine.py:network", "--config", "run.yaml")[0] == 2
    assert not (tmp_path / "executed").exists()
    (tmp_path / "evil.py").write_text("open('executed', 'w').close()\n")
    given = ("--data", "builtin", *given[2:])
    repquant(verb, *given, "--model", "evil.py:network")
    assert (tmp_path / "executed").exists()  # the trap works where code is asked for


def test_a_sentence_of_any_length_is_shortened(repquant, monkeypatch):
    def fail(_options):
        raise InputError("x" * 10**6)

    monkeypatch.setattr(ptq, "run", fail)
    status, _, err = repquant("ptq", *REQUIRED)
    assert status == 2
    assert err.endswith("xxx... (1,000,000 characters)\n")
    assert len(err) < 5000


@pytest.mark.parametrize("value", ["[" * 3000, "9" * 5000, "x" * 10**4, "&a [*a]", "\x1b[31m", "1\n2"])
def test_an_argument_that_would_take_for_ever(repquant, value):
    status, _, err = repquant("ptq", *REQUIRED, "--batch-size", value)
    assert status == 2
    assert "Traceback" not in err
    assert len(err) < 3000
    assert "\x1b" not in err


def test_three_numbers_as_people_write_them(repquant):
    for given in ("0.5,0.25,1", "[0.5, 0.25, 1]", "(0.5,0.25,1)"):
        status, out, _ = repquant("ptq", *REQUIRED, "--mean", given, "--print_config")
        assert status == 0
        assert "mean:\n- 0.5\n- 0.25\n- 1.0\n" in out


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


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_of_the_shell(repquant, shell):
    status, script, err = repquant("--print_completion", f"shtab-{shell}")
    assert status == 0, err
    assert "benchmark" in script
    assert "--calibration-images" in script
