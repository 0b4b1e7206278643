"""Files for ncnn: the integers in them, what is found in them, and what can't be written or read."""

import errno
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import repquant
from repquant.choices import RUNTIMES
from repquant.errors import InputError
from repquant.export.files import export_file
from repquant.graph.capture import capture
from repquant.methods.ptq import PtqMethod
from repquant.quantize import quantize
from repquant.simulation.network import quantized_layers
from repquant.targets.ncnn_file import read_ncnn

pytest.importorskip("ncnn", reason="pip install 'repquant[ncnn]'")

from repquant.runtimes.ncnn import NcnnRuntime

NEAREST = PtqMethod(equalization="none", rounding="nearest")


class Network(nn.Module):
    """What phones run: a stem, depthwise and grouped convolutions, a shortcut, a gate, a head, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.gate = nn.Conv2d(16, 16, 1)
        self.wide = nn.Conv2d(16, 48, 3, padding=1)
        self.grouped = nn.Conv2d(48, 8, (3, 5), padding=(1, 2), groups=4)
        self.back = nn.Conv2d(48, 16, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.depthwise(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        wide = nn.functional.relu6(self.wide(x))
        logits = self.head(nn.functional.relu6(self.grouped(wide)).mean((2, 3)))
        return {"größe": logits.softmax(-1), "karte": self.back(wide)}


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def int8(images):
    torch.manual_seed(0)
    return quantize(Network().eval(), [images], target="ncnn", calibrator="max", method=NEAREST)


@pytest.fixture(scope="module")
def expected(int8, images):
    with torch.inference_mode():
        return {name: value.numpy() for name, value in int8(images).items()}


@pytest.fixture(scope="module")
def path(int8, tmp_path_factory):
    return int8.save(tmp_path_factory.mktemp("ncnn") / "netz_ß.param", inputs=("bilder_ä",))


@pytest.fixture
def copied(path, tmp_path):
    """Files that a test may damage."""
    for file in (path, path.with_suffix(".bin")):
        shutil.copy(file, tmp_path / f"copy{file.suffix}")
    return tmp_path / "copy.param"


def test_the_runtime_gives_what_the_simulation_gives_for_any_number_of_images(path, images, expected):
    runtime = NcnnRuntime(path, threads=1)
    assert (runtime.inputs, runtime.outputs) == ({"bilder_ä": (None, 3, 16, 24)}, ("größe", "karte"))
    for part in (slice(0, 1), slice(0, 6), slice(3, 5)):
        for name, values in zip(runtime.outputs, runtime(images[part].numpy()), strict=True):
            np.testing.assert_allclose(values, expected[name][part], rtol=0, atol=1e-5)


def test_weights_in_the_file_are_the_integers_of_the_simulation(int8, path):
    numbers, layers = path.with_suffix(".bin").read_bytes(), quantized_layers(int8.module)
    parts = [layer.integers.weight.numpy() for layer in layers.values()]
    for weight in [*parts[:4], *np.split(parts[4], 4), *parts[5:]]:  # each group has a layer of its own
        assert numbers.count(weight.tobytes()) == 1
    kinds = [layer.kind for layer in read_ncnn(path).layers]
    assert kinds.count("ConvolutionDepthWise") == 1
    assert kinds.count("Convolution") == 1 + 1 + 1 + 4 + 1
    assert kinds.count("InnerProduct") == 1


def test_a_clip_within_a_grid_and_a_linear_layer_that_ends_on_one(tmp_path):
    torch.manual_seed(0)
    rows = torch.randn(16, 32) * 4
    network = nn.Sequential(nn.Linear(32, 32), nn.Hardtanh(-0.5, 3.0), nn.Linear(32, 32, bias=False), nn.Linear(32, 4))
    int8 = quantize(network.eval(), [rows], target="ncnn", calibrator="max", method=NEAREST)
    with torch.inference_mode():
        wanted = int8(rows).numpy()
    runtime = NcnnRuntime(int8.save(tmp_path / "rows.param"), threads=1)
    np.testing.assert_allclose(runtime(rows.numpy()), wanted, rtol=0, atol=1e-5)


def test_a_grouped_layer_that_reads_floats(tmp_path):
    torch.manual_seed(0)
    images = torch.randn(4, 8, 6, 6)
    int8 = quantize(nn.Conv2d(8, 12, 3, groups=4).eval(), [images], target="ncnn", calibrator="max", method=NEAREST)
    runtime = NcnnRuntime(int8.save(tmp_path / "x.param"), threads=1)
    with torch.inference_mode():
        np.testing.assert_allclose(runtime(images.numpy()), int8(images).numpy(), rtol=0, atol=1e-5)
    kinds = [layer.kind for layer in read_ncnn(tmp_path / "x.param").layers]
    assert kinds == ["Input", "Slice", *["Quantize", "Convolution"] * 4, "Concat", "Noop"]


def test_a_float_network(images, tmp_path):
    torch.manual_seed(0)
    network = Network().eval()
    graph = capture(network, images)
    size = export_file(graph, tmp_path / "float.param")
    assert size == sum(file.stat().st_size for file in tmp_path.iterdir())
    logits, image = NcnnRuntime(tmp_path / "float.param")(images.numpy())
    with torch.inference_mode():
        wanted = network(images)
    np.testing.assert_allclose(logits, wanted["größe"].numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(image, wanted["karte"].numpy(), rtol=0, atol=1e-5)
    found = [finding.rule.name for finding in repquant.check(tmp_path / "float.param", "ncnn")]
    assert found == ["integer-layer"] * 7


def test_layers_that_stay_in_float(images, tmp_path):
    torch.manual_seed(0)
    int8 = quantize(
        Network().eval(), [images], target="ncnn", calibrator="max", method=NEAREST, keep_float=("grouped", "first")
    )
    with torch.inference_mode():
        wanted = int8(images)["karte"].numpy()
    path = int8.save(tmp_path / "mixed.param")
    np.testing.assert_allclose(NcnnRuntime(path)(images.numpy())[1], wanted, rtol=0, atol=1e-4)
    floats = [finding.node for finding in repquant.check(path, "ncnn") if finding.rule.name == "integer-layer"]
    assert floats == ["stem", "grouped"]


def test_what_ncnn_computes_otherwise_with_its_own_options_is_found(path, tmp_path):
    found = {(finding.rule.name, finding.node) for finding in repquant.check(path, "ncnn")}
    assert found == {("winograd", "back"), ("reciprocal", "depthwise")}  # `wide` has too few channels to overflow
    foreign = tmp_path / "foreign.param"
    layer = "ConvolutionDepthWise dw 1 1 a b 0=4 1=1 6=8 7=2 8=1"
    foreign.write_text(f"7767517\n2 2\nInput a 0 1 a 0=2 1=2 2=4\n{layer}\n")
    foreign.with_suffix(".bin").write_bytes(bytes.fromhex("384b0d00") + bytes(8) + np.ones(3, np.float32).tobytes())
    assert [finding.rule.name for finding in repquant.check(foreign, "ncnn")] == ["groups"]


def test_options_that_overflow_are_not_used(tmp_path):
    """With ncnn's own options these sums of 64 x 9 x 127 x 127 are wrong."""
    conv = nn.Conv2d(64, 16, 3, padding=1, bias=False)
    conv.weight.data.fill_(1.0)
    image = torch.ones(1, 64, 8, 8)
    int8 = quantize(conv.eval(), [image], target="ncnn", calibrator="max", method=NEAREST)
    got = NcnnRuntime(int8.save(tmp_path / "x.param"))(image.numpy())
    np.testing.assert_allclose(got[0, :, 3, 3], 64 * 9, rtol=1e-5)


