import json
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from repquant.errors import InputError
from repquant.models import torch_file
from repquant.models.checkpoints import identify, load_model, load_tensors, save_model
from repquant.models.dialects import to_dialect
from repquant.models.network import RepVGG, build
from repquant.models.reparam import reparameterize
from repquant.models.spec import ArchSpec
from repquant.models.zoo import ARCHITECTURES

ARCH = "RepVGG-tiny"
CLASSES = 10


@pytest.fixture(scope="module")
def model(randomize) -> RepVGG:
    return randomize(build(ARCH, CLASSES))


@pytest.fixture
def official(model: RepVGG) -> dict[str, Tensor]:
    return to_dialect(model.state_dict(), "official")


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Write any object with torch.save and return where."""

    def save(content: Any, name: str = "weights.pth", **options: Any) -> Path:
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


def assert_same(left: RepVGG, right: RepVGG) -> None:
    theirs = right.state_dict()
    assert left.state_dict().keys() == theirs.keys()
    for name, tensor in left.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("form", ["training", "deploy"])
@pytest.mark.parametrize("dialect", ["official", "timm", "mmpretrain"])
def test_written_model_is_read_back(dialect, form, suffix, model: RepVGG, tmp_path: Path) -> None:
    written = model if form == "training" else reparameterize(model)
    path = tmp_path / f"weights{suffix}"
    save_model(written, path, dialect)
    read = load_model(path, ARCH, CLASSES)
    assert (read.form, read.num_classes, read.spec.name) == (form, CLASSES, ARCH)
    assert not read.training
    assert_same(read, written)


def test_grouped_squeeze_excite_model_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ArchSpec(name="x", blocks=(1, 2, 2, 1), widths=(0.25,) * 4, groups=2, squeeze_excite=True)
    monkeypatch.setitem(ARCHITECTURES, "x", spec)
    written = build(spec, 4)
    for dialect in ("official", "timm", "mmpretrain"):
        save_model(written, tmp_path / "x.safetensors", dialect)
        assert_same(load_model(tmp_path / "x.safetensors", "x", 4), written)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: OrderedDict(("module." + key, value) for key, value in state.items()),
        lambda state: {"state_dict": {"module." + key: value for key, value in state.items()}},
        lambda state: {
            key: nn.Parameter(value, requires_grad=value.is_floating_point()) for key, value in state.items()
        },
        lambda state: {key: value for key, value in state.items() if "num_batches_tracked" not in key},
        lambda state: {key: value.double() for key, value in state.items()},
        lambda state: {"module._orig_mod.module." + key: value for key, value in state.items()},
        lambda state: {"state_dict": {"_orig_mod.model." + key: value for key, value in state.items()}},
        lambda state: {"state_dict": {key: 0 * value for key, value in state.items()}, "state_dict_ema": state},
        lambda state: {"model_ema": {"state_dict": state}, "model": None},
    ],
    ids=[
        *("state_dict", "model", "module.", "state_dict and module.", "parameters", "no counters", "float64"),
        *("module. and _orig_mod.", "a member", "averaged", "averaged, wrapped"),
    ],
)
def test_wrappings_of_training_scripts(wrap, model, official, saved) -> None:
    assert_same(load_model(saved(wrap(official)), ARCH, CLASSES), model)


def test_what_a_file_is_of_is_read_off_it(official, saved) -> None:
    assert identify(saved({"module." + key: value for key, value in official.items()})) == (ARCH, CLASSES)


def test_a_file_of_no_architecture_is_not_guessed(official, saved) -> None:
    with pytest.raises(InputError, match="are of no architecture of the zoo: the closest is RepVGG-"):
        identify(saved(official | {"stage0.rbr_dense.conv.weight": torch.zeros(5, 3, 3, 3)}))
    with pytest.raises(InputError, match="these are not the keys of a RepVGG"):
        identify(saved({"a": torch.zeros(1)}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32(dtype, official, saved) -> None:
    official["stage0.rbr_dense.bn.num_batches_tracked"] = torch.tensor(10**6)  # infinite as float16
    halved = {key: tensor.to(dtype) for key, tensor in official.items()}
    model = load_model(saved(halved), ARCH, CLASSES)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert torch.equal(model.head.weight, halved["linear.weight"].float())


def test_legacy_format_is_read(model, official, saved) -> None:
    path = saved(official, _use_new_zipfile_serialization=False)
    assert_same(load_model(path, ARCH, CLASSES), model)


def test_loading_does_not_touch_the_random_generator(official, saved) -> None:
    path = saved(official)
    state = torch.get_rng_state()
    load_model(path, ARCH, CLASSES)
    assert torch.equal(torch.get_rng_state(), state)


def test_read_model_can_be_trained(official, saved) -> None:
    model = load_model(saved(official), ARCH, CLASSES).train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_safetensors_metadata_name_the_model(model: RepVGG, tmp_path: Path) -> None:
    save_model(reparameterize(model), tmp_path / "w.safetensors", "timm")
    with safetensors.safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"dialect": "timm", "arch": ARCH, "num_classes": "10", "form": "deploy"}


class TestSaving:
    def test_other_suffix_is_refused(self, model: RepVGG, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"w\.onnx .*use \.safetensors or \.pth"):
            save_model(model, tmp_path / "w.onnx")

    def test_unknown_dialect_is_refused(self, model: RepVGG, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="'keras'; choose one of official, timm, mmpretrain"):
            save_model(model, tmp_path / "w.pth", "keras")

    def test_a_folder_that_can_not_be_made_is_refused(self, model: RepVGG, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="can't write to"):
            save_model(model, tmp_path / "file" / "w.pth")

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_full_disk_leaves_what_was_there(self, suffix, model, tmp_path, monkeypatch) -> None:
        path = tmp_path / f"w{suffix}"
        path.write_text("before")

        def fill(self: Path, content: bytes) -> int:
            with self.open("wb") as stream:
                stream.write(content[:100])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", fill)
        with pytest.raises(Exception, match="No space left on device"):
            save_model(model, path)
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_text() == "before"


class Payload:
    """Creates a file when it is unpickled by a reader that trusts it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class TestCodeInTheFile:
    def assert_refused(self, path: Path, trap: Path, named: str) -> None:
        with pytest.raises(InputError, match="nothing in the file was run") as caught:
            load_tensors(path)
        assert named in str(caught.value)
        assert str(path) in str(caught.value)
        assert not trap.exists()

    def test_the_trap_works_on_a_trusting_reader(self, tmp_path: Path) -> None:
        trap = tmp_path / "trap"
        pickle.loads(pickle.dumps(Payload(trap)))
        assert trap.exists()

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("place", ["value", "wrapped", "beside"])
    def test_payload_is_refused(self, zipped, place, official, saved, tmp_path) -> None:
        trap = tmp_path / "trap"
        payload = Payload(trap)
        content = {
            "value": {**official, "linear.bias": payload},
            "wrapped": {"state_dict": payload},
            "beside": {"state_dict": official, "hook": payload},
        }[place]
        self.assert_refused(saved(content, _use_new_zipfile_serialization=zipped), trap, "posix.system")

    def test_plain_pickle_is_refused(self, tmp_path: Path) -> None:
        path, trap = tmp_path / "weights.pth", tmp_path / "trap"
        path.write_bytes(pickle.dumps({"state_dict": Payload(trap)}))
        self.assert_refused(path, trap, "no torch.save file")

    def test_whole_pickled_module_is_refused_with_the_way_out(self, model, saved, tmp_path) -> None:
        self.assert_refused(saved(model), tmp_path / "trap", "torch.save(model.state_dict(), path)")


