"""safetensors files against the package of that name, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sdfast import safetensors
from sdfast.floats import widened


def written(file: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


def test_tensors_of_every_type_are_those_that_were_saved(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    torch.manual_seed(0)
    tensors = {str(kind): torch.randn(3, 5).to(kind) for kind in kinds}
    whole = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    tensors |= {str(kind): torch.arange(7).to(kind) for kind in whole}
    tensors |= {"scalar": torch.tensor(4.0), "empty": torch.empty(0, 3)}
    save_file(tensors, tmp_path / "all.safetensors", metadata={"made": "here"})
    found, texts = safetensors.read(tmp_path / "all.safetensors")
    assert texts == {"made": "here"}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        values = widened(found[name]) if tensor.dtype == torch.bfloat16 else found[name]
        assert values.shape == tuple(tensor.shape)
        assert np.array_equal(values, tensor.double().numpy())


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"{", "its header is not JSON"),
        (b"[" * 100_000, "its header is not JSON"),
        ([], "its header has no tensors"),
        ({"__metadata__": {"a": 1}}, "its __metadata__ are not texts"),
        ({"x": 1}, "does not tell where x is"),
        ({"x": {"dtype": "F32", "shape": [2]}}, "does not tell where x is"),
        ({"x": {**ENTRY, "dtype": "F8_E4M3"}}, "x is F8_E4M3; known types are F64"),
        ({"x": {**ENTRY, "shape": [3]}}, "x is not inside of it"),
        ({"x": {**ENTRY, "shape": [-2]}}, "x is not inside of it"),
        ({"x": {**ENTRY, "shape": [True, 2]}}, "x is not inside of it"),
        ({"x": {**ENTRY, "data_offsets": [4, 12]}}, "x is not inside of it"),
        ({"x": {**ENTRY, "data_offsets": [-8, 0]}}, "x is not inside of it"),
        ({"x": {**ENTRY, "data_offsets": [0, 8, 9]}}, "does not tell where x is"),
        ({"x": {**ENTRY, "shape": "12"}}, "x is not inside of it"),
        ({"x": {**ENTRY, "shape": [0, 1 << 70], "data_offsets": [0, 0]}}, "x is not inside of it"),
        ({"x": {**ENTRY, "dtype": ["F32"]}}, "known types are F64"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, header: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        safetensors.read(written(tmp_path / "bad.safetensors", header, bytes(8)))


@pytest.mark.parametrize("length", [1 << 40, 100, 2**63])
def test_a_header_longer_than_the_file_is_not_read(tmp_path: Path, length: int) -> None:
    with pytest.raises(ValueError, match="longer than the file"):
        safetensors.read(written(tmp_path / "bad.safetensors", {"x": ENTRY}, bytes(8), length))
    (tmp_path / "short.safetensors").write_bytes(b"\0\0\0")
    with pytest.raises(ValueError, match="longer than the file"):
        safetensors.read(tmp_path / "short.safetensors")
