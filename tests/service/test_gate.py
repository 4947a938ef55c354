"""What a service accepts, asked without a worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdfast import Request
from sdfast.errors import InvalidRequest
from sdfast.service import Limits, Service
from sdfast.service.gate import Gate

PROMPT = "a red circle <lora:{}:0.8>"


def gate(loras: bool, folder: Path | None) -> Gate:
    return Gate(Service().models, {}, Limits(), loras, folder)


@pytest.mark.parametrize("name", ["imk", "../ink", "/etc/passwd", "i" * 400])
def test_a_lora_that_is_not_there_is_refused_without_the_name_of_a_folder(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "ink.safetensors").touch()
    asked = gate(True, tmp_path)
    request = Request(PROMPT.format(name), width=64, height=64)
    with pytest.raises(InvalidRequest, match="LoRA") as told:
        asked.checked(request, asked.models["demo"], "fp32")
    assert str(tmp_path) not in str(told.value)
    assert ("did you mean 'ink'" in str(told.value)) == (name == "imk")


def test_a_lora_is_accepted_where_the_operator_allows_it_and_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "ink.safetensors").touch()
    request = Request(PROMPT.format("ink"), width=64, height=64)
    allowed, strict = gate(True, tmp_path), gate(False, None)
    allowed.checked(request, allowed.models["demo"], "fp32")
    with pytest.raises(InvalidRequest, match="draws without LoRA"):
        strict.checked(request, strict.models["demo"], "fp32")