class TestDamagedFiles:
    def refusal(self, path: Path) -> str:
        with pytest.raises(InputError) as caught:
            load_tensors(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    def test_missing_file(self, tmp_path: Path) -> None:
        assert "does not exist" in self.refusal(tmp_path / "w.pth")

    def test_folder(self, tmp_path: Path) -> None:
        assert "is a folder; give a checkpoint file" in self.refusal(tmp_path)

    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    def test_pipe_and_device(self, name: str, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / name)
        assert self.refusal(tmp_path / name).endswith(": Not a regular file")
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("/dev/zero")
        assert self.refusal(tmp_path / name).endswith(": Not a regular file")

    def test_unreadable_file(self, official, saved, monkeypatch) -> None:
        def refuse(*args: Any, **options: Any) -> None:
            raise PermissionError(13, "Permission denied")

        path = saved(official)
        monkeypatch.setattr(torch_file, "open_regular", refuse)
        assert self.refusal(path).endswith(": Permission denied")

    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"not a checkpoint " * 9, b"\x80", bytes(64)])
    def test_other_content(self, name: str, content: bytes, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)
        assert "truncated, damaged or no" in self.refusal(tmp_path / name)

    @pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(share=st.floats(0, 0.999))
    def test_truncated_anywhere(self, kind: str, share: float, tmp_path: Path) -> None:
        whole, path = tmp_path / f"whole.{kind}", tmp_path / "cut.pth"
        tensors = {"a": torch.ones(50), "b": torch.zeros(3)}
        if kind == "safetensors":
            whole, path = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
            safetensors.torch.save_file(tensors, whole)
        else:
            torch.save(tensors, whole, _use_new_zipfile_serialization=kind == "zip")
        content = whole.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        message = self.refusal(path)
        if kind != "legacy":  # there a cut may fall inside a name, which then looks like one that is not allowed
            assert "truncated, damaged or no" in message

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(position=st.floats(0, 0.999), value=st.integers(0, 255))
    def test_changed_byte_is_harmless(self, position: float, value: int, tmp_path: Path) -> None:
        path = tmp_path / "w.pth"
        torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
        content = bytearray(path.read_bytes())
        content[int(position * len(content))] = value
        path.write_bytes(content)
        try:
            tensors = load_tensors(path)
        except InputError:
            return
        assert all(tensor.isfinite().all() for tensor in tensors.values())

    def test_safetensors_with_a_header_that_lies(self, tmp_path: Path) -> None:
        header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
        path = tmp_path / "w.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        assert "no safetensors file" in self.refusal(path)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("key", ["stage2.1.rbr_dense.conv.weight", "stage0.rbr_1x1.bn.running_var"])
    def test_non_finite_values_are_named(self, key, value, official, saved) -> None:
        official[key] = official[key].clone()
        official[key].view(-1)[:2] = value
        message = self.refusal(saved(official))
        assert f"{key} has 2 NaN or infinite values of {official[key].numel()};" in message

    def test_all_tensors_with_non_finite_values_are_counted(self, official, saved) -> None:
        spoiled = {key: tensor * float("nan") for key, tensor in official.items()}
        assert "more tensors have some" in self.refusal(saved(spoiled))

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (
                {},
                "hold no tensors; expected a dictionary of tensors, bare or under 'state_dict_ema', 'mod",
            ),
            ({"state_dict": {}}, "hold no tensors"),
            ([torch.ones(2)], "hold a list; expected a dictionary"),
            (torch.ones(2), "hold a Tensor"),
            ({"epoch": 3, "net": {"a": torch.ones(2)}}, "entry 'epoch' is no plain tensor"),
            ({1: torch.ones(2)}, "entry 1 is no plain tensor"),
            ({"a": torch.ones(2, dtype=torch.complex64)}, "entry 'a' is no plain tensor"),
            ({"a": torch.ones(2, device="meta")}, "entry 'a' is no plain tensor"),
            ({"a": torch.eye(2).to_sparse()}, "entry 'a' is no plain tensor"),
        ],
    )
    def test_content_of_another_kind(self, content, reason, saved) -> None:
        assert reason in self.refusal(saved(content))
