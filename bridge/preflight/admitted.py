"""Say why the certificate of a console is refused. FLARE would only say that it cannot connect.

Exit code 3, with one line on stderr, means that it is refused. What else keeps a console from its server is
FLARE's to say, and an error in here keeps nobody out. The entrypoint runs this before it opens FLARE's
console, and the verbs run it after a login that failed (`bridge/flare/console/sessions.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path

from bridge.common.text import shown
from bridge.preflight import __main__ as preflight
from bridge.preflight import kit as kits

CHECKS = ("certificate", "CA", "admission")
"""The checks of a certificate's days, and of whether the server takes it."""

REFUSED = 3
"""The exit code. Python's own for an error is 1."""


def why_not(kit: Path, renewed: Path) -> str:
    """Return what was found and what to do, or an empty string if the certificate is not refused."""
    try:
        found = kits.read(kit, renewed)
    except kits.BadKit:
        return ""
    for findings in (kits.check(found, kits.utc_now()), preflight.way(found)):
        for finding in findings:
            if finding.check in CHECKS and finding.level == "fail":
                return (
                    f"expected a certificate that {found.upstream} accepts, found this: {finding.found}. "
                    f"To mend it, {finding.mend}."
                )
    return ""


def main() -> int:
    """Say it, and return the exit code."""
    why = why_not(preflight.KIT, preflight.RENEWED)
    if why:
        sys.stderr.write(f"{shown(why)}\n")
    return REFUSED if why else 0


if __name__ == "__main__":
    sys.exit(main())
