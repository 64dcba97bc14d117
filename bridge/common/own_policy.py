"""Define what a site on another machine may decide about its apps, in `site.yml`, whatever project.yml says.

`own_settings.py` puts it into the container's environment, and `bridge/job/settings.py` reads it there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from bridge.common.site_settings import kind_of

VARIABLE = "FLOWERBED_OWN_POLICY"
"""The container's variable with the decisions, in JSON. FLARE's processes read it, and no job can set it."""

SANDBOX, EGRESS, CUSTOM_CODE, ALLOWED_APPS = "sandbox", "egress", "custom_code", "allowed_apps"
CHOICES: Mapping[str, tuple[object, ...]] = {
    SANDBOX: ("required", "best-effort", "off"),
    EGRESS: ("server", "any"),
    # A kit without the right to bring code has no such right with `true` either.
    CUSTOM_CODE: (False,),
}
KEYS = (*CHOICES, ALLOWED_APPS)

_HASH = re.compile("[0-9a-f]{64}")


def problems(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the errors in the values of these keys."""
    for key, choices in CHOICES.items():
        if _value(content, key) is not None and _value(content, key) not in choices:
            names = " or ".join(json.dumps(choice) if choice is False else str(choice) for choice in choices)
            yield f"expected {key} to be {names}, found {kind_of(content[key])}"
    apps = content.get(ALLOWED_APPS)
    if apps is not None and not (
        isinstance(apps, list) and all(isinstance(app, str) and _HASH.fullmatch(app) for app in apps)
    ):
        yield f"expected {ALLOWED_APPS} to be a list of SHA-256 hashes, found {kind_of(apps)}"


def variables(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the container's variable for these decisions, if there are any."""
    decided = {key: _value(content, key) for key in KEYS if content.get(key) is not None}
    return {VARIABLE: json.dumps(decided, sort_keys=True)} if decided else {}


def _value(content: Mapping[str, Any], key: str) -> Any:
    """Return a decision. YAML takes `off` for false."""
    value = content.get(key)
    return "off" if key == SANDBOX and value is False else value


def read() -> dict[str, Any]:
    """Return the decisions of this container's site.

    Raises:
        ValueError: they are broken. Nothing must run then.
    """
    text = os.environ.get(VARIABLE, "")
    try:
        content = json.loads(text) if text else {}
    except ValueError as error:
        raise ValueError(f"{VARIABLE}: expected a JSON object, found invalid JSON: {error}") from None
    if not isinstance(content, dict) or not content.keys() <= set(KEYS) or any(problems(content)):
        raise ValueError(f"{VARIABLE}: expected decisions as ./site start writes them. Run it again.")
    return {key: _value(content, key) for key in content}