def test_speed_is_measured(path):
    (row,) = repquant.benchmark(path, runtimes=("ncnn",), rounds=2, warm_up=1).rows
    assert (row.runtime, row.model, len(row.samples_ms)) == ("ncnn", "netz_ß", 2)


@pytest.mark.parametrize("read", [read_ncnn, NcnnRuntime, lambda path: repquant.check(path, "ncnn")])
def test_damaged_files(copied, read):
    numbers = copied.with_suffix(".bin")
    content = numbers.read_bytes()
    for damaged in (content[:-4], content[: len(content) // 2], b"", content[:-1] + b"\x01"):
        numbers.write_bytes(damaged)
        with pytest.raises(InputError, match=r"copy\.bin is damaged, or was not written with copy\.param; write both"):
            read(copied)
    numbers.unlink()
    with pytest.raises(InputError, match=r"copy\.bin does not exist; ncnn needs two files, copy\.param and copy\.bin"):
        read(copied)
    numbers.write_bytes(content)
    text = copied.read_text()
    lines = text.splitlines()
    for damaged in (
        "",
        text[:40],
        "\n".join(lines[:-1]),
        text.replace("7767517", "7767518"),
        text.replace("_int8 stem ", "_int8 gone "),
    ):
        copied.write_text(damaged)
        with pytest.raises(InputError, match=r"copy\.param is no \.param file of ncnn, or is damaged"):
            read(copied)
    copied.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"copy\.param is no \.param file of ncnn, or is damaged"):
        read(copied)


@pytest.mark.parametrize(
    "lines",
    [
        "0 0",
        "1 0\nInput a 0 0",
        "1 2\nInput a 0 2 a b",
        "2 2\nInput a 0 1 a\nInput b 1 1 a b",
        "1 1\nInput a 0 1 a 0=abc",
        "1 1\nInput a 0 1 a 0=2.5",
        "1 1\nInput a 0 1 a 0",
        "1 1\nInput a 0 1 a -23300=2,1",
        "2 2\nInput a 0 1 a\nConvolution c 1 1 a b 8=x",
        "2 2\nInput a 0 1 a\nConvolutionDepthWise c 1 1 a b 8=1 7=2,2",
        "2 2\nInput a 0 1 a\nInnerProduct c 1 1 a b 8=",
        "2 2\nInput a 0 1 a\nReLU r 1 1 b b",
        "1 0\nInput a -1 1",
        "x y\nInput a 0 1 a",
        "1 1\nInput a",
    ],
)
def test_layers_that_make_no_network(lines, tmp_path):
    file = tmp_path / "x.param"
    file.write_text(f"7767517\n{lines}\n")
    file.with_suffix(".bin").touch()
    for read in (read_ncnn, NcnnRuntime, lambda path: repquant.check(path, "ncnn")):
        with pytest.raises(InputError, match=r"x\.param is no \.param file of ncnn, or is damaged"):
            read(file)


def test_numbers_of_another_tool_that_are_cut_off(tmp_path):
    file = tmp_path / "x.param"
    file.write_text("7767517\n2 2\nInput a 0 1 a 0=2 1=2 2=4\nConvolution c 1 1 a b 0=4 1=1 6=16\n")
    file.with_suffix(".bin").write_bytes(bytes(20))
    with pytest.raises(InputError, match=r"ncnn can't load .*x\.bin does not hold the numbers of its layers"):
        NcnnRuntime(file)
    (finding,) = [finding for finding in repquant.check(file, "ncnn") if finding.is_refused]
    assert "does not hold the numbers" in finding.detail
    file.write_text("7767517\n2 2\nInput a 0 1 a 0=2 1=2 2=4\nUnheardOf c 1 1 a b\n")
    with pytest.raises(InputError, match="ncnn does not take its layers"):
        NcnnRuntime(file)


def test_shapes_and_numbers_of_images(path, int8, images, tmp_path):
    runtime = NcnnRuntime(path)
    with pytest.raises(InputError, match="was given a batch of 0 images; give at least one"):
        runtime(images[:0].numpy())
    with pytest.raises(InputError, match="takes images of shape any x 3 x 16 x 24, not 6 x 3 x 16 x 16"):
        runtime(images[..., :16].numpy())
    with pytest.raises(InputError, match="batch 0 was given; allowed are 1 or more, and None"):
        int8.save(tmp_path / "x.param", batch=0)
    with pytest.raises(InputError, match="files for ncnn hold one image; leave out `batch`"):
        int8.save(tmp_path / "x.param", batch=2)
    with pytest.raises(InputError, match="the name 'two words' was given; names in files for ncnn have no spaces"):
        int8.save(tmp_path / "x.param", inputs=("two words",))
    assert not [*tmp_path.iterdir()]


def test_a_file_of_somebody_else_beside_it_is_not_replaced(int8, tmp_path):
    beside = tmp_path / "model.bin"
    beside.write_bytes(b"somebody's weights")
    with pytest.raises(InputError, match=r"model\.bin exists and belongs to no \.param file; it is not replaced"):
        int8.save(tmp_path / "model.param")
    assert beside.read_bytes() == b"somebody's weights"
    beside.unlink()
    for _ in range(2):  # one's own is
        int8.save(tmp_path / "model.param")


@pytest.mark.parametrize("write", ["write_text", "write_bytes"])
def test_a_full_disk_leaves_the_earlier_pair(copied, monkeypatch, write):
    """Half a pair can't be read, so the one before must not go while the new one is being written."""
    before = {file: file.read_bytes() for file in copied.parent.iterdir()}

    def full(path, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, write, full)
    with pytest.raises(OSError, match=r"No space left on device: .*copy\.param"):
        export_file(capture(nn.Conv2d(3, 2, 1).eval(), torch.randn(1, 3, 8, 8)), copied)
    assert {file: file.read_bytes() for file in copied.parent.iterdir()} == before
    read_ncnn(copied)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda y, constant: torch.cat([y, constant], 1), "a constant beside values is not written"),
        (lambda y, constant: torch.cat([constant, y], 1), "a constant beside values is not written"),
        (lambda y, _: torch.cat([y, torch.ones(1, 2, 8, 8)], 1), "a constant beside values is not written"),
        (lambda y, _: torch.cat([y, y[:, :0]], 1), "an empty value is not written"),
        (lambda y, constant: y + constant[:, :1], "an operand that is a constant tensor is not written"),
    ],
)
def test_constants_and_empty_values_are_not_left_out(function, words, tmp_path):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.constant = nn.Buffer(torch.randn(1, 2, 8, 8))

        def forward(self, x):
            return function(self.conv(x), self.constant)

    graph = capture(Constant().eval(), torch.randn(1, 3, 8, 8))
    with pytest.raises(InputError, match=words):
        export_file(graph, tmp_path / "x.param")
    assert not [*tmp_path.iterdir()]


