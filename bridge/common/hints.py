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

NO_FILE = re.compile(r"FileNotFoundError|No such file or directory|Permission denied: ['\"b]")
"""Errors of an app that finds no file, or may not read it. The data may be there and unreadable."""

NO_GPU = re.compile(r"asks for \d+ GPU")
"""A site's reason to refuse a job for want of GPUs (`bridge/flare`)."""


def of_job(reason: str, events: Iterable[Mapping[str, Any]]) -> str:
    """Return the advice for a job that ended for `reason` with these events, or an empty string."""
    events = list(events)
    sites = _sites(NO_WAY_OUT, events)
    if sites or NO_WAY_OUT.search(reason):
        who = ", ".join(sites) or "the participant"
        return (
            "The app could not connect: by default it reaches nothing outside its job. `egress: any` for "
            f"{who} in project.yml allows that. Then provision, build and up."
        )
    if sites := _sites(NO_FILE, events):
        who = ", ".join(sites)
        return f"If the file is there: ./flowerbed doctor checks that the containers of {who} can read it."
    if NO_GPU.search(reason):
        return "Submit without --gpus, or give the sites `gpus` in project.yml. Then provision and up."
    return ""


def _sites(pattern: re.Pattern[str], events: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the sites with a reply with an error that matches, in order."""
    replies = (event for event in events if event.get("event") == "reply")
    return sorted({str(event["site"]) for event in replies if pattern.search(str(event.get("error") or ""))})


def with_hint(reason: str, events: Iterable[Mapping[str, Any]]) -> str:
    """Return a reason with its advice at the end."""
    return "\n".join(part for part in (reason, of_job(reason, events)) if part)
