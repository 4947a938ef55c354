"""What went wrong → status, headers and body, in the dialect of the route.

OpenAI's shape everywhere: {"error": {"message", "type", "param", "code"}}; A1111's routes have
{"error", "detail", "body", "errors"}, those of the Open Inference Protocol {"error": "…"}. Nothing
of a library's exception is told: a message is ours, or names the request by which the log has it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from ... import request as requests
from ...errors import SdfastError
from .. import refusals

STATUSES: Mapping[type[SdfastError], int] = {
    refusals.TooLarge: 413,
    refusals.UnknownModel: 404,
    refusals.Overloaded: 429,
    refusals.Infeasible: 504,
    refusals.DeadlineExceeded: 504,
    refusals.Unavailable: 503,
    refusals.Stopped: 499,
    refusals.OutOfMemory: 507,
    refusals.BadOutput: 500,
    refusals.Broken: 500,
}
"""Of refusals; every other SdfastError is the client's, 400."""
HOPELESS = (refusals.Infeasible, refusals.OutOfMemory, refusals.BadOutput)
"""Whose status says that asking again may help, which it does not."""
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_log = logging.getLogger("sdfast.http")
_PARAMETERS = frozenset(
    (
        *(one.name for one in fields(requests.Request)),
        *("size", "background", "deadline", "preview_every", "priority"),
    )
)
_OPENAI = {"count": "n", "width": "size", "height": "size"}  # what its routes call a parameter


class Error(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class Answer(BaseModel):
    """Of what went wrong, in OpenAI's shape."""

    error: Error


class A1111Answer(BaseModel):
    """The same in A1111's shape."""

    error: str
    detail: str
    body: str
    errors: str


class OipAnswer(BaseModel):
    """The same in that of the Open Inference Protocol."""

    error: str


def answers(shape: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """For the schema of routes that answer in a shape."""
    return {"default": {"model": shape, "description": "What went wrong"}}


RESPONSES = answers(Answer)


@dataclass(frozen=True)
class Problem:
    """An answer in place of pictures.

    param: the field that is wrong; code: one word for programs
    """

    status: int
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        return _TYPES.get(self.status, usual)

    def body(self, path: str = "/") -> dict[str, Any]:
        """As JSON, in the dialect of the route."""
        if path.startswith("/sdapi/"):
            said = {"error": self.code, "detail": self.message, "body": ""}
            return {**said, "errors": self.message}
        if path.startswith("/v2/") or path == "/v2":
            return {"error": self.message}
        param = self.param
        if path.startswith("/v1/images/"):
            param = _OPENAI.get(param or "", param)
        told = {"message": self.message, "type": self.type, "param": param, "code": self.code}
        return {"error": told}

    def response(self, path: str) -> Response:
        return JSONResponse(self.body(path), self.status, dict(self.headers))


def problem(error: Exception, request_id: str = "") -> Problem:
    """Of any exception."""
    if isinstance(error, RequestValidationError):
        return invalid(error.errors())
    if isinstance(error, HTTPException):
        return Problem(
            error.status_code,
            str(error.detail),
            _CODES.get(error.status_code, "invalid_request"),
            headers=dict(error.headers or {}),
        )
    if isinstance(error, SdfastError):
        status = STATUSES.get(type(error), 400)
        code = error.code if isinstance(error, refusals.Refusal) else "invalid_value"
        return Problem(status, str(error), code, _param(str(error)), _headers(error))
    named = f": its log has it as request {request_id}" if request_id else ""
    return Problem(500, f"an error of the server itself{named}", "internal_error")


def invalid(errors: Sequence[Any]) -> Problem:
    """Of what a body lacks or has too much: the first field that is wrong, by its name."""
    first = errors[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    name = ".".join(where) if first["type"] != "json_invalid" else None
    if first["type"] == "json_invalid":
        message = f"the body is no JSON: {first['ctx']['error']} at character {where[0]}"
    elif first["type"] == "extra_forbidden":
        message = (
            f"unknown field {_short(name)}: leave it out, or see /openapi.json for those there are"
        )
    elif first["type"] == "missing":
        message = f"{name or 'the body'} is missing"
    elif not where:
        message = "the body must be a JSON object, with Content-Type: application/json"
    else:
        message = f"{_short(name)}: {first['msg']}"
    return Problem(400, message, "invalid_value", name or None)


def install(app: FastAPI) -> None:
    """Has the app answer in these shapes."""

    async def answer(request: Request, error: Exception) -> Response:
        path = request.url.path
        found = problem(error, request.scope.get("state", {}).get("request_id", ""))
        note(request.scope, found)
        if isinstance(error, RequestValidationError) and path.startswith("/sdapi/"):
            return JSONResponse(found.body(path), 422)
        return found.response(path)

    for kind in (SdfastError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)


def note(scope: Scope, found: Problem) -> None:
    """Has the log's line say what went wrong."""
    scope.setdefault("state", {})["error"] = found.code


def logged(error: Exception, request_id: str) -> Problem:
    """Of an exception that no handler sees: in the log, where it is an error of ours."""
    if not isinstance(error, SdfastError):
        _log.error("", exc_info=error, extra={"told": {"request_id": request_id}})
    return problem(error, request_id)


def _headers(error: SdfastError) -> dict[str, str]:
    found = {"x-should-retry": "false"} if isinstance(error, HOPELESS) else {}
    after = error.retry_after if isinstance(error, refusals.Refusal) else None
    if after is not None:
        found["retry-after"] = str(max(1, math.ceil(after)))
        found["retry-after-ms"] = str(max(1, math.ceil(after * 1000)))
    return found


def _param(message: str) -> str | None:
    """The parameter that a message begins with, as those of requests do."""
    first = message.split(" ", 1)[0].rstrip(":;,")
    return first if first in _PARAMETERS else None


def _short(name: str | None) -> str:
    text = cast(str, name)
    return repr(text if len(text) <= 60 else f"{text[:57]}…")


_CODES = {
    400: "invalid_value",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "unsupported_media_type",
    429: "overloaded",
    503: "unavailable",
}