def test_other_targets_and_files(images, int8, tmp_path):
    with pytest.raises(InputError, match=r"\.onnx was given; files for target ncnn end in \.param; ncnn has symmetric"):
        int8.save(tmp_path / "x.onnx")
    other = quantize(nn.Conv2d(3, 2, 1).eval(), [images], target="litert", calibrator="max", method=NEAREST)
    with pytest.raises(InputError, match=r"\.param was given; files for target litert end in .*; ncnn has symmetric"):
        other.save(tmp_path / "x.param")
    wide = nn.Conv2d(3, 6, 1, groups=3)
    with pytest.raises(
        InputError, match="one scale for all channels that come of one in an int8 layer; keep it in float"
    ):
        quantize(wide.eval(), [images], target="ncnn", calibrator="max", method=NEAREST).save(tmp_path / "x.param")


def test_without_ncnn_files_are_written_and_not_run(int8, monkeypatch, tmp_path):
    from repquant.runtimes import available

    monkeypatch.setitem(sys.modules, "ncnn", None)
    real = available.find_spec
    monkeypatch.setattr(available, "find_spec", lambda name: None if name == "ncnn" else real(name))
    path = int8.save(tmp_path / "x.param")
    assert "ncnn" in RUNTIMES
    for use in (lambda: repquant.load(path, runtime="ncnn"), lambda: repquant.check(path, "ncnn")):
        with pytest.raises(InputError, match=r"runtime ncnn is not installed; run pip install 'repquant\[ncnn\]'"):
            use()
