"""Translate a site's own file into Compose's language, on a machine that has only the runtime image.

    docker run --rm -i -v ./kit:/kit:ro IMAGE settings < site.yml > compose.override.yaml

The keys are those of `project.yml` (`site_settings.py`). Compose merges the output over the file that came
from the server's machine. The script `site` calls this at each start (`provisioning/join/site.sh`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bridge.common import own_policy, site_service, site_settings
from bridge.common.own_policy import EGRESS
from bridge.common.site_environments import POLICIES, VARIABLE
from bridge.common.site_service import DOCTOR, GATE, KEEPER, OUTSIDE
from bridge.common.site_settings import (
    CONNECT_THROUGH,
    CPUS,
    DATA,
    DATA_FOLDER,
    ENV_FILE,
    GPUS,
    HOSTS,
    MEMORY,
)

ENVIRONMENTS = "environments"
"""The key with the policy for environments of apps that the server sends (`site_environments.py`)."""

SITE = "site"
POLICY = Path("/kit/local/flowerbed.json")
"""The kit's file with the site's policy by project.yml."""
OF_OTHERS = (HOSTS, CONNECT_THROUGH, ENV_FILE, CPUS, MEMORY)
"""The keys of a relay or console: it runs no app."""

HEADER = "# Made of site.yml by ./site start and doctor. Edit site.yml.\n"


class Override(dict[str, Any]):
    """A mapping that replaces the one below it, where Compose would merge the two."""


class OverrideList(list[Any]):
    """The same for a list."""


class _Dumper(yaml.SafeDumper):
    """Writes both with Compose's tag (from Compose 2.24.4 on)."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write what two services share twice, for people who read the file."""
        return True


_Dumper.add_representer(Override, lambda d, value: d.represent_mapping("!override", value))
_Dumper.add_representer(OverrideList, lambda d, value: d.represent_sequence("!override", value))


def problems(content: Any, role: str = SITE) -> list[str]:
    """Return the errors in the content of the file of a site, or of another role."""
    if not isinstance(content, Mapping):
        return [f"expected keys with values, found {site_settings.kind_of(content)}"]
    known = (*site_settings.KEYS, ENVIRONMENTS, *own_policy.KEYS) if role == SITE else OF_OTHERS
    if foreign := [str(key) for key in content if key not in known]:
        return [f"unknown key {', '.join(foreign)}: expected one of {', '.join(known)}"]
    found = [*site_settings.problems(content), *own_policy.problems(content)]
    if (policy := content.get(ENVIRONMENTS)) is not None and policy not in POLICIES:
        found.append(f"expected {ENVIRONMENTS} to be {', '.join(POLICIES)}, found {policy!r}"[:200])
    if not found:
        groups = {folder.group for folder in site_settings.folders(content.get(DATA))}
        found = [
            f"{DATA}: expected the number of group {group}, which `getent group {group}` shows"
            for group in sorted(group for group in groups if isinstance(group, str))
        ]
    return found


def render(
    site: str, content: Mapping[str, Any], without_proxy: list[str], role: str = SITE, egress: str = "server"
) -> str:
    """Return the Compose file of a site's own file, which has been checked.

    Args:
        egress: what apps may reach if the file does not say it.
    """
    settings = {key: value for key, value in content.items() if value is not None}
    named = site_settings.folders(settings.get(DATA))
    gids = {folder.group: int(folder.group) for folder in named if folder.group is not None}
    service = site_service.service(settings, gids, without_proxy=without_proxy)
    if any(folder.target != DATA_FOLDER for folder in named):
        # Otherwise the folder at /data would stay beside those below it.
        service["volumes"] = OverrideList([*site_service.own_mounts(site), *service["volumes"]])
    if GPUS in settings:
        service["deploy"] = Override(service["deploy"])
    if decided := own_policy.variables(settings):
        service["environment"] = service.get("environment", {}) | decided
    services = {site: service}
    if role == SITE:
        services = _gated(site, service, settings, settings.get(EGRESS, egress))
    if policy := settings.get(ENVIRONMENTS):
        # The keeper goes by it. The site fetches nothing that the keeper would not take.
        services[site].setdefault("environment", {})[VARIABLE] = policy
        services[KEEPER] = {"environment": {VARIABLE: policy}}
    return HEADER + yaml.dump({"services": services}, Dumper=_Dumper, sort_keys=False, width=200)


def _gated(
    site: str, checked: dict[str, Any], settings: Mapping[str, Any], egress: str
) -> dict[str, dict[str, Any]]:
    """Return a site, its gate and its doctor.

    Args:
        checked: the doctor's part, with all settings.
    """
    service = {name: part for name, part in checked.items() if name != "environment"}
    if environment := site_service.without_proxy_setting(checked):
        service["environment"] = environment
    if egress != "server":
        service |= {"networks": {OUTSIDE: {}}, "dns": OverrideList()}
    parts = {site: service, GATE: site_service.gate(settings), DOCTOR: dict(checked)}
    return {name: part for name, part in parts.items() if part or name == site}


def main() -> None:
    """Read the file on stdin. Arguments: role, name in Compose, hosts that are reached without the proxy."""
    role, site, *without_proxy = sys.argv[1:]
    try:
        content = yaml.safe_load(sys.stdin.read())
    except yaml.YAMLError as error:
        sys.exit(f"settings of {site}: this is not YAML: {error}")
    content = {} if content is None else content
    if found := problems(content, role):
        sys.exit("\n".join(f"settings of {site}: {problem}." for problem in found))
    egress = "server"
    if role == SITE and POLICY.is_file():
        egress = json.loads(POLICY.read_text()).get(EGRESS) or egress
    sys.stdout.write(render(site, content, without_proxy, role, egress))


if __name__ == "__main__":
    main()
