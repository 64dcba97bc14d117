"""Convert gRPC calls to the relay's form and back: metadata as headers, status codes as HTTP's.

A `relay.Response` uses HTTP's terms, so one set of rules serves both transports. gRPC's exact code and
message travel in two additional headers.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable

from grpc import StatusCode

from bridge.fleet import wire
from bridge.relay.calls import Response

Metadata = tuple[tuple[str, str | bytes], ...]
Headers = tuple[tuple[str, str], ...]

CODE_HEADER, MESSAGE_HEADER = "grpc-status", "grpc-message"

HTTP_STATUS = {
    StatusCode.OK: 200,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ABORTED: 409,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.FAILED_PRECONDITION: 412,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.CANCELLED: 499,
    StatusCode.UNKNOWN: 500,
    StatusCode.INTERNAL: 500,
    StatusCode.DATA_LOSS: 500,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
"""gRPC's codes as Flower pairs them with HTTP's, for example 412 (flwr 1.34 `supercore/error/catalog.py`)."""

_KEY, _TEXT = re.compile(r"[0-9a-z_.-]+"), re.compile(r"[ -~]*")
_BY_NUMBER = {int(code.value[0]): code for code in StatusCode}


RENAMED = {f"{name}-bin": name for name in (wire.PUBLIC_KEY, wire.SIGNATURE)}
"""Values that are binary over gRPC, and base64 under another name over HTTP. The relay uses the latter
form."""
_BACK = {name: key for key, name in RENAMED.items()}


def headers_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> Headers:
    """Return Flower's own metadata as headers. Binary values (keys in "-bin") become base64, as on gRPC's
    wire."""
    return tuple(
        (RENAMED.get(key, key), base64.b64encode(value).decode() if isinstance(value, bytes) else value)
        for key, value in metadata or ()
        if key.startswith(wire.METADATA_PREFIX)
    )


def metadata_of(headers: Headers) -> Metadata:
    """Reverse `headers_of`, and convert our own headers for a SuperLink. Other headers are left out.

    Raises:
        ValueError: gRPC would refuse a value, or a value is not base64.
    """
    ours = (wire.CALL_HEADER, wire.DONE_HEADER)
    return tuple(
        _pair(key, value) for key, value in headers if key.startswith(wire.METADATA_PREFIX) or key in ours
    )


def _pair(key: str, value: str) -> tuple[str, str | bytes]:
    key = _BACK.get(key, key)
    if not _KEY.fullmatch(key) or not _TEXT.fullmatch(value):
        raise ValueError(f"{key[:100]!r} with {value[:100]!r} is not valid metadata")
    return key, base64.b64decode(value, validate=True) if key.endswith("-bin") else value


def refusal(code: StatusCode, message: str, headers: Headers = ()) -> Response:
    """Return an answer that is an error."""
    number = str(code.value[0])
    return Response(HTTP_STATUS[code], ((CODE_HEADER, number), (MESSAGE_HEADER, message), *headers))


def code_of(response: Response) -> tuple[StatusCode, str]:
    """Return an answer's gRPC code and message. An answer made on the way has only HTTP's status."""
    headers = dict(response.headers)
    if CODE_HEADER in headers:
        return _BY_NUMBER.get(int(headers[CODE_HEADER]), StatusCode.UNKNOWN), headers.get(MESSAGE_HEADER, "")
    found = (code for code, status in HTTP_STATUS.items() if status == response.status)
    return next(found, StatusCode.UNKNOWN), "answered by the relay"
