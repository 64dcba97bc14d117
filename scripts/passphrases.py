"""Ask for a new passphrase."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

from scripts import core

SHORTEST = 12
"""Characters of the shortest passphrase. Whoever finds a locked key can guess at home."""


def new(file: Path | None) -> bytes:
    """Return a new passphrase, from the first line of a file or from the terminal.

    Raises:
        core.UsageError: there is none, or it is too short.
    """
    if file is not None:
        try:
            found = next(iter(file.read_bytes().splitlines()), b"")
        except OSError as error:
            raise core.UsageError(f"--passphrase-file: {file} cannot be read: {error.strerror}.") from None
    elif not sys.stdin.isatty():
        raise core.UsageError("expected a terminal to ask for a passphrase, or --passphrase-file FILE.")
    else:
        found = getpass.getpass("New passphrase: ").encode()
        if found != getpass.getpass("The same again: ").encode():
            raise core.UsageError("the two passphrases differ: expected the same one. Nothing was changed.")
    if len(found) < SHORTEST:
        raise core.UsageError(f"expected a passphrase of at least {SHORTEST} characters, found {len(found)}.")
    return found
