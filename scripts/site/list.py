"""List the sites of project.yml: where each runs, and until when its join file can be used.

`./flowerbed status` shows their state.
"""

from __future__ import annotations

from typing import Any

from provisioning.keys import ELSEWHERE, REVOKED
from scripts import ca, core, join_files, provision, terminal
from scripts.json_object import JsonObject
from scripts.site import project_file

JSON = JsonObject(
    {
        "sites": "a list, in the order of project.yml",
        "sites[].name": "the site's name",
        "sites[].type": "`client` or `relay`",
        "sites[].org": "its organization",
        "sites[].elsewhere": "true if it runs on another machine",
        "sites[].connect_to": "the relay that it connects to, else null",
        "sites[].join_file_until": "the last day of its newest join file that can still be used, else null",
        "revoked": "the names that stay out",
        "fingerprint": "the SHA-256 fingerprint of the federation's CA, or null before `provision`",
    }
)


def run() -> dict[str, Any]:
    """List the sites."""
    project = provision.load(provision.DEFAULT_PROJECT)
    until = join_files.last_days(str(project["name"]))
    sites = []
    for item in project["participants"]:
        if item["type"] not in ("client", "relay"):
            continue
        sites.append(
            {
                "name": item["name"],
                "type": item["type"],
                "org": item["org"],
                "elsewhere": bool(item.get(ELSEWHERE)),
                "connect_to": project_file.relay_of(item),
                "join_file_until": until.get(item["name"]),
            }
        )
    if not core.as_json:
        _show(sites)
    fingerprint = ca.fingerprint()
    if fingerprint:
        core.say(f"The CA's fingerprint, which sites compare before they join:\n  {fingerprint}")
    return {"sites": sites, "revoked": list(project.get(REVOKED) or []), "fingerprint": fingerprint}


def _show(sites: list[dict[str, Any]]) -> None:
    rows = [
        (
            site["name"],
            "relay" if site["type"] == "relay" else "site",
            site["org"],
            "elsewhere" if site["elsewhere"] else "here",
            site["connect_to"] or "the server",
            site["join_file_until"] or "-",
        )
        for site in sites
    ]
    terminal.show(terminal.table(("NAME", "TYPE", "ORG", "WHERE", "CONNECTS TO", "JOIN FILE UNTIL"), rows))
