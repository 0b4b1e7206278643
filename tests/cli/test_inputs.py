"""What the verbs' options open."""

import shutil

import pytest

from repquant.cli.inputs import (
    held_back_loader,
    identified,
    open_calibration,
    open_method,
    open_target,
    saturation_notes,
    training_loader,
)
from repquant.cli.options import (
    CalibrationOptions,
    DataOptions,
    MethodOptions,
    ModelOptions,
    NetworkOptions,
    TargetOptions,
)
from repquant.cli.proof import proving_runtimes
from repquant.data.datasets import ImageFolder, open_split
from repquant.errors import InputError
from repquant.runtimes import available, cpu
from repquant.targets.target import resolve_target
from repquant.train.distributed import Ranks
from repquant.train.held_back import hold_back


@pytest.fixture
def data(photographs):
    return DataOptions(data=str(photographs), image_size=32)


@pytest.fixture
def own_data(photographs, tmp_path):
    """Options for a copy of the photographs that a test may change, and the copy."""
    folder = shutil.copytree(photographs, tmp_path / "own")
    return DataOptions(data=str(folder), image_size=32, skip_unreadable=True), folder


@pytest.fixture
def nothing_is_read(monkeypatch):
    def fail(*_):
        raise AssertionError("an image was read only to choose it")

    monkeypatch.setattr(ImageFolder, "read_bytes", fail)


def test_no_image_that_is_held_back_calibrates(photographs, data):
    options = CalibrationOptions(calibration_images=16)
    source = open_split(photographs, "train")
    rest, held = hold_back(source, 8)
    calibration = open_calibration(options, data, str(photographs), 4, held_back_images=8)
    names = {rest.name(index) for index in calibration.subset.indices}
    assert len(names) == 16
    assert names.isdisjoint(held.name(index) for index in range(len(held)))
    assert calibration.ranges.images == 16
    assert calibration.rounding is not None
    assert calibration.rounding.images == 4


def test_a_dangling_link_is_skipped_and_not_counted(own_data):
    options, folder = own_data
    image = folder / "train" / "dark" / "03.png"
    image.unlink()
    image.symlink_to("nowhere.png")
    calibration = open_calibration(CalibrationOptions(calibration_images=24), options, options.data, 0)
    assert sum(len(batch.images) for batch in calibration.ranges) == 23
    assert calibration.ranges.skipped.keys() == {"dark/03.png"}
    assert calibration.images_read == 23


def test_rounding_looks_at_calibration_images_only(data):
    options = CalibrationOptions(calibration_images=16)
    by_default = open_calibration(options, data, data.data, MethodOptions.rounding_images)
    assert by_default.rounding is not None
    assert by_default.rounding.images == 16
    with pytest.raises(InputError, match=r"--rounding-images 17 was given.*of which there are 16; lower it or raise"):
        open_calibration(options, data, data.data, 17)


def test_images_are_chosen_without_reading_them(data, nothing_is_read):
    assert training_loader(data, 8, 0, Ranks()).images == 8
    assert held_back_loader(CalibrationOptions(calibration_images=16), data, 8, 2).images == 8


@pytest.mark.parametrize("count", [-1, 25])
def test_training_images_that_there_are_not(data, count):
    with pytest.raises(InputError, match=f"--images {count} was given; allowed are 1 to 24"):
        training_loader(data, count, 0, Ranks())


def test_labels_that_are_not_used_need_not_fit(own_data):
    options, folder = own_data
    (folder / "train").rename(folder / "other")
    (folder / "more" / "train").mkdir(parents=True)
    for name in ("bright", "dark", "grey"):
        shutil.copytree(folder / "other" / "dark", folder / "more" / "train" / name)
    calibration = CalibrationOptions(calibration_data=str(folder / "more"), calibration_images=16)
    assert held_back_loader(calibration, options, 20, 2).images == 20
    shutil.rmtree(folder / "val")
    with pytest.raises(InputError, match="3 classes in train, the model has 2"):
        held_back_loader(calibration, options, 20, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "openvino", "tensorrt_scales": "float16"}, "--tensorrt-scales float16 is for --target tensorrt"),
        ({"target": "onnxruntime", "tensorrt_weights": "float"}, "--tensorrt-weights float is for --target tensorrt"),
    ],
)
def test_storage_for_tensorrt(options, message):
    with pytest.raises(InputError, match=message):
        open_target(TargetOptions(**options))


def test_gains_need_float32_scales():
    target = open_target(TargetOptions(target="tensorrt", tensorrt_scales="float16"))
    with pytest.raises(InputError, match="--reconstruction-gains fold into float32 scales"):
        open_method(MethodOptions(rounding="learned", reconstruction_gains=True), target)


def test_notes_say_what_a_cpu_without_vnni_does(monkeypatch):
    target = open_target(TargetOptions(target="tensorrt"))
    monkeypatch.setattr(cpu, "int8_support", lambda: cpu.Int8Support(False, ""))
    precise, saturating = saturation_notes(target, ("pytorch", "onnxruntime", "openvino"))
    assert "exact and slower" in precise
    assert "openvino may saturate" in saturating
    assert saturation_notes(target, ("pytorch",)) == ()
    assert saturation_notes(open_target(TargetOptions(target="tensorrt", weight_bits=7)), ("openvino",)) == ()
    monkeypatch.setattr(cpu, "int8_support", lambda: cpu.Int8Support(True, ""))
    assert saturation_notes(target, ("onnxruntime", "openvino")) == ()


def test_fewer_images_than_the_default_are_all_taken(data, capsys):
    calibration = open_calibration(CalibrationOptions(), data, data.data, 256)
    assert calibration.ranges.images == calibration.rounding.images == 24
    assert "there are 24 images to calibrate on: all are taken, in place of 512" in capsys.readouterr().err
    with pytest.raises(InputError, match="25 calibration images were asked for, but there are 24"):
        open_calibration(CalibrationOptions(calibration_images=25), data, data.data, 0)


def test_runtimes_that_are_not_installed_are_left_out_of_the_default(monkeypatch, capsys):
    target = resolve_target("onnxruntime")
    monkeypatch.setattr(available, "installed", lambda: ("pytorch", "openvino"))
    assert proving_runtimes("auto", target) == ("pytorch", "openvino")
    assert "left out: onnxruntime (pip install 'repquant[onnxruntime]')" in capsys.readouterr().err
    assert proving_runtimes("all", target) == ("pytorch", "openvino")
    with pytest.raises(InputError, match="'onyx' was given; allowed are pytorch"):
        proving_runtimes("onyx", target)


def test_what_a_checkpoint_is_of_is_read_off_it(weights, capsys):
    given = ModelOptions(weights=str(weights))
    assert identified(given) == ModelOptions(arch="RepVGG-tiny", num_classes=2, weights=str(weights))
    assert "RepVGG-tiny with 2 classes" in capsys.readouterr().err
    of_three = identified(ModelOptions(weights=str(weights), num_classes=3))
    assert (of_three.arch, of_three.num_classes) == ("RepVGG-tiny", 3), "the file is then refused by name"
    own = NetworkOptions(model="mine.py:network", weights=str(weights))
    assert identified(own) is own
