"""The Open Inference Protocol v2, as KServe, Triton, Seldon and OpenVINO Model Server speak it:
health, what the models are, and inference on tensors as JSON.

A model's inputs are tensors of one element, `prompt` and what else of a request is in `INPUTS`; its
outputs are `image`, a PNG in base64 for each picture, and `seed`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ... import __version__
from ... import request as requests
from ...errors import InvalidRequest, nearest
from ...ranges import Range
from ..jobs import Outcome
from ..refusals import UnknownModel
from . import pictures
from .errors import OipAnswer, Problem, answers
from .guard import owner, request_id
from .settings import Settings
from .watching import finished

if TYPE_CHECKING:
    from ..gate import Model
    from ..service import Service

Name = Annotated[str, Path(examples=["demo"])]
Datatype = Literal["BYTES", "INT32", "INT64", "UINT64", "FP32"]
INPUTS: dict[str, Datatype] = {
    "prompt": "BYTES",
    "negative_prompt": "BYTES",
    "steps": "INT32",
    "sampler": "BYTES",
    "schedule": "BYTES",
    "guidance": "FP32",
    "seed": "UINT64",
    "width": "INT32",
    "height": "INT32",
    "count": "INT32",
}
"""Parameters of a request, and the datatype of each."""
OUTPUTS: dict[str, Datatype] = {"image": "BYTES", "seed": "UINT64"}
_VERSION = "1"
_WHOLE = Range(-(2**63), 2**64 - 1, whole=True)
_REAL = Range(-3.5e38, 3.5e38)


class Tensor(BaseModel):
    """An input. data: its elements, flat or nested as its shape says"""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] | None = None


class Output(BaseModel):
    """An output that is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    parameters: dict[str, Any] | None = None


class Inference(BaseModel):
    """What is sent."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "inputs": [
                        {
                            "name": "prompt",
                            "shape": [1],
                            "datatype": "BYTES",
                            "data": ["a small red circle on a white background"],
                        },
                        {"name": "steps", "shape": [1], "datatype": "INT32", "data": [20]},
                    ]
                }
            ]
        },
    )

    id: str | None = Field(None, max_length=256)
    inputs: list[Tensor]
    outputs: list[Output] | None = None
    parameters: dict[str, Any] | None = None


def router(service: Service, settings: Settings) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=answers(OipAnswer))

    @routes.get("", name="server_metadata")
    async def server() -> dict[str, Any]:
        """What this is."""
        return {"name": "sdfast", "version": __version__, "extensions": []}

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        """Whether the process answers."""
        return {"live": True}

    @routes.get("/health/ready", responses={503: {}})
    async def ready() -> Response:
        """Whether requests are accepted."""
        return _readiness({"ready": True})

    @routes.get("/models/{model}/versions/{version}")
    @routes.get("/models/{model}")
    async def metadata(model: Name, version: str = _VERSION) -> dict[str, Any]:
        """The inputs and outputs of a model."""
        return _metadata(_found(model, version))

    @routes.get("/models/{model}/versions/{version}/ready", responses={503: {}})
    @routes.get("/models/{model}/ready", responses={503: {}})
    async def model_ready(model: Name, version: str = _VERSION) -> Response:
        """Whether requests for a model are accepted."""
        return _readiness({"name": _found(model, version).name, "ready": True})

    @routes.post("/models/{model}/versions/{version}/infer")
    @routes.post("/models/{model}/infer")
    async def infer(
        model: Name, asked: Inference, request: Request, version: str = _VERSION
    ) -> dict[str, Any]:
        """Draws pictures."""
        name = _found(model, version).name
        wanted = _outputs(asked)
        who, drawing = owner(request), translated(asked)
        job = await service.submit(drawing, model=name, owner=who, id=request_id(request))
        outcome = await finished(service, job, request)
        tensors = {name: await _output(name, outcome) for name in wanted}
        answer = {
            "model_name": name,
            "model_version": _VERSION,
            "outputs": [
                {"name": n, "shape": [len(data)], "datatype": OUTPUTS[n], "data": data}
                for n, data in tensors.items()
            ],
        }
        return answer if asked.id is None else {**answer, "id": asked.id}

    def _readiness(answer: dict[str, Any]) -> Response:
        reason = service.readiness()
        if reason is None:
            return JSONResponse(answer)
        return Problem(503, reason, "unavailable", headers={"retry-after": "1"}).response("/v2")

    def _found(name: str, version: str) -> Model:
        if version != _VERSION:
            raise UnknownModel(f"there is no version {version[:16]!r}; there is {_VERSION}")
        return service.model(name)

    return routes


def translated(asked: Inference) -> requests.Request:
    """As a request. Raises InvalidRequest, which names the input that is wrong."""
    values: dict[str, Any] = {}
    for tensor in asked.inputs:
        name = _named("input", tensor.name, INPUTS)
        if name in values:
            raise InvalidRequest(f"input {name} is given twice: once is enough")
        values[name] = _element(tensor)
    return requests.Request.from_dict(values)


def _element(tensor: Tensor) -> Any:
    """The one element of an input."""
    wanted, data = INPUTS[tensor.name], tensor.data
    while len(data) == 1 and isinstance(data[0], list):
        data = data[0]
    if tensor.datatype != wanted and not _alike(tensor.datatype, wanted):
        raise InvalidRequest(
            f"input {tensor.name} is of datatype {tensor.datatype[:16]!r}; it must be {wanted}"
        )
    if any(side != 1 for side in tensor.shape) or len(data) != 1:
        raise InvalidRequest(
            f"input {tensor.name} must have one element and the shape [1], as JSON: binary data is "
            "not read"
        )
    (value,) = data
    good = {"BYTES": isinstance(value, str), "FP32": value in _REAL}.get(wanted, value in _WHOLE)
    if not good:
        kind = {"BYTES": "text", "FP32": "a number"}.get(wanted, "a whole number")
        found = f"{value!r:.40}" if isinstance(value, str | int | float) else "another thing"
        raise InvalidRequest(f"input {tensor.name} is {found}; it must be {kind}")
    return value


def _alike(given: str, wanted: Datatype) -> bool:
    """Whether numbers of one datatype, as JSON has them, do for another."""
    whole = {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
    real = {"FP16", "FP32", "FP64"}
    return (wanted == "FP32" and given in real) or ("INT" in wanted and given in whole)


def _outputs(asked: Inference) -> list[str]:
    """The names of the outputs that are wanted."""
    names = [_named("output", one.name, OUTPUTS) for one in asked.outputs or ()]
    return list(dict.fromkeys(names)) or list(OUTPUTS)


def _named(kind: str, name: str, known: dict[str, Datatype]) -> str:
    if name not in known:
        raise InvalidRequest(
            f"{kind} {name[:40]!r} is not known{nearest(name[:40], known)}; known: "
            + ", ".join(known)
        )
    return name


async def _output(name: str, outcome: Outcome) -> list[Any]:
    if name == "seed":
        return list(outcome.seeds)
    return pictures.as_base64(await pictures.encoded(outcome))


def _metadata(model: Model) -> dict[str, Any]:
    def tensors(named: dict[str, Datatype], count: int) -> list[dict[str, Any]]:
        return [{"name": n, "datatype": d, "shape": [count]} for n, d in named.items()]

    return {
        "name": model.name,
        "versions": [_VERSION],
        "platform": "sdfast",
        "inputs": tensors(INPUTS, 1),
        "outputs": tensors(OUTPUTS, -1),
    }
