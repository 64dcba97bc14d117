"""Add advice to an app's error that alone would not lead to the cause."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

NO_WAY_OUT = re.compile(
    r"name ?resolution|Name or service not known|No address associated with hostname|gaierror"
    r"|Network is unreachable|No route to host|ENETUNREACH|EHOSTUNREACH"
    # In a confined process (`sandbox`), and with no file's name after it: then it was a connection.
    r"|\[Errno 13\] Permission denied(?!: ['\"b])|\[Errno 1\] Operation not permitted(?!: ['\"b])",
    re.IGNORECASE,
)
"""Errors that a container's network causes (`provisioning/networks.py`)."""


def of_job(reason: str, events: Iterable[Mapping[str, Any]]) -> str:
    """Return the advice for a job that ended for `reason` with these events, or an empty string."""
    sites = {
        str(event["site"])
        for event in events
        if event.get("event") == "reply" and NO_WAY_OUT.search(str(event.get("error") or ""))
    }
    if not sites and not NO_WAY_OUT.search(reason):
        return ""
    who = ", ".join(sorted(sites)) or "the participant"
    return (
        f"The app could not connect: by default it reaches nothing outside its job. `egress: any` for {who} "
        "in project.yml allows that. Then provision, build and up."
    )


def with_hint(reason: str, events: Iterable[Mapping[str, Any]]) -> str:
    """Return a reason with its advice at the end."""
    return "\n".join(part for part in (reason, of_job(reason, events)) if part)
