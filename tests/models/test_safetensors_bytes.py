"""Equal weights are equal bytes."""

import safetensors
import torch

from repquant.models.safetensors_bytes import serialized


def test_equal_tensors_give_equal_bytes_that_the_library_reads(tmp_path):
    """The library itself writes its metadata in another order in almost every call."""
    tensors = {"b": torch.arange(3), "a": torch.ones(2, 3), "ä": torch.zeros(0)}
    metadata = {name: f"value of {name}" for name in ("dialect", "arch", "num_classes", "form", "other", "ü")}
    contents = {serialized(tensors, metadata) for _ in range(30)}
    assert len(contents) == 1
    assert len({safetensors.torch.save(tensors, metadata) for _ in range(30)}) > 1
    (tmp_path / "w.safetensors").write_bytes(contents.pop())
    with safetensors.safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == metadata
        assert {key: file.get_tensor(key).tolist() for key in file.keys()} == {  # noqa: SIM118  # no mapping
            key: tensor.tolist() for key, tensor in tensors.items()
        }
