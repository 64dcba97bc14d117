"""How Flower's Control API says that something is wrong: a number of Flower's and a sentence for a person."""

from __future__ import annotations

from http import HTTPStatus

from bridge.common.errors import FlowerbedError
from bridge.common.text import shown

# Flower's numbers (flwr 1.40 to 1.42 `supercore/error/base.py`, ApiErrorCode).
NO_FEDERATION_MANAGEMENT = 1
FEDERATION_NOT_FOUND = 2
NO_PERMISSIONS = 9
FORBIDDEN_ACTION = 10
FAILED_TO_CREATE_RUN = 14
INVALID_RUN_CONFIG = 15
RUN_ID_NOT_FOUND = 16
RUN_ALREADY_FINISHED = 18
PULL_UNFINISHED_RUN = 21
INVALID_APP_SPEC = 33
ACCOUNT_AUTHENTICATION_FAILED = 36
CONNECTOR_FAILURE = 40
INVALID_AUTOMATION_REQUEST = 42
UNSUPPORTED_CONTENT_TYPE = 1002
INVALID_PROTOBUF_PAYLOAD = 1003


class ControlError(FlowerbedError):
    """Ends a call. The text is for users."""

    def __init__(self, text: str, code: int, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(text)
        self.code, self.status = code, status

    @property
    def content(self) -> dict[str, int | str]:
        """What Flower's CLI reads."""
        return {"code": self.code, "detail": shown(str(self))}


def unauthenticated(text: str) -> ControlError:
    """The error for a caller without a valid token."""
    return ControlError(text, ACCOUNT_AUTHENTICATION_FAILED, HTTPStatus.UNAUTHORIZED)


def no_such_run(run: int) -> ControlError:
    """The error for a run id that belongs to no job."""
    text = f"There is no run {run}. To list runs: flwr ls"
    return ControlError(text, RUN_ID_NOT_FOUND, HTTPStatus.NOT_FOUND)


def meaningless(text: str, code: int = NO_FEDERATION_MANAGEMENT) -> ControlError:
    """The error for a call that has no meaning on Flowerbed."""
    return ControlError(text, code, HTTPStatus.NOT_IMPLEMENTED)
