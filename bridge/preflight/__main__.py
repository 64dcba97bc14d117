"""Check this participant, and print one line for each check.

    preflight [--json] [--engine V] [--compose V] [--image ID --expected ID] [--broken TEXT]

The options are facts that only the machine knows (`provisioning/join/doctor.sh`). The exit code is 1 if a
check fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bridge.common.finding import Finding
from bridge.common.server_address import ServerAddress
from bridge.common.text import shown
from bridge.preflight import kit as kits
from bridge.preflight import machine, reach, secure

KIT, RENEWED = Path("/kit"), Path("/renewed")

COLUMNS = "{:<5} {:<13} {}"


def main(words: Sequence[str] | None = None) -> int:
    """Run the checks, print them, and return the exit code."""
    given = _options().parse_args(words)
    findings = []
    for finding in examine(given, KIT, RENEWED):
        findings.append(finding)
        if not given.json:
            # Each line once it is known: a name server may take seconds.
            sys.stdout.write(_line(finding))
            sys.stdout.flush()
    failed = list(dict.fromkeys(finding.check for finding in findings if finding.level == "fail"))
    if given.json:
        sys.stdout.write(json.dumps({"checks": [dataclasses.asdict(finding) for finding in findings]}) + "\n")
        sys.stdout.flush()
    if failed:
        sys.stderr.write(f"doctor: failed: {', '.join(failed)}.\n")
    return bool(failed)


def examine(given: argparse.Namespace, kit: Path, renewed: Path) -> Iterator[Finding]:
    """Yield all findings. A check is left out if it needs what an earlier one missed."""
    yield from _from_outside(given)
    found = None
    try:
        found = kits.read(kit, renewed)
    except kits.BadKit as error:
        yield error.finding
    else:
        yield from kits.check(found, kits.utc_now())
    yield machine.check_disk()
    yield machine.check_memory()
    yield machine.check_processor()
    if not given.broken and found is not None and found.is_site:
        yield machine.check_sandbox(found.sandbox)
        yield from machine.check_gpus()
        yield from machine.check_data()
        yield machine.check_environments()
    if found is not None:
        yield from way(found)


def way(kit: kits.Kit) -> Iterator[Finding]:
    """Yield the findings about the way to the server or relay.

    After a move there are two addresses. The participant tries the older one if the newer does not answer.
    """
    for number, address in enumerate(kit.addresses, 1):
        try:
            yield from _way(kit, address)
        except reach.Stopped as stop:
            last = number == len(kit.addresses)
            yield stop.finding if last else dataclasses.replace(stop.finding, level="warn")
        else:
            return


def _way(kit: kits.Kit, to: ServerAddress) -> Iterator[Finding]:
    proxy = reach.proxy_of(os.environ, kit.scheme, to.host)
    for found in reach.find_way(to, kit.upstream, proxy):
        if isinstance(found, Finding):
            yield found
        else:
            yield from _over(found, kit)


def _over(line: reach.Way, kit: kits.Kit) -> Iterator[Finding]:
    """Yield the findings about what answers at the end of a line."""
    yield secure.check_certificate(line, kit)
    if not secure.can_identify(kit):
        return
    accepted = secure.check_admission(line, kit)
    yield accepted.finding
    if accepted.finding.level == "ok":
        yield secure.check_clock(accepted.ahead, kit.upstream)
    if through := reach.check_gate(os.environ, line.to):
        yield through


def _from_outside(given: argparse.Namespace) -> Iterator[Finding]:
    """Yield the findings about what only the machine knows."""
    if given.engine is not None:
        yield machine.check_engine(given.engine)
    if given.compose is not None:
        yield machine.check_compose(given.compose)
    if given.expected:
        yield machine.check_image(given.image, given.expected)
    if given.broken:
        yield machine.check_start(given.broken)


def _line(finding: Finding) -> str:
    level = "FAIL" if finding.level == "fail" else finding.level
    line = COLUMNS.format(level, finding.check, shown(finding.found)).rstrip() + "\n"
    return line + (COLUMNS.format("", "", f"-> {shown(finding.mend)}") + "\n" if finding.mend else "")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="preflight", description="Check this participant. Changes nothing.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--engine", help="the engine's version")
    parser.add_argument("--compose", help="Compose's version")
    parser.add_argument("--image", default="", help="the runtime's image ID")
    parser.add_argument("--expected", default="", help="the image ID in the join file")
    parser.add_argument(
        "--broken", default="", help="what Compose said if the site's container did not start"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
