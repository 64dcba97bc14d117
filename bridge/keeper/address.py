"""Install the address of a server that has moved, at a site: from the spool into `/renewed`.

The site's FLARE process writes there what the server says (`bridge/flare/addresses.py`). A wrong address
leads nowhere: a site talks only to a holder of the federation's certificate for the name that it dials, and
goes back to its kit's address otherwise. So the form is all that is checked here.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

from bridge.common import server_address

log = logging.getLogger(__name__)


def install(spool: Path, renewed: Path) -> bool:
    """Install the address that has come, if it is another one. Returns whether it is.

    Raises:
        ValueError: what has come is no address. Nothing has changed.
    """
    text = _opened(spool / server_address.FILE)
    if text is None:
        return False
    try:
        today = server_address.read(json.loads(text))
    except RecursionError:
        raise ValueError("expected an address, found nested lists") from None
    target = renewed / server_address.FILE
    content = json.dumps(today._asdict()).encode() + b"\n"
    if target.is_file() and target.read_bytes() == content:
        return False
    draft = renewed / f".{server_address.FILE}.new"
    draft.write_bytes(content)
    draft.chmod(0o644)
    draft.replace(target)
    log.info("the server is dialled at %s from the next connection on", today)
    return True


def _opened(file: Path) -> bytes | None:
    """Return a file's content, or None if there is no such file. The writer of the spool may have made a link
    or a pipe of it."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as opened:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        return opened.read(server_address.FILE_LIMIT)
