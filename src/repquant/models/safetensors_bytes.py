"""Tensors as the bytes of a .safetensors file, the same bytes each time."""

import json
import struct
from collections.abc import Mapping

import safetensors.torch
from torch import Tensor


def serialized(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a .safetensors file; equal arguments give equal bytes.

    The library writes the metadata in an order that differs from process to process. Its header (the length as 8
    little-endian bytes, then JSON, padded by spaces to a multiple of 8) is written anew with sorted metadata.
    """
    content = safetensors.torch.save(dict(tensors), dict(metadata))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]
