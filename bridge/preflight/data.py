"""Say what is wrong with a running site's data, a line each, for `./site status`."""

from __future__ import annotations

from bridge.common.text import shown
from bridge.preflight import machine


def main() -> None:
    """Print the lines. There are none if all is well."""
    for finding in machine.check_data():
        if finding.level != "ok":
            print(f"  data: {shown(finding.found)}. To mend it, run ./site doctor, which says how.")


if __name__ == "__main__":
    main()
