"""Install the address of a server that has moved, at a site: from the spool into `/renewed`.

The site's FLARE process writes there what the server says (`bridge/flare/addresses.py`). A wrong address
leads nowhere: a site talks only to a holder of the federation's certificate for the name that it dials, and
goes back to its kit's address otherwise. So the form is all that is checked here.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from bridge.common import plain_file, server_address
from bridge.keeper import files

log = logging.getLogger(__name__)


def install(spool: Path, renewed: Path) -> bool:
    """Install the address that has come, if it is another one. Returns whether it is.

    Raises:
        ValueError: what has come is no address. Nothing has changed.
    """
    text = plain_file.read(spool / server_address.FILE, server_address.FILE_LIMIT)
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
    files.write(target, content)
    log.info("the server is dialled at %s from the next connection on", today)
    return True
