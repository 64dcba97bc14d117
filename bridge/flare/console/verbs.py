"""List the verbs, and turn a request into an answer with an exit code."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from bridge.common import versions
from bridge.common.app import BadApp
from bridge.flare.console import apps, follow, jobs, logs, runs
from bridge.flare.console.call import ConsoleCall, ConsoleError, Gone

log = logging.getLogger(__name__)

VERBS: Mapping[str, Callable[..., None]] = {
    "check": apps.check,
    "hash": apps.hash,
    "export": apps.export,
    "submit": apps.submit,
    "list": jobs.listed,
    "resolve": jobs.resolve,
    "status": jobs.status,
    "abort": jobs.abort,
    "end": jobs.end,
    "remove": jobs.remove,
    "download": jobs.download,
    "wait": follow.wait,
    "logs": logs.logs,
    "start-run": runs.start,
    "runs": runs.listed,
    "run-log": runs.log,
}


def answer(call: ConsoleCall, request: str | bytes, tell_error: Callable[[bytes], None]) -> int:
    """Execute a request. Returns the exit code.

    Args:
        call: takes the answer.
        request: a JSON object with `verb` and that verb's arguments.
        tell_error: takes the JSON line of an error.
    """

    def error(text: str, code: int, facts: Mapping[str, Any]) -> int:
        tell_error(json.dumps({"error": text, **facts}).encode() + b"\n")
        return code

    try:
        verb, arguments = _read(call, request)
        verb(call, **arguments)
    except BadApp as bad:
        return error(str(bad), 2, bad.facts)
    except versions.UnsupportedFlower as wrong:
        return error(str(wrong), 2, {})
    except ConsoleError as failed:
        return error(str(failed), failed.code, failed.facts)
    except (Gone, BrokenPipeError):
        return 130
    except Exception as defect:
        log.exception("a request has failed")
        return error(f"the console program failed: {type(defect).__name__}: {defect}", 1, {})
    return 0


def _read(call: ConsoleCall, request: str | bytes) -> tuple[Callable[..., None], dict[str, Any]]:
    try:
        arguments = json.loads(request)
        verb = VERBS[arguments.pop("verb")]
        inspect.signature(verb).bind(call, **arguments)
    except (ValueError, KeyError, TypeError, AttributeError) as wrong:
        raise ConsoleError(
            f"expected a request with a verb ({', '.join(VERBS)}) and its arguments: {wrong}. "
            "Is the image of another version than this checkout? Run ./flowerbed build and up.",
            2,
        ) from None
    return verb, arguments
