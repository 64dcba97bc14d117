"""Name the parts of a renewal on its way from the server to a site's keeper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.common import trust

FILE = "certificates.json"
"""The file in the spool: an object of the files below with their content."""

FILE_LIMIT = 256 * 1024
"""Bytes of it that are read."""

PART = "certificates"
"""The part of the server's reply to a report."""

AUTHORITIES = "rootCA.pem"
CERTIFICATES = ("client.crt", "server.crt")
NAMES = (*CERTIFICATES, trust.FILE)
"""The files. The CAs come in the signed statement only."""


def read(content: Any) -> Mapping[str, str]:
    """Return the files of a renewal.

    Raises:
        ValueError: this is none.
    """
    if not isinstance(content, dict) or not all(
        name in NAMES and isinstance(text, str) for name, text in content.items()
    ):
        raise ValueError(f"expected the texts of {', '.join(NAMES)}, found something else")
    return content
