"""Files of torch.save from others: nothing runs, and nothing takes more than the file holds."""

import pickle
import random
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from hostile_files import HOSTILE, archive, of_type, state, tensor

from repquant.errors import InputError
from repquant.models.checkpoints import load_tensors
from repquant.models.torch_file import load_torch_file


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_tensors(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_declares_more_than_it_holds_is_refused(tmp_path, kind):
    content, words = HOSTILE[kind]
    path = archive(tmp_path / "w.pth", content, floats=1024 if kind == "many aliases" else 1)
    tracemalloc.start()
    message = refusal(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert words in message
    assert len(message) < 600
    assert "\x1b" not in message
    assert peak < 100 * max(path.stat().st_size, 2**20)


def test_the_pickles_above_are_as_those_of_torch(tmp_path):
    path = archive(tmp_path / "w.pth", state(tensor((1,), (1,), 1)))
    assert torch.load(path, weights_only=True) == {"linear.weight": torch.ones(1)}
    assert load_tensors(path) == {"linear.weight": torch.ones(1)}


def test_what_makes_many_objects_is_refused(tmp_path):
    """An empty dictionary takes a byte in the file and 64 in memory."""
    path = archive(tmp_path / "w.pth", state(pickle.EMPTY_DICT * 2**21))
    assert "longer than any of a network" in refusal(path)


@pytest.mark.parametrize("dtype", [name for name, value in vars(torch).items() if isinstance(value, torch.dtype)])
def test_a_tensor_of_any_type_is_read_or_refused(tmp_path, dtype):
    """Torch has types for which it can do almost nothing, and stops with an error."""
    path = archive(tmp_path / "w.pth", state(of_type(dtype)), floats=2)
    try:
        (tensor,) = load_tensors(path).values()
    except InputError:
        return
    assert tensor.isfinite().all()


def test_a_compressed_member_is_refused(tmp_path):
    floats = 2**24
    path = archive(tmp_path / "w.pth", state(tensor((floats,), (1,), floats)), floats, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    assert "a member is compressed" in refusal(path)


def test_members_that_share_their_bytes_are_refused(tmp_path):
    path = archive(tmp_path / "w.pth", state(tensor((1024,), (1,), 1024)), 1024)
    with zipfile.ZipFile(path, "a") as file:
        info = file.getinfo("archive/data/0")
        for index in range(50):
            again = zipfile.ZipInfo(f"archive/data/{index + 1}")
            again.header_offset, again.file_size, again.compress_size = info.header_offset, 4096, 4096
            again.CRC = info.CRC
            file.filelist.append(again)
        file._didModify = True
    assert "declare more bytes than the file has" in refusal(path)


def test_every_flipped_bit_is_noticed_or_means_nothing(tmp_path):
    tensors = {"a": torch.randn(100, generator=torch.Generator().manual_seed(0)), "b": torch.arange(7)}
    path, dice = tmp_path / "w.pth", random.Random(0)
    torch.save(tensors, path)
    content, refused = path.read_bytes(), 0
    for _ in range(300):
        flipped = bytearray(content)
        flipped[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(flipped)
        try:
            found = load_tensors(path)
        except InputError:
            refused += 1
        else:  # in the time of a member, or between two of them
            assert found.keys() == tensors.keys()
            assert all(found[key].equal(tensor) for key, tensor in tensors.items())
    assert refused > 100


@pytest.mark.parametrize("legacy", [False, True])
def test_everything_that_a_checkpoint_may_hold_is_read(tmp_path, legacy):
    whole = torch.arange(12.0)
    content = {
        "tensors": [whole, whole[2:8].view(2, 3).T, torch.tensor(3), torch.empty(0, 3), torch.ones(2).bool()],
        "dtypes": [torch.ones(2, dtype=kind) for kind in (torch.bfloat16, torch.float16, torch.int8, torch.float64)],
        "new": torch.ones(4, dtype=torch.uint16),
        "plain": (None, True, False, -1, 2**40, 10**30, 1.5, "text ü", (), [], {}, {3: {"a": [1]}}, (1,), (1, 2, 3)),
        "size": torch.Size([2, 3]),
        "dtype": torch.float32,
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "module": torch.nn.BatchNorm2d(2).state_dict(),
    }
    if legacy:
        content["tensors"].pop(1)  # the format has views in a form of their own
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = load_torch_file(path)
    for kind in ("tensors", "dtypes"):
        for written, read in zip(content[kind], found[kind], strict=True):
            assert read.dtype == written.dtype
            assert read.equal(written)
    assert found["new"].equal(content["new"])
    assert found["plain"] == content["plain"]
    assert (found["size"], found["dtype"]) == ((2, 3), torch.float32)
    assert found["parameter"].equal(torch.ones(3))
    assert found["module"].keys() == content["module"].keys()


def test_tensors_share_memory_as_they_did(tmp_path):
    whole = torch.arange(4.0)
    torch.save([whole, whole[1:]], tmp_path / "w.pth")
    first, second = load_torch_file(tmp_path / "w.pth")
    first[1] = 9
    assert second[0] == 9
