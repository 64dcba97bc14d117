"""A site, a member or a job's process cannot change what `status` says about another site."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.attacks import hostile
from tests.federation import Federation

FORGED = """
ANSWER_WITHIN = 5.0
me = Impostor()
body = json.dumps({"version": {"flare": "forged"}, "name": "site-1", "site": "site-1"}).encode()
# The server takes one report a second, and the site itself may have sent one just now.
while (first := me.request("server", "flowerbed", "flowerbed.report", body)) == "service_unavailable":
    time.sleep(0.5)
told = [first]
# The next messages claim to come from site-1, with this participant's token.
set_add_auth_headers_filters(me.cell, "site-1", *me.credentials.values())
told.append(me.request("server", "flowerbed", "flowerbed.report", body))
tell(told)
"""


def reports(federation: Federation) -> dict[str, Any]:
    return {one["name"]: one for one in federation.must("status")["reports"]}


def test_a_site_reports_for_itself_only(federation: Federation) -> None:
    hostile.registered(federation, "site-1")
    deadline = time.monotonic() + 60
    while "site-1" not in reports(federation):
        assert time.monotonic() < deadline
        time.sleep(1)
    # FLARE does not answer to a name that the token is not for.
    assert hostile.act(federation, "site-2", FORGED) == ["ok", "timeout"]
    known = reports(federation)
    assert known["site-2"]["report"] == {"version": {"flare": "forged"}}
    assert "forged" not in json.dumps(known["site-1"])
    assert hostile.act(federation, "lead", FORGED) == ["unauthenticated", "timeout"]
    assert all(name.startswith("site-") for name in reports(federation))
    # It had to register again to act: restart the site itself.
    federation.compose("restart", "site-2")
    hostile.registered(federation, "site-2")
