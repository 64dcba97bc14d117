"""Ask the console's daemon, which acts under this person's FLARE identity."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from bridge.common.errors import FlowerbedError
from bridge.flare.console import client


class Refusal(FlowerbedError):
    """The console's daemon has answered with an error.

    Attributes:
        wrong: the request is what is wrong.
        denied: FLARE does not let this person do it.
    """

    def __init__(self, text: str, *, wrong: bool = False, denied: bool = False) -> None:
        super().__init__(text)
        self.wrong, self.denied = wrong, denied


def ask(verb: str, payload: bytes | None = None, **arguments: Any) -> dict[str, Any]:
    """Return the object that a verb answers with.

    Args:
        payload: the tar that goes with the request.

    Raises:
        Refusal: the verb has failed.
    """
    answers = list(stream(verb, payload, **arguments))
    if not answers:
        raise Refusal(f"the console's daemon did not answer '{verb}'")
    return answers[-1]


def stream(verb: str, payload: bytes | None = None, **arguments: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects that a verb answers with, as they come. Raises `Refusal`."""
    rest = b""
    for piece in _output(verb, payload, arguments):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                if isinstance(value := json.loads(line), dict):
                    yield value


def fetch(verb: str, **arguments: Any) -> Iterator[bytes]:
    """Yield what a verb answers that sends a tar. Raises `Refusal`."""
    return _output(verb, None, arguments)


def tar_of(name: str, content: bytes) -> bytes:
    """Return a tar with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _output(verb: str, payload: bytes | None, arguments: dict[str, Any]) -> Iterator[bytes]:
    request = json.dumps({"verb": verb, **arguments})
    errors = b""
    try:
        for kind, content in client.ask(request, _pieces(payload)):
            if kind == client.OUT:
                yield content
            elif kind == client.ERR:
                errors += content
            elif int(content):
                raise _refusal(int(content), errors)
    except client.Trouble as trouble:
        raise Refusal(str(trouble)) from None


def _pieces(payload: bytes | None) -> Callable[[], bytes] | None:
    return None if payload is None else functools.partial(io.BytesIO(payload).read, client.CHUNK)


def _refusal(code: int, errors: bytes) -> Refusal:
    try:
        facts = json.loads(errors.decode(errors="replace").strip().splitlines()[-1])
        return Refusal(str(facts["error"]), wrong=code == 2, denied=bool(facts.get("denied")))
    except (ValueError, LookupError, TypeError):
        return Refusal(f"the console's daemon has failed with code {code}")
