"""The command `flowerbed`: run the verbs of the installed program."""

from __future__ import annotations

import sys

from flowerbed import PROGRAM


def main() -> int:
    """Run one verb and return its exit code."""
    # The verbs' packages have common names (scripts, provisioning), so they are not in site-packages itself.
    sys.path.insert(0, str(PROGRAM))
    from scripts.__main__ import main as verbs

    return verbs()


if __name__ == "__main__":
    sys.exit(main())
