"""An app, at the server and at every site, tries to get out of its job's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.federation import Federation

REFUSED = "PermissionError"


@pytest.fixture(scope="module")
def seen(federation: Federation) -> dict[str, Any]:
    """Return what the apps saw: the ServerApp, and the ClientApps of both sites."""
    job = federation.submit("trespasser")
    done = federation.must("wait", job)
    assert done["status"] == "FINISHED:COMPLETED", done
    for words in ((), ("--site", "site-1")):
        log = federation.must("logs", job, *words)["log"]
        assert "sandbox: best-effort confines files, TCP ports, signals (Landlock ABI" in log
    folder = Path(federation.must("results", job)["folder"])
    content: dict[str, Any] = json.loads((federation.root / folder / "serverapp" / "seen.json").read_text())
    return content


@pytest.fixture(params=["server", "site"])
def one(request: pytest.FixtureRequest, seen: dict[str, Any]) -> dict[str, Any]:
    assert len(seen["sites"]) == 2
    found: dict[str, Any] = seen["server"] if request.param == "server" else seen["sites"][0]
    return found


def test_it_reads_no_key_and_lists_no_folder_of_flares(one: dict[str, Any]) -> None:
    found = {name: value for name, value in one.items() if name.startswith(("read ", "list "))}
    assert len(found) > 8
    assert found == dict.fromkeys(found, REFUSED)


def test_it_reads_and_signals_no_other_process(one: dict[str, Any]) -> None:
    found = {name: value for name, value in one.items() if name.startswith("others")}
    assert found == {
        "others' environ": [],
        "others' cmdline": [],
        "others' mem": [],
        "others' maps": [],
        "others signalled": [],
    }


def test_it_changes_nothing_of_flares(one: dict[str, Any]) -> None:
    found = {name: value for name, value in one.items() if name.startswith(("write /", "rename", "remove"))}
    assert len(found) == 9
    # The container's own file system is read-only, and a folder may be missing at a site.
    assert set(found.values()) <= {REFUSED, "OSError", "FileNotFoundError"}
    assert found["write /workspace"] == found["rename local"] == found["remove startup"] == REFUSED


def test_it_connects_to_its_own_job_only(one: dict[str, Any]) -> None:
    # Its SuperLink, or its SuperNode and FLARE's process of its job, to which its writers log.
    assert one["connect to the federation"] is False
    assert 1 <= len(one["ports"]) <= 2 and 8002 not in one["ports"]


def test_it_gets_past_it_by_no_other_call(one: dict[str, Any]) -> None:
    found = {name: value for name, value in one.items() if name.startswith("past ")}
    # Not every engine mounts it.
    assert found.pop("past mqueue") in (REFUSED, "FileNotFoundError")
    assert found == {
        "past MPTCP": "OSError",
        "past Fast Open": "OSError",
        "past io_uring": "OSError",
        "past prlimit": [],
        "past priorities": REFUSED,
        "past inotify": REFUSED,
        "past pts": [],
        "past ptmx": REFUSED,
    }


def test_an_apps_own_needs_are_met(one: dict[str, Any]) -> None:
    assert (one["write its folder"], one["temporary file"], one["abstract socket"]) == (2, True, True)
    assert one["temporary folder"].startswith("/workspace/") and one["temporary folder"].endswith("/tmp")
    assert (one["loaded"], one["threads"]) == (190.0, "2\n")


def test_a_site_still_reads_its_data(seen: dict[str, Any]) -> None:
    assert all(site["data"] for site in seen["sites"])


def test_the_links_to_the_kit_are_roots(federation: Federation) -> None:
    for service in ("server", "site-1"):
        said = federation.exec(service, "sh", "-c", "cd /workspace; stat -c '%N %U %a' . startup local")
        assert said.splitlines() == [
            "'.' root 1777",
            "'startup' -> '/kit/startup' root 777",
            "'local' -> '/kit/local' root 777",
        ]
        refused = federation.exec(service, "sh", "-c", "mv /workspace/local /workspace/x 2>&1; echo done")
        assert "Operation not permitted" in refused
    assert "/apps" in federation.exec("server", "readlink", "/workspace/local/custom")
