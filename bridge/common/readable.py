"""Check that a user can read folders. `doctor` and `up` run this file in a container, as its user.

    python -I -S readable.py FOLDER...

Prints a JSON object by folder: `files` that were tried, `closed` (files and folders that cannot be read), and
of the first of these its path as `first` and the reason as `why`. Standard library only.
"""

import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

FILES, WITHIN = 2000, 3.0
"""Files that are tried, and seconds for all folders together. This is a look, not an audit."""


def look(folder: str, deadline: float, most: int = FILES) -> dict[str, Any]:
    """Try to open each file, without reading all of it. The look ends after `most` files."""
    found: dict[str, Any] = {"files": 0, "closed": 0, "first": "", "why": ""}

    def closed(error: OSError) -> None:
        found["closed"] += 1
        if not found["first"]:
            found["first"], found["why"] = os.fsdecode(error.filename or folder), error.strerror or str(error)

    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if found["files"] >= most or time.monotonic() > deadline:
                        return found
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                        # A pipe or a device is not opened, because that may wait without end.
                        elif stat.S_ISREG(entry.stat().st_mode):
                            found["files"] += 1
                            with Path(entry.path).open("rb", buffering=0) as file:
                                file.read(1)
                    except OSError as error:
                        closed(error)
        except OSError as error:
            closed(error)
    return found


def main() -> None:
    """Run the check (see the module)."""
    deadline = time.monotonic() + WITHIN
    print(json.dumps({folder: look(folder, deadline) for folder in sys.argv[1:]}))


if __name__ == "__main__":
    main()
