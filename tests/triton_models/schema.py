"""The schema of config.pbtxt, from Triton's client, and what the server makes of one."""

from __future__ import annotations

import importlib.util
from importlib.metadata import files
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf import json_format, text_format


def _schema() -> ModuleType:
    """Its module alone: the package around it needs gRPC."""
    found = next(f for f in files("tritonclient") or () if f.match("grpc/model_config_pb2.py"))
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(str(found.locate())))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCHEMA = _schema()


def parsed(model: Path) -> Any:
    """The configuration of a model's folder. Raises ParseError for what is none."""
    text = (model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, SCHEMA.ModelConfig())


def as_json(config: Any) -> str:
    """As models are given it."""
    return json_format.MessageToJson(
        config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
