"""A model of Triton's Python backend: prompts in, pictures out, drawn by sdfast.

Lies at NAME/1/model.py of a model repository, beside the bundle; `sdfast export-triton` puts it
there. Triton's Python has to have sdfast.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # Triton brings it

import sdfast
from sdfast.errors import EngineError


class TritonPythonModel:
    """What Triton calls. An instance has a process of its own, and draws one picture at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the bundle and draws once, so that a model that is ready is warm."""
        config = json.loads(args["model_config"])
        self._inputs = [field["name"] for field in config["input"]]
        told = config.get("parameters", {})
        options = {k: told[k]["string_value"] for k in ("backend", "precision") if k in told}
        on_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        bundle = Path(args["model_repository"]) / args["model_version"] / "bundle"
        self._pipeline = sdfast.load(str(bundle), device=device, **options)
        self._pipeline("warm", steps=1, seed=0)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer for each request."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Frees the engines."""
        self._pipeline.close()

    def _answer(self, request: Any) -> Any:
        try:
            asked = sdfast.Request.from_dict(_parameters(request, self._inputs))
            result = self._pipeline(asked, callback=lambda done, of: not request.is_cancelled())
        except sdfast.Cancelled as error:
            return _refused(error, pb_utils.TritonError.CANCELLED)
        except EngineError as error:
            return _refused(error, pb_utils.TritonError.INTERNAL)
        except sdfast.SdfastError as error:
            return _refused(error, pb_utils.TritonError.INVALID_ARG)
        image = np.asarray(result.images[0], np.uint8)
        seed = np.array(result.seeds[:1], np.uint64)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("image", image), pb_utils.Tensor("seed", seed)]
        )


def _parameters(request: Any, names: list[str]) -> dict[str, Any]:
    """Those inputs that the request has, as sdfast names them. Raises sdfast.InvalidRequest."""
    given = {}
    for name in names:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is not None:
            (value,) = tensor.as_numpy().reshape(-1).tolist()
            given[name] = _text(name, value) if isinstance(value, bytes) else value
    return given


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise sdfast.InvalidRequest(f"{name} is no UTF-8 ({error.reason}): encode it so") from None


def _refused(error: Exception, code: int) -> Any:
    return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), code))
