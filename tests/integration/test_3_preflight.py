"""The preflight in a site's container: what is well is ok, and a site that cannot work is told why."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.federation import Federation


def preflight(
    federation: Federation, *words: str, options: tuple[str, ...] = ()
) -> tuple[int, dict[str, Any]]:
    """Run the preflight as site-1, beside the site's container. Of two findings with one name, the last
    counts."""
    command = [
        "docker",
        "compose",
        "run",
        "--rm",
        "--no-deps",
        "-T",
        *options,
        "site-1",
        "preflight",
        "--json",
    ]
    process = subprocess.run(
        [*command, *words], cwd=federation.root, capture_output=True, text=True, timeout=120, check=False
    )
    assert process.stdout.startswith("{"), process.stderr
    return process.returncode, {check["check"]: check for check in json.loads(process.stdout)["checks"]}


def test_a_site_that_works_has_nothing_to_mend(federation: Federation) -> None:
    code, found = preflight(federation, "--engine=27.1.0", "--compose=2.29.1")
    assert code == 0, found
    ok = {"engine", "compose", "kit", "certificate", "CA", "name", "route", "tls", "admission", "clock"}
    assert {name: found[name]["level"] for name in ok} == dict.fromkeys(ok, "ok")
    assert {"disk", "memory", "cpu", "sandbox", "data", "environments"} <= set(found)
    assert found["data"]["found"] == "user 10001 of the container reads /data"
    assert "site-1, connects to server at server:8002" in found["kit"]["found"]


def test_the_site_goes_on_beside_its_preflight(federation: Federation) -> None:
    before = federation.containers()
    preflight(federation)
    assert federation.containers() == before
    (told,) = [one for one in federation.must("status")["sites"] if one["name"] == "site-1"]
    assert told


def test_an_address_that_the_server_has_left_is_told(federation: Federation, tmp_path: Path) -> None:
    """The newer address does not answer, and the kit's does."""
    tmp_path.chmod(0o755)
    renewed = tmp_path / "renewed"
    shutil.copytree(next(federation.root.glob("workspace/*/renewed/site-1")), renewed)
    (renewed / "server.json").write_text(json.dumps({"host": "server", "port": 1}))
    for path in (*tmp_path.parents, renewed):
        if "pytest" in path.name or path == renewed:
            path.chmod(0o755)
    code, found = preflight(federation, options=("--volume", f"{renewed}:/renewed:ro"))
    assert code == 0 and found["route"]["level"] == "ok"


def test_without_a_network_it_fails_and_says_so(federation: Federation) -> None:
    image = federation.compose("images", "--format", "json", "site-1")
    (told,) = json.loads(image)
    command = ["docker", "run", "--rm", "--network", "none", told["ID"], "preflight"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 1
    (name,) = [line for line in process.stdout.splitlines() if line.startswith("FAIL")]
    assert "server" in name and process.stderr == "doctor: failed: name.\n"
