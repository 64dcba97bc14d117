"""Real `nvflare provision` runs, in copies of the repository's own files."""

from __future__ import annotations

import datetime
import importlib
import ipaddress
import json
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.fuel.sec.authz import AuthzContext, Person
from nvflare.lighter.utils import Identity, generate_cert, serialize_cert
from nvflare.security.security import COMMAND_CATEGORIES, FLAuthorizer

from bridge.common import own_settings
from bridge.flare.job import UNHEARD
from bridge.job import settings
from bridge.launch.sandbox import HIDDEN
from provisioning import dotenv, harden, links, site_files
from provisioning.checks import HARDEN
from provisioning.names import flwr_port, is_carrier
from scripts import core, kit_layer, provision
from tests.unit import forked
from tests.unit.forked import ended

__all__ = ["ended"]  # A fixture, for pytest to find.

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ("project.yml", "compose.yaml", "compose", "provisioning", "scripts", "dev")
BRIDGE = {
    "bridge.server.controller.FlowerController",
    "bridge.site.executor.FlowerExecutor",
    "bridge.server.trackers.TensorBoard",
    "bridge.server.trackers.MLflow",
    "nvflare.app_common.widgets.metric_relay.MetricRelay",
}
TOOLS = {"tensorboard", "mlflow"}
HOUSEKEEPER, LOG_RECEIVER = "bridge.flare.housekeeping.Housekeeper", "bridge.flare.log_receiver.LogReceiver"
REPORTS, REPORTER = "bridge.flare.site_reports.SiteReports", "bridge.flare.site_reporter.SiteReporter"
KEEPER, POLICY = "bridge.flare.job_supervisor.JobSupervisor", "bridge.flare.policy.CodePolicy"
GPUS = "bridge.flare.gpus.SiteGPUs"
JOIN = "bridge.flare.joins.JoinTeller"
JOB_STORE = "bridge.flare.job_store.JobStore"
JOB_POLICY, PART_POLICY = "bridge.flare.submissions.JobPolicy", "bridge.flare.policy.PartPolicy"
STATE = "workspace/flowerbed/state/cert.json"
PROD = "workspace/flowerbed/prod_00"

SITES = """
  - {name: site-3, type: client, org: flowerbed, custom_code: false}
  - {name: site-5, type: client, org: flowerbed, connect_to: {name: relay-1}}
  - {name: relay-1, type: relay, org: flowerbed, listening_host: {scheme: grpc, port: 8102}}
  - {name: Mem.Ber@flowerbed.example, type: admin, org: flowerbed, role: member}
builders:"""

Edit = Callable[[str], str]


def checkout(to: Path) -> Path:
    """Copy what provisioning needs, without this checkout's own kits and state."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, to / part, ignore=shutil.ignore_patterns("*.pyc.*"))  # Half written.
        else:
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, to / part)
    return to


def verb(root: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """`flowerbed provision` as a program: exit code, JSON object, text for users."""
    process = forked.run(root, "scripts", "provision", "--format", "json", *arguments)
    assert process.stdout, process.stderr
    return process.returncode, json.loads(process.stdout.splitlines()[-1]), process.stderr


def done(root: Path) -> dict[str, Any]:
    code, outcome, text = verb(root)
    assert code == 0, text
    return outcome


def nvflare(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command of a person who knows only FLARE."""
    return forked.run(root, "nvflare.cli", "provision", "-p", "project.yml", *arguments)


def edit(root: Path, change: Edit) -> None:
    before = (root / "project.yml").read_text()
    after = change(before)
    assert after != before, "the edit found nothing to change"
    (root / "project.yml").write_text(after)


def replace(old: str, new: str) -> Edit:
    return lambda text: text.replace(old, new)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provision the repository's own project with FLARE's command alone. Tests may only read it."""
    root = checkout(tmp_path_factory.mktemp("plain") / "repo")
    (root / ".env").write_text("# mine\nFLOWERBED_BIND=0.0.0.0\nCOMPOSE_PROJECT_NAME=old\n")
    process = nvflare(root)
    assert process.returncode == 0, process.stderr + process.stdout
    return root


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More sites, a relay, a member and another name of the server, added to project.yml and nowhere else.
    The server and site-3 take no custom code."""
    root = checkout(tmp_path_factory.mktemp("wide") / "repo")
    edit(root, replace("\nbuilders:", SITES))
    server = "    default_host: fl.hospital.example\n    custom_code: false\n"
    edit(root, replace("    host_names: [localhost, 127.0.0.1]\n", server))
    site = f"    sandbox: off\n    egress: any\n    allowed_apps: [{'ab' * 32}]\n"
    edit(root, replace("name: site-2\n", f"name: site-2\n{site}    limits: {{log: 5 MB, kept_jobs: 3}}\n"))
    done(root)
    return root


@pytest.fixture
def again(plain: Path, tmp_path: Path) -> Path:
    """A copy of the plain one, to provision again."""
    return Path(shutil.copytree(plain, tmp_path / "repo"))


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def sans(path: Path) -> set[str]:
    names = certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def certificates(prod: Path) -> dict[str, bytes]:
    return {p.relative_to(prod).as_posix(): p.read_bytes() for p in prod.glob("*/startup/*.crt")}


def kits(prod: Path, but: str = "") -> dict[str, bytes]:
    """Return the content of all kits' files by their paths, without those of `but`."""
    paths = {path.relative_to(prod): path for path in prod.rglob("*") if path.is_file()}
    return {str(p): path.read_bytes() for p, path in paths.items() if len(p.parts) > 1 and p.parts[0] != but}


def resources(root: Path, participant: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        (root / PROD / participant / "local/resources.json.default").read_text()
    )
    return content


def services(root: Path, prod: str = "prod_00") -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(
        (root / PROD).with_name(prod).joinpath("compose.yaml").read_text()
    )
    return dict(content["services"])


# The kits


def test_flare_alone_makes_a_kit_for_everybody(plain: Path) -> None:
    kits = {path.name for path in (plain / PROD).iterdir() if path.is_dir()}
    assert kits == {"server", "site-1", "site-2", "admin@flowerbed.example", "lead@flowerbed.example"}


def test_one_port_and_mutual_tls(plain: Path) -> None:
    server = json.loads((plain / PROD / "server/startup/fed_server.json").read_text())["servers"][0]
    assert server["service"] == {"target": "server:8002", "scheme": "tcp"}
    assert (server["admin_port"], server["connection_security"]) == (8002, "mtls")


@pytest.mark.parametrize("participant", ["server", "site-1", "site-2"])
def test_allow_list_holds_the_bridge_and_what_flare_allows(plain: Path, participant: str) -> None:
    allowed = resources(plain, participant)
    own = {
        HOUSEKEEPER,
        *(
            {KEEPER, JOB_POLICY, LOG_RECEIVER, JOB_STORE, REPORTS}
            if participant == "server"
            else {POLICY, GPUS, REPORTER, JOIN}
        ),
    }
    listed = set(allowed["class_allow_list"])
    assert listed == BRIDGE | own | {PART_POLICY} | set(DEFAULT_CLASS_ALLOW_LIST)
    components = {component["path"] for component in allowed["components"]}
    assert own <= components
    # Ours is in the place of FLARE's, not beside it.
    assert not any(path.endswith("JobLogReceiver") for path in components)
    kind = "server" if participant == "server" else "client"
    assert allowed["app_validator"] == {"path": PART_POLICY, "args": {"site_type": kind}}
    for path in (*own, PART_POLICY):
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name)
    assert allowed["class_list_enforcement_mode"] == "enforce"


def test_jobs_and_snapshots_are_kept_in_the_volume(plain: Path) -> None:
    text = (plain / PROD / "server/local/resources.json.default").read_text()
    assert "/tmp" not in text
    components = {item["id"]: item for item in json.loads(text)["components"]}
    assert components["job_manager"]["args"]["uri_root"].startswith("/workspace/")


def test_three_jobs_run_at_once_if_nothing_else_is_said(plain: Path) -> None:
    components = {item["id"]: item for item in resources(plain, "server")["components"]}
    assert components["job_scheduler"]["args"] == {"max_jobs": 3}


def test_the_server_keeps_jobs_and_tells_of_silence(plain: Path) -> None:
    server = resources(plain, "server")
    assert KEEPER in [item["path"] for item in server["components"]]
    module, _, name = KEEPER.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), name), FLComponent)
    assert server["servers"][0]["heart_beat_timeout"] == UNHEARD  # the job's own grace goes by it


def test_a_finished_job_is_seen_at_once(plain: Path) -> None:
    config = json.loads((plain / PROD / "server/startup/fed_server.json").read_text())
    assert config["servers"][0]["check_engine_frequency"] <= 0.5


def test_consoles_log_in_by_certificate(plain: Path) -> None:
    for person in ("admin", "lead"):
        config = json.loads((plain / PROD / f"{person}@flowerbed.example/startup/fed_admin.json").read_text())
        assert config["admin"]["uid_source"] == "cert"


def test_who_may_download_a_job_may_read_its_log(plain: Path) -> None:
    policy = json.loads((plain / PROD / "server/local/authorization.json.default").read_text())
    lead, member = policy["permissions"]["lead"], policy["permissions"]["member"]
    assert lead["get_job_log"] == lead["download_job"] == "n:submitter"
    assert "get_job_log" not in member


def may(kit: Path, role: str, right: str, of: str = "ann@flowerbed.example") -> bool:
    """Return FLARE's reading of the kit's policy: Ann's right to the jobs of `of`."""
    policy = json.loads((kit / "local/authorization.json.default").read_text())
    person = Person("ann@flowerbed.example", "flowerbed", role)
    allowed, _ = FLAuthorizer("flowerbed", policy).authorize(
        AuthzContext(right, person, Person(of, "flowerbed", role))
    )
    return bool(allowed)


DEPLOYED = "server-predeployed-flwr"
RIGHTS = sorted({value for name, value in vars(AdminCommandNames).items() if name.isupper()} | {DEPLOYED})
ROLES = ("project_admin", "lead", "org_admin", "member")


@pytest.mark.parametrize("participant", ["server", "site-1"])
def test_a_lead_submits_and_sees_to_its_own_jobs_and_operates_nothing(plain: Path, participant: str) -> None:
    """FLARE evaluates it. All are of one organization, as in the default project."""
    kit = plain / PROD / participant
    own = ("abort_job", "delete_job", "download_job", "clone_job")
    seen = ("get_job_log", "app_command") if participant == "server" else ()
    for right in (*own, *seen):
        assert may(kit, "lead", right), right
        assert not may(kit, "lead", right, of="bob@flowerbed.example"), right
    for right in ("submit_job", "list_jobs", "get_job_meta", "check_status"):
        assert may(kit, "lead", right), right
    operated = {right for right, category in COMMAND_CATEGORIES.items() if category in OPERATED}
    assert {
        "shutdown",
        "restart",
        "enable_client",
        "disable_client",
        "remove_client",
        "cat",
        "tail",
    } <= operated
    for right in operated:
        assert not may(kit, "lead", right) and not may(kit, "member", right), right
        assert may(kit, "project_admin", right), right
    for right in ("enable_client", "disable_client", "remove_client"):
        assert not may(kit, "org_admin", right), right


OPERATED = ("operate", "shell_commands")
"""FLARE's categories of commands for those who run the servers."""


@pytest.mark.parametrize("participant", ["server", "site-1"])
def test_who_may_bring_code_may_run_what_is_on_the_server(plain: Path, participant: str) -> None:
    for right in ("byoc", DEPLOYED):
        assert [may(plain / PROD / participant, role, right) for role in ROLES] == [True, True, False, False]


def test_the_operators_decisions_are_in_the_kit(wide: Path) -> None:
    decided = {who: settings.read(wide / PROD / who) for who in ("server", "site-1", "site-2", "site-3")}
    assert not decided["server"].custom_code and decided["site-1"].custom_code
    assert decided["site-1"] == settings.Settings(sandbox="best-effort", egress="server")
    assert decided["site-2"].sandbox == "off", "YAML's word for false"
    assert decided["site-2"].egress == "any"
    assert decided["site-2"].allowed_apps == ("ab" * 32,)
    assert decided["site-2"].limits == settings.Limits(log=5 * 2**20, kept_jobs=3)


@pytest.mark.parametrize(("without", "usual"), [("server", "server"), ("site-3", "site-1")])
def test_without_custom_code_that_is_forbidden_and_nothing_else(
    wide: Path, plain: Path, without: str, usual: str
) -> None:
    for role in ROLES:
        assert not may(wide / PROD / without, role, "byoc")
        for right in RIGHTS:
            allowed = may(plain / PROD / usual, role, right)
            assert may(wide / PROD / without, role, right) is allowed, (role, right)


def test_keys_and_state_are_for_the_owner_only(plain: Path) -> None:
    state = plain / STATE
    keys = list((plain / PROD).rglob("*.key"))
    assert len(keys) == 5
    for path in [state, *keys]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for folder in [state.parent, *(key.parent for key in keys), *(key.parent.parent for key in keys)]:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def test_no_kit_holds_another_key(plain: Path) -> None:
    state = json.loads((plain / STATE).read_text())
    secrets = {"CA": state["root_pri_key"]} | {
        name: entry["pri_key"] for name, entry in state.items() if isinstance(entry, dict)
    }
    assert len(secrets) == 6
    for kit in (path for path in (plain / PROD).iterdir() if path.is_dir()):
        text = "".join(path.read_text() for path in kit.rglob("*") if path.is_file())
        assert [name for name, key in secrets.items() if key.strip() in text] == [kit.name]


# The names


def test_server_certificate_is_for_every_name_that_is_dialled(plain: Path, wide: Path) -> None:
    assert sans(plain / PROD / "server/startup/server.crt") == {"server", "localhost", "127.0.0.1"}
    assert sans(wide / PROD / "server/startup/server.crt") == {
        "fl.hospital.example",
        "server",
        "localhost",
        "127.0.0.1",
    }


def test_a_name_that_only_a_site_dials_is_added_with_a_note(tmp_path: Path) -> None:
    root = checkout(tmp_path / "repo")
    site = "  - {name: site-3, type: client, org: flowerbed, connect_to: {host: via.example}}\nbuilders:"
    edit(root, replace("builders:", site))
    code, _, text = verb(root)
    assert code == 0
    assert "via.example" in sans(root / PROD / "server/startup/server.crt")
    assert "server: its certificate also has the name 'via.example', which kits dial." in text


def test_each_participant_is_told_the_address_that_it_dials(wide: Path) -> None:
    renewed = wide / "workspace/flowerbed/renewed"
    told = {path.parent.name: json.loads(path.read_text()) for path in renewed.glob("*/server.json")}
    assert told["site-5"] == {"host": "relay-1", "port": 8102}
    assert told["site-1"] == told["relay-1"] and told["site-1"]["port"] == 8002


def test_relay_listens_under_its_name_with_mutual_tls(wide: Path) -> None:
    listener = json.loads((wide / PROD / "relay-1/local/comm_config.json").read_text())["internal"]
    assert listener["resources"] == {"host": "relay-1", "port": 8102, "connection_security": "mtls"}
    upstream = json.loads((wide / PROD / "relay-1/startup/fed_relay.json").read_text())["connect_to"]
    assert upstream["connection_security"] == "mtls"
    assert sans(wide / PROD / "relay-1/startup/server.crt") == {"relay-1"}


# Compose


def test_compose_has_exactly_the_participants(plain: Path, wide: Path) -> None:
    assert set(services(plain)) == {
        "server",
        "site-1",
        "site-2",
        "admin",
        "lead",
        "flwr.admin",
        "flwr.lead",
        *TOOLS,
    }
    assert set(services(wide)) == {
        *services(plain),
        "site-3",
        "site-5",
        "relay-1",
        "mem-ber",
        "flwr.mem-ber",
    }


def test_the_server_publishes_a_port_and_flower_comes_in_by_another(wide: Path) -> None:
    published = {name: service["ports"] for name, service in services(wide).items() if "ports" in service}
    assert published.pop("server") == ["${FLOWERBED_BIND:-127.0.0.1}:${FLOWERBED_PORT:-8002}:8002"]
    keys = {"admin": "ADMIN", "lead": "LEAD", "mem-ber": "MEM_BER"}
    assert published == {
        f"flwr.{name}": [
            f"${{FLOWERBED_FLWR_BIND:-127.0.0.1}}:"
            f"${{FLOWERBED_FLWR_PORT_{key}:-{flwr_port('flowerbed', name)}}}:9093"
        ]
        for name, key in keys.items()
    }


def test_flowers_command_line_reaches_each_console_by_its_own_socket(wide: Path) -> None:
    composed = services(wide)
    people = ("admin", "lead", "mem-ber")
    for person in people:
        assert composed[f"flwr.{person}"]["command"] == [f"9093=/flwr/{person}/socket"]
        assert composed[f"flwr.{person}"]["volumes"] == [f"flwr.{person}:/flwr/{person}"]
        mine = [volume for volume in composed[person]["volumes"] if str(volume).startswith("flwr.")]
        assert mine == [f"flwr.{person}:/flwr"]


def test_two_federations_of_a_machine_have_ports_of_their_own() -> None:
    assert flwr_port("flowerbed", "admin") == flwr_port("flowerbed", "admin")
    ports = {flwr_port(project, name) for project in ("flowerbed", "other") for name in ("admin", "lead")}
    assert len(ports) == 4 and all(20000 <= port < 32000 for port in ports)


def test_each_has_its_own_kit_beside_the_file(wide: Path) -> None:
    for name, service in services(wide).items():
        if name in TOOLS or is_carrier(name):
            continue  # No kit is theirs.
        participant = service["labels"]["org.flowerbed.participant"]
        assert "build" not in service and (wide / PROD / participant / "startup").is_dir()


def test_waiting_and_names_follow_the_project(wide: Path) -> None:
    composed = services(wide)
    assert composed["site-3"]["depends_on"] == {"server": {"condition": "service_healthy"}}
    assert composed["site-5"]["depends_on"] == {"relay-1": {"condition": "service_healthy"}}
    assert composed["server"]["networks"]["default"]["aliases"] == ["fl.hospital.example"]
    assert composed["server"]["networks"]["link-server-5"]["aliases"] == ["fl.hospital.example"]


def test_each_shares_a_network_only_with_its_peer(wide: Path) -> None:
    content = yaml.safe_load((wide / PROD / "compose.yaml").read_text())
    members: dict[str, set[str]] = {}
    for name, service in content["services"].items():
        for network in service.get("networks", []):
            members.setdefault(network, set()).add(name)
    people = ("site-1", "site-2", "site-3", "relay-1", "admin", "lead", "mem-ber")
    links = [members.pop(name) for name in sorted(members) if name.startswith("link-")]
    taken = [{"server", name} for name in people] + [{"relay-1", "site-5"}]
    ready = [{"server"}] * (16 - len(people)) + [{"relay-1"}] * 7
    assert sorted(links, key=sorted) == sorted(taken + ready, key=sorted)
    # site-2 has `egress: any`. The file of the server's container names the rest.
    assert members == {"default": {"server"}, "outside": {"site-2"}}
    for name, network in content["networks"].items():
        isolated = network.get("internal", False) and network["driver_opts"] == {
            "com.docker.network.bridge.inhibit_ipv4": "true"
        }
        assert isolated == name.startswith("link-")
    assert content["networks"]["outside"]["driver_opts"] == {"com.docker.network.bridge.enable_icc": "false"}
    assert content["networks"]["flwr"]["driver_opts"] == {
        "com.docker.network.bridge.enable_ip_masquerade": "false"
    }
    silent = {name for name, service in content["services"].items() if service.get("dns") == ["127.0.0.1"]}
    assert silent == {*people, "site-5"} - {"site-2"}


def test_ready_networks_are_refilled_when_the_server_is_replaced_anyway(again: Path) -> None:
    def file() -> Path:
        return again / dotenv.read(again / ".env")["FLOWERBED_COMPOSE"]

    def server() -> dict[str, Any]:
        return dict(yaml.safe_load(file().read_text())["services"]["server"])

    before = server()
    sites = [f"  - {{name: site-{n}, type: client, org: flowerbed}}\n" for n in range(3, 6)]
    edit(again, replace("\nbuilders:", "".join(["\n", *sites, "\nbuilders:"])))
    assert done(again) and server() == before
    assert links.take_more(file(), {"server"}) == [] and server() == before
    assert links.take_more(file(), set()) == ["server"]
    after = server()
    assert len(after.pop("networks")) == len(before.pop("networks")) + 4 and after == before
    # Provisioning goes on from there.
    assert "nothing changed" in verb(again)[2]
    assert not file().with_name(links.MORE_COMPOSE).exists()


def test_many_sites_have_addresses_that_stay_when_one_leaves(again: Path) -> None:
    """The engine has ranges for about 30 networks only."""

    def subnets() -> dict[str, str]:
        content = yaml.safe_load((again / dotenv.read(again / ".env")["FLOWERBED_COMPOSE"]).read_text())
        return {n: v["ipam"]["config"][0]["subnet"] for n, v in content["networks"].items() if "ipam" in v}

    more = [f"  - {{name: site-{n}, type: client, org: flowerbed}}\n" for n in range(3, 43)]
    edit(again, replace("\nbuilders:", "".join(["\n", *more, "\nbuilders:"])))
    assert (
        "server gets more networks, since it has none left for newcomers. up replaces it." in verb(again)[2]
    )
    before = subnets()
    assert len(before) == 52 and len(set(before.values())) == 52
    for subnet in before.values():
        assert ipaddress.IPv4Network(subnet).subnet_of(ipaddress.IPv4Network("198.18.0.0/15"))
    edit(again, replace(more[5], ""))
    code, outcome, said = verb(again)
    assert code == 0 and outcome["still_valid"] == ["site-8"]
    assert "site-8 is no longer in project.yml, but its certificate is still valid" in said
    assert "(revoked: [site-8])" in said
    assert subnets() == before


def hidden_from_apps(mounts: Iterable[str]) -> bool:
    """Return whether an app sees none of these mounts but data and packages. A console runs no app."""
    return {target.split("/")[1] for target in mounts} <= {*HIDDEN, "data", "environments", "jobs", "flwr"}


@pytest.mark.usefixtures("compose_here")
def test_a_site_elsewhere_has_a_way_out_and_is_not_started_here(again: Path) -> None:
    edit(again, replace("name: site-2\n", "name: site-2\n    elsewhere: true\n"))
    outcome = done(again)
    process = compose(again, "--profile", "*", "config", FLOWERBED_TAG="t")
    assert process.returncode == 0, process.stderr
    here = yaml.safe_load((again / outcome["compose"]).read_text())
    assert "site-2" not in {**here["services"], **here["volumes"]}
    site = elsewhere(again, outcome, "site-2")
    assert hidden_from_apps(mount["target"] for mount in site["volumes"] if isinstance(mount, dict))
    # Through its gate alone.
    assert set(site["networks"]) == {"inside"} and site["dns"] == ["127.0.0.1"]
    assert site["depends_on"] == ["gate"] and site["environment"]["FLOWERBED_GATE"] == "gate-inside:3128"
    file = again / Path(outcome["compose"]).parent / "elsewhere-site-2.yaml"
    content = yaml.safe_load(file.read_text())
    gate, inside = content["services"]["gate"], content["networks"]["inside"]
    assert gate["networks"] == {"inside": {"aliases": ["gate-inside"]}, "outside": {}}
    assert gate["environment"]["FLOWERBED_GATE_TO"] == "${SITE_SERVER:-}"
    assert [(mount["target"], mount["read_only"]) for mount in gate["volumes"]] == [("/renewed", True)]
    assert inside["internal"] is True and inside["enable_ipv6"] is False
    assert inside["driver_opts"] == {"com.docker.network.bridge.inhibit_ipv4": "true"}
    assert "&id" not in file.read_text(), "a person reads it in the join file"
    edit(again, replace("name: site-2\n", "name: site-2\n    cpus: 2\n"))
    assert elsewhere(again, done(again), "site-2")["cpus"] == 2


@pytest.mark.usefixtures("compose_here")
def test_a_site_elsewhere_may_dial_an_address(again: Path) -> None:
    there = "    elsewhere: true\n    connect_to: {name: server, host: 192.0.2.2}\n"
    edit(again, replace("name: site-2\n", f"name: site-2\n{there}"))
    kits = {name: again / kit for name, kit in done(again)["kits"].items()}
    certificate = x509.load_pem_x509_certificate((kits["server"] / "startup" / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ipaddress.ip_address("192.0.2.2") in names.get_values_for_type(x509.IPAddress)
    for site, host in (("site-1", "server"), ("site-2", "192.0.2.2")):
        text = (kits[site] / "startup" / "fed_client.json").read_text()
        assert f'"target": "{host}:8002"' in text, text


def test_all_sites_may_be_elsewhere_and_an_address_that_one_dials_needs_no_build(again: Path) -> None:
    edit(again, lambda text: re.sub(r"  - name: site-\d\n    type: client\n    org: flowerbed\n", "", text))
    first = done(again)
    certificate = (again / "workspace/flowerbed/renewed/server/server.crt").read_bytes()
    there = (
        "{name: far, type: client, org: far, elsewhere: true, connect_to: {name: server, host: 192.0.2.2}}"
    )
    edit(again, replace("\nbuilders:", f"\n  - {there}\nbuilders:"))
    second = done(again)
    assert second["reissued"] == ["server"]
    assert (again / "workspace/flowerbed/renewed/server/server.crt").read_bytes() != certificate
    marks = [kit_layer.mark(again / outcome["kits"]["server"]) for outcome in (first, second)]
    files = [yaml.safe_load((again / outcome["compose"]).read_text()) for outcome in (first, second)]
    assert marks[0] == marks[1] and files[0]["services"] == files[1]["services"]


def test_participants_elsewhere_may_dial_another_port_than_the_server_binds(again: Path) -> None:
    edit(again, replace("fed_learn_port: 8002\n", "fed_learn_port: 8002\n    default_port: 443\n"))
    edit(again, replace("    host_names: [", "    default_host: fl.example.org\n    host_names: ["))
    there = "    elsewhere: true\n    connect_through: http://gate.example:3128\n"
    edit(again, replace("name: site-2\n", f"name: site-2\n{there}"))
    edit(again, replace("role: lead\n", f"role: lead\n{there}"))
    outcome = done(again)
    kits = {name: again / kit for name, kit in outcome["kits"].items()}
    for name, port in (("server", 8002), ("site-1", 8002), ("site-2", 443)):
        (kit,) = (kits[name] / "startup").glob("fed_*.json")
        target = json.loads(kit.read_text())["servers"][0]["service"]["target"]
        assert target == f"{'server' if name == 'server' else 'fl.example.org'}:{port}", name
    for name, port in (("admin@flowerbed.example", 8002), ("lead@flowerbed.example", 443)):
        admin = json.loads((kits[name] / "startup/fed_admin.json").read_text())["admin"]
        assert (admin["host"], admin["port"]) == ("fl.example.org", port), name
    compose_file = yaml.safe_load((again / outcome["compose"]).read_text())["services"]
    assert compose_file["server"]["ports"] == ["${FLOWERBED_BIND:-127.0.0.1}:${FLOWERBED_PORT:-443}:8002"]
    for name, services in (("site-2", ("gate", "doctor")), ("lead", ("lead",))):
        file = again / Path(outcome["compose"]).parent / f"elsewhere-{name}.yaml"
        content = yaml.safe_load(file.read_text())["services"]
        for service in services:
            given = content[service]["environment"]["FLOWERBED_CONNECT_THROUGH"]
            assert given == "http://gate.example:3128", service
    site = elsewhere(again, outcome, "site-2")
    assert "FLOWERBED_CONNECT_THROUGH" not in site["environment"]


def test_a_relay_has_a_published_port_if_other_machines_reach_it(again: Path) -> None:
    relays = """
  - {name: site-5, type: client, org: flowerbed, connect_to: relay-1}
  - {name: site-6, type: client, org: flowerbed, connect_to: relay-2, elsewhere: true}
  - {name: relay-1, type: relay, org: flowerbed, listening_host: {port: 8102}}
  - {name: relay-2, type: relay, org: flowerbed, default_port: 443, listening_host: {port: 8103}}
  - name: relay-3
    type: relay
    org: flowerbed
    elsewhere: true
    listening_host: {port: 8104, default_host: relay.example.org}

builders:"""
    edit(again, replace("\nbuilders:", relays))
    outcome = done(again)
    here = yaml.safe_load((again / outcome["compose"]).read_text())["services"]
    kit = again / outcome["kits"]["site-5"]
    assert "relay-1:8102" in (kit / "local/relay__resources.json").read_text()
    assert here["site-5"]["depends_on"] == {"relay-1": {"condition": "service_healthy"}}
    assert "ports" not in here["relay-1"]
    assert here["relay-2"]["ports"] == ["${FLOWERBED_BIND:-127.0.0.1}:443:8103"]
    there = ["${FLOWERBED_BIND:-0.0.0.0}:${FLOWERBED_PORT:-8104}:8104"]
    assert elsewhere(again, outcome, "relay-3")["ports"] == there


def elsewhere(root: Path, outcome: dict[str, Any], service: str) -> dict[str, Any]:
    file = root / Path(outcome["compose"]).parent / f"elsewhere-{service}.yaml"
    content: dict[str, Any] = yaml.safe_load(file.read_text())["services"][service]
    return content


def test_a_site_elsewhere_has_a_compose_file_without_others_settings(again: Path, tmp_path: Path) -> None:
    there = "    elsewhere: true\n    env_file: /etc/site-2.env\n    node_config: {a: 1}\n    gpus: all\n"
    edit(again, replace("name: site-2\n", f"name: site-2\n{there}"))
    edit(again, replace("role: lead\n", "role: lead\n    elsewhere: true\n"))
    (again / "sites/site-1.yml").write_text("environment: {TOKEN: hush}\n")
    prod = again / Path(done(again)["compose"]).parent
    process = compose(again, "--profile", "*", "config", FLOWERBED_TAG="t")
    assert process.returncode == 0, f"{process.stderr}: the files of another machine are not looked for here"

    # Flower's command line comes in nowhere: neither there nor here, where the person has no container.
    lead = yaml.safe_load((prod / "elsewhere-lead.yaml").read_text())["services"]
    assert list(lead) == ["lead"] and "ports" not in lead["lead"]
    assert not [
        name for name in yaml.safe_load((prod / "compose.yaml").read_text())["services"] if "lead" in name
    ]
    assert {part["image"][:15] for part in lead.values()} == {"${SITE_RUNTIME:"}
    assert [mount["target"] for mount in lead["lead"]["volumes"] if not isinstance(mount, str)] == [
        "/kit",
        "/renewed",
    ]

    machine = tmp_path / "machine"
    shutil.copytree(again / "compose", machine / "compose")
    shutil.copy(prod / "elsewhere-site-2.yaml", machine / "compose.yaml")
    assert not re.search("hush|site-1", (machine / "compose.yaml").read_text())
    (machine / ".env").write_text("COMPOSE_PROJECT_NAME=flowerbed-site-2\nSITE_RUNTIME=sha256:abc\n")
    (machine / "own.env").write_text("TOKEN=own\n")
    # The site's image reads its own file.
    own = {"env_file": "own.env", "node_config": {"b": 2}, "gpus": 2, "shm_size": "1GB"}
    own["data"] = {"images": "/usr/share", "tables": {"folder": "/usr/lib", "group": 4321}}
    assert own_settings.problems(own) == []
    (machine / "compose.override.yaml").write_text(own_settings.render("site-2", own, ["server"]))
    text = (machine / "compose.yaml").read_text().replace("/etc/site-2.env", "own.env")
    (machine / "compose.yaml").write_text(text)
    process = compose(machine, "config", "--format", "json")
    assert process.returncode == 0, process.stderr
    site = json.loads(process.stdout)["services"]["site-2"]
    assert "build" not in site and site["pull_policy"] == "never", "its machine has only the runtime"
    assert site["image"] == "sha256:abc"
    mounts = {mount["target"]: mount.get("read_only", False) for mount in site["volumes"]}
    read_only = dict.fromkeys(("/kit", "/renewed", "/environments", "/data/images", "/data/tables"), True)
    assert mounts == read_only | {"/workspace": False, "/spool": False}
    assert {mount["source"] for mount in site["volumes"] if mount["target"] == "/environments"} == {
        str(machine / "environments")
    }
    assert (site["environment"]["TOKEN"], site["environment"]["FLOWERBED_NODE_CONFIG"]) == ("own", '{"b": 2}')
    (device,) = site["deploy"]["resources"]["reservations"]["devices"]
    assert device["count"] == 2 and site["group_add"] == ["4321"] and int(site["shm_size"]) == 1 << 30
    assert set(site["networks"]) == {"inside"} and site["user"] == "10001:10001"


GIVEN = """
    egress: any
    node_config: {db-url: "a$b", n: 3}
    data: {images: /usr/share, tables: {folder: data/tables, group: 1234}}
    environment: {HF_HUB_OFFLINE: 1}
    hosts: {db.example: 10.0.0.5}
    proxy: http://proxy.example:3128
    shm_size: 2GB
    memory: 3GB
    cpus: 1.5
"""
OWN = """
node_config: {n: 4, secret: "s3$cret"}
env_file: sites/site-1.env
share_logs: false
"""


@pytest.mark.usefixtures("compose_here")
def test_what_a_site_gives_is_in_the_compose_file_and_its_secrets_in_no_kit(again: Path) -> None:
    edit(again, replace("name: site-1\n", f"name: site-1{GIVEN}"))
    edit(again, replace("name: site-2\n", "name: site-2\n    share_logs: false\n"))
    edit(again, replace("type: server\n", "type: server\n    data: /usr/share\n    shm_size: 1GB\n"))
    tables = again / "data/tables"
    tables.mkdir(parents=True)
    tables.chmod(0o755)
    template = again / "sites/site-1.yml"
    assert set(yaml.safe_load(template.read_text()) or {}) == set(), "it is all comments"
    template.write_text(OWN)
    (again / "sites/site-1.env").write_text("DB_PASSWORD=hush\n")
    prod = again / Path(done(again)["compose"]).parent
    assert template.read_text() == OWN, "it is the site's own"

    process = compose(again, "config", "--format", "json", FLOWERBED_TAG="t")
    assert process.returncode == 0, process.stderr
    content = json.loads(process.stdout)["services"]
    site = content["site-1"]
    mounts = {m["target"]: m["source"] for m in site["volumes"] if m.get("read_only")}
    made = str(again / ".flowerbed/environments")
    assert mounts.pop("/renewed") == str(again / "workspace/flowerbed/renewed/site-1")
    assert mounts == {"/data/images": "/usr/share", "/data/tables": str(tables), "/environments": made}
    assert site["group_add"] == ["1234"]
    # Compose doubles a $ of a value when it prints it.
    variables = {name: value.replace("$$", "$") for name, value in site["environment"].items()}
    assert json.loads(variables["FLOWERBED_NODE_CONFIG"]) == {
        "db-url": "a$b",
        "n": 4,
        "secret": "s3$cret",
    }
    assert (variables["DB_PASSWORD"], variables["HF_HUB_OFFLINE"]) == ("hush", "1")
    assert variables["no_proxy"] == "localhost,127.0.0.1,::1,server"
    assert variables["NVFLARE_ALLOW_LOG_STREAMING"] == "false"
    assert [host.replace("=", ":") for host in site["extra_hosts"]] == ["db.example:10.0.0.5"]
    assert [int(site[key]) for key in ("shm_size", "mem_limit", "memswap_limit")] == [
        2 << 30,
        3 << 30,
        3 << 30,
    ]
    assert site["cpus"] == 1.5
    assert {m["target"]: m["source"] for m in content["server"]["volumes"]}["/data"] == "/usr/share"
    assert int(content["server"]["shm_size"]) == 1 << 30
    assert {m["target"]: m["source"] for m in content["site-2"]["volumes"]}["/data"] == str(
        again / "data/site-2"
    )

    assert settings.read(prod / "site-1").node_config == {}, "an edit of it needs no new image"
    assert "allow_log_streaming" not in resources(again, "site-1"), "so that the variable counts"
    assert content["site-2"]["environment"]["NVFLARE_ALLOW_LOG_STREAMING"] == "false"
    for file in (path for path in prod.rglob("*") if path.is_file() and path.name != "compose.yaml"):
        assert not re.search(rb"s3\$cret|hush", file.read_bytes()), file
    assert stat.S_IMODE((prod / "compose.yaml").stat().st_mode) == 0o600
    assert "hush" not in (prod / "compose.yaml").read_text(), "it is read when a container starts"


def test_changed_settings_are_reported_until_provisioned(
    again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "ROOT", again)
    monkeypatch.setattr(site_files, "ROOT", again)
    monkeypatch.setattr(provision, "DEFAULT_PROJECT", again / "project.yml")
    assert provision.changes() == ""
    edit(again, replace("name: site-1\n", "name: site-1\n    cpus: 2\n"))
    (again / "sites/site-2.yml").write_text("environment: {TOKEN: hush}\n")
    assert provision.changes() == "changed since it was provisioned (settings of site-1, site-2)"
    compose_file = again / Path(done(again)["compose"])
    assert provision.changes() == "" and compose_file.read_text().count("org.flowerbed.settings") == 2
    (again / "sites/site-2.yml").write_text("# environment: {TOKEN: hush}\n")
    assert provision.changes() == "changed since it was provisioned (settings of site-2)"
    edit(again, replace("name: site-2\n", "name: site-2\n    elsewhere: true\n    node_config: {a: 1}\n"))
    done(again)
    assert provision.changes() == "", "one on another machine has a file of its own"


def test_env_keeps_other_lines(plain: Path) -> None:
    assert (plain / ".env").read_text().splitlines() == [
        "# mine",
        "FLOWERBED_BIND=0.0.0.0",
        "COMPOSE_PROJECT_NAME=flowerbed",
        f"FLOWERBED_COMPOSE={PROD}/compose.yaml",
    ]


def compose(root: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", "compose", *arguments],
        cwd=root,
        env={key: value for key, value in os.environ.items() if not key.startswith("FLOWERBED_")} | env,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def compose_here(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Require Compose v2 or later. Reading files needs no engine."""
    here = shutil.which("docker") and compose(tmp_path_factory.mktemp("any"), "version").returncode == 0
    if not here:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no `docker compose` here")


@pytest.mark.usefixtures("compose_here")
def test_compose_says_which_verb_is_missing(plain: Path, tmp_path: Path) -> None:
    new = compose(checkout(tmp_path / "new"), "up")
    assert new.returncode != 0
    assert "run ./flowerbed provision" in new.stderr
    unbuilt = compose(plain, "up")
    assert unbuilt.returncode != 0
    assert "run ./flowerbed build" in unbuilt.stderr
    assert "provision" not in unbuilt.stderr


@pytest.mark.usefixtures("compose_here")
def test_compose_resolves_every_service_to_a_hardened_container(wide: Path) -> None:
    process = compose(wide, "config", "--format", "json", FLOWERBED_TAG="t", FLOWERBED_DATA="elsewhere")
    assert process.returncode == 0, process.stderr
    renewals = wide / "workspace/flowerbed/renewed"
    content = json.loads(process.stdout)
    assert content["name"] == "flowerbed"
    # The tools for the curves start only on request: see the next test.
    assert set(content["services"]) == set(services(wide)) - TOOLS
    commands: dict[str, dict[str, dict[str, str]]] = {}
    for name in filter(is_carrier, list(content["services"])):
        carrier = content["services"].pop(name)
        assert carrier["image"] == "flowerbed-runtime:t" and not carrier.get("environment")
        assert [mount["source"] for mount in carrier["volumes"]] == [name]
        assert {mount["type"] for mount in carrier["volumes"]} == {"volume"}
        assert list(carrier["networks"]) == ["flwr"] and carrier["read_only"] and carrier["init"]
        assert (carrier["user"], carrier["cap_drop"]) == ("10001:10001", ["ALL"])
    for name, service in content["services"].items():
        assert service["image"] == f"flowerbed-{name}:t"
        assert service["user"] == "10001:10001"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True
        assert service["init"] is True
        assert int(service["mem_limit"]) == int(service["memswap_limit"]) > 0
        assert list(service["ulimits"]) == ["core"]
        assert service["pids_limit"] > 0
        # A builder's cache would keep the key.
        assert "build" not in service and service["pull_policy"] == "never"
        assert ("healthcheck" in service) == (service["command"] != ["console"])
        assert "docker.sock" not in json.dumps(service)
        mounts = {mount["target"]: mount for mount in service["volumes"]}
        assert hidden_from_apps(mounts)
        assert mounts.pop("/workspace")["source"] == name
        if name == "server":
            assert mounts.pop("/tracking")["source"] == "tensorboard"
        if service["command"] == ["console"]:
            assert mounts.pop("/flwr")["source"] == f"flwr.{name}"
        for mount in mounts.values():
            assert mount["read_only"] is True
        participant = service["labels"]["org.flowerbed.participant"]
        assert mounts.pop("/renewed")["source"] == str(renewals / participant), "only its own"
        assert ("/renewals" in mounts) == (name == "server")
        mounts.pop("/renewals", None)
        commands.setdefault(service["command"][0], {})[name] = {t: m["source"] for t, m in mounts.items()}
    policy = str(wide / "workspace/flowerbed/policy")
    made = {"/environments": str(wide / ".flowerbed/environments")}
    offers = {"/offers": str(wide / ".flowerbed/offers")}
    assert commands == {
        "server": {"server": {"/apps": str(wide / "deployed"), "/policy": policy, **made, **offers}},
        "relay": {"relay-1": {"/policy": policy}},
        "site": {f"site-{n}": {"/data": str(wide / f"elsewhere/site-{n}"), **made} for n in (1, 2, 3, 5)},
        "console": {n: {"/jobs": str(wide / "jobs"), **made} for n in ("admin", "lead", "mem-ber")},
    }
    assert (wide / "jobs").is_dir() and (wide / "deployed").is_dir()


def test_revoked_names_are_written_where_containers_see_changes(again: Path) -> None:
    policy = again / "workspace/flowerbed/policy"
    assert json.loads((policy / "revoked.json").read_text()) == {"revoked": []}
    edit(again, replace("participants:", "revoked: [site-9, lady@flowerbed.example]\nparticipants:"))
    before = os.umask(0o077)
    try:
        process = nvflare(again, "--force")
    finally:
        os.umask(before)
    assert process.returncode == 0, process.stderr
    assert "site-9 is revoked" in process.stdout + process.stderr
    assert json.loads((policy / "revoked.json").read_text()) == {
        "revoked": ["lady@flowerbed.example", "site-9"]
    }
    assert [p.name for p in policy.iterdir()] == ["revoked.json"]
    # The container runs as a different user.
    assert policy.stat().st_mode & 0o777 == 0o755
    assert (policy / "revoked.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.usefixtures("compose_here")
def test_tracking_tools_are_hardened_and_apart_from_the_sites(wide: Path) -> None:
    words = ("--profile", "tensorboard", "--profile", "mlflow", "config", "--format", "json")
    process = compose(wide, *words, FLOWERBED_TAG="t")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)["services"]
    for name, port, read_only in (("tensorboard", 6006, True), ("mlflow", 5000, False)):
        service = found[name]
        assert service["user"] == "10001:10001" and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True and service["init"] is True
        assert int(service["mem_limit"]) == int(service["memswap_limit"]) > 0 and service["pids_limit"] > 0
        assert "build" not in service and "healthcheck" in service
        ((source, target, fixed),) = (
            (m["source"], m["target"], m.get("read_only", False)) for m in service["volumes"]
        )
        assert (source, target, fixed) == (name, "/tracking", read_only)
        assert [(p["host_ip"], p["published"], p["target"]) for p in service["ports"]] == [
            ("127.0.0.1", str(port), port)
        ]
        assert set(service["networks"]) == {"tracking"}
    assert found["tensorboard"]["image"] == "flowerbed-runtime:t"
    assert found["mlflow"]["image"] == "flowerbed-mlflow:t"
    inside = {name for name, service in found.items() if "tracking" in service["networks"]}
    assert inside == {"server", *TOOLS}


# Again


def test_nothing_changed_leaves_no_new_folder(again: Path) -> None:
    before = certificates(again / PROD)
    outcome = done(again)
    assert sorted(p.name for p in (again / "workspace/flowerbed").iterdir()) == [
        "policy",
        "prod_00",
        "renewed",
        "state",
    ]
    assert certificates(again / PROD) == before
    assert outcome["compose"] == f"{PROD}/compose.yaml"
    assert (outcome["reissued"], outcome["added"]) == ([], [])
    assert set(outcome["kept"]) == set(outcome["kits"])


@pytest.mark.parametrize("behind", ["", ", connect_to: {name: relay-1}"])
def test_a_new_site_leaves_all_other_certificates_as_they_are(
    wide: Path, tmp_path: Path, behind: str
) -> None:
    root = Path(shutil.copytree(wide, tmp_path / "repo"))
    before = certificates(root / PROD)
    edit(
        root,
        replace("\nbuilders:", f"\n  - {{name: site-4, type: client, org: flowerbed{behind}}}\nbuilders:"),
    )
    outcome = done(root)
    after = certificates(root / "workspace/flowerbed/prod_01")
    assert after.pop("site-4/startup/client.crt")
    assert after == before
    assert kits(root / "workspace/flowerbed/prod_01", but="site-4") == kits(root / PROD)
    composed, was = services(root, "prod_01"), services(wide)
    del composed["site-4"]
    # `docker compose` recreates no container whose part is as it was, apart from how its image is built.
    for part in (*composed.values(), *was.values()):
        part.pop("build", None)
    assert composed == was
    assert "relay-1/startup/server.crt" in before
    assert (outcome["added"], outcome["reissued"]) == (["site-4"], [])
    assert outcome["kits"]["site-4"] == "workspace/flowerbed/prod_01/site-4"
    assert outcome["participants"][-1] == {
        "name": "site-4",
        "type": "client",
        "role": None,
        "service": "site-4",
    }
    assert "FLOWERBED_COMPOSE=workspace/flowerbed/prod_01/compose.yaml" in (root / ".env").read_text()


def test_a_kit_names_nobody_but_its_owner_and_the_relays_before_it(wide: Path) -> None:
    places = {"a.b": "b", "a.b.site": "site", "a.other": "other", "a.b.site.more": "more"}
    kept = {"site": ["a.b", "a.b.site"], "b": ["a.b"], "a": [], "server": []}
    for name, expected in kept.items():
        part: dict[str, Any] = {"auth_identity_map": dict(places)}
        harden._forget_others(part, name)
        assert list(part.get("auth_identity_map", {})) == expected
    told = {
        name: (wide / PROD / name / "startup").glob("fed_*.json") for name in ("server", "site-1", "site-5")
    }
    having = [name for name, files in told.items() if any("_map" in file.read_text() for file in files)]
    assert having == ["site-5"]


def test_a_new_site_elsewhere_changes_nothing_here(wide: Path, tmp_path: Path) -> None:
    """Neither a kit, nor a part of the Compose file, even if it dials the server by another name."""
    root = Path(shutil.copytree(wide, tmp_path / "repo"))
    site = "{name: site-4, type: client, org: flowerbed, elsewhere: true"
    edit(root, replace("\nbuilders:", f"\n  - {site}, connect_to: {{host: far.example.org}}}}\nbuilders:"))
    done(root)
    prod = root / "workspace/flowerbed/prod_01"
    assert "far.example.org" in sans(prod / "server/startup/server.crt")

    def but_certificates(prod: Path) -> dict[str, bytes]:
        # A renewed certificate needs no new container.
        return {name: content for name, content in kits(prod, "site-4").items() if not name.endswith(".crt")}

    assert but_certificates(prod) == but_certificates(root / PROD)
    composed, was = services(root, "prod_01"), services(wide)
    assert composed == was


def test_changed_host_names_reissue_the_server_certificate_only(again: Path) -> None:
    before = certificates(again / PROD)
    edit(again, replace("[localhost, 127.0.0.1]", "[localhost, 127.0.0.1, fl.example.org]"))
    code, outcome, text = verb(again)
    assert (code, outcome["reissued"]) == (0, ["server"])
    (line,) = (line for line in text.splitlines() if "new certificate from the same CA" in line)
    assert line.startswith("server: ")
    assert "fl.example.org" in line
    kit = again / "workspace/flowerbed/prod_01/server/startup"
    assert "fl.example.org" in sans(kit / "server.crt")
    assert (kit / "rootCA.pem").read_bytes() == (again / PROD / "server/startup/rootCA.pem").read_bytes()
    certificate(kit / "server.crt").verify_directly_issued_by(certificate(kit / "rootCA.pem"))
    after = certificates(kit.parent.parent)
    assert {name for name in after if after[name] != before[name]} == {"server/startup/server.crt"}


def test_a_changed_org_reissues_that_certificate(again: Path) -> None:
    edit(again, replace("  - name: site-2\n    type: client\n    org: flowerbed", SITE_2))
    assert done(again)["reissued"] == ["site-2"]
    new = certificate(again / "workspace/flowerbed/prod_01/site-2/startup/client.crt")
    assert "O=elsewhere" in new.subject.rfc4514_string()


SITE_2 = "  - name: site-2\n    type: client\n    org: elsewhere"


def age(root: Path, subject: str, days: int) -> None:
    """Give a participant a certificate that ends in this many days."""
    path = root / STATE
    state = json.loads(path.read_text())
    old = x509.load_pem_x509_certificate(state[subject]["cert"].encode())
    now = datetime.datetime.now(datetime.UTC)
    new = generate_cert(
        Identity(subject, "flowerbed"),
        Identity("flowerbed"),
        serialization.load_pem_private_key(state["root_pri_key"].encode(), None),
        old.public_key(),
        not_valid_before=now - datetime.timedelta(days=300),
        not_valid_after=now + datetime.timedelta(days=days),
    )
    state[subject]["cert"] = serialize_cert(new).decode()
    path.write_text(json.dumps(state))


def test_certificates_past_half_of_their_life_are_renewed_for_the_same_keys(again: Path) -> None:
    age(again, "site-1", 10)
    age(again, "site-2", 310)
    before = certificate(again / PROD / "site-1/startup/client.crt")
    assert done(again)["reissued"] == ["site-1"]
    age(again, "site-2", -1)
    outcome = done(again)
    assert outcome["reissued"] == ["site-2"]
    startup = again / outcome["kits"]["site-1"] / "startup"
    assert certificate(startup / "client.crt").public_key() == before.public_key()
    key = serialization.load_pem_private_key((startup / "client.key").read_bytes(), None)
    assert key.public_key() == before.public_key(), "the key is kept"
    end = certificate(again / outcome["kits"]["site-2"] / "startup/client.crt").not_valid_after_utc
    assert end > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=300)


def default_host(host: str) -> Edit:
    line = f"    default_host: {host}\n    host_names"
    return lambda text: re.sub(r"    (default_host: .*\n    )?host_names", line, text)


def test_a_server_that_moves_is_known_by_its_old_name_for_a_time(again: Path) -> None:
    """Sites on other machines have a kit with the old name, and dial it until they have heard of the new
    one."""
    workspace = again / "workspace/flowerbed"
    files = {
        who: workspace / "renewed" / who / "server.json"
        for who in ("server", "site-1", "admin@flowerbed.example")
    }
    assert json.loads(files["site-1"].read_text()) == {"host": "server", "port": 8002}
    assert files["admin@flowerbed.example"].is_file() and not files["server"].exists()
    names = []
    for host in ("old.example.org", "new.example.org"):
        edit(again, default_host(host))
        outcome = done(again)
        assert json.loads(files["site-1"].read_text()) == {"host": host, "port": 8002}
        assert files["site-1"].stat().st_mode & 0o777 == 0o644
        names.append(sans(again / outcome["kits"]["server"] / "startup/server.crt"))
    assert "old.example.org" in names[0] & names[1] and "new.example.org" in names[1] - names[0]
    # Nobody dials it any more.
    state = workspace / "state/addresses.json"
    left = {**json.loads(state.read_text()), "old.example.org": time.time() - 91 * 86400}
    assert left["new.example.org"] is None
    state.write_text(json.dumps(left))
    last = sans(again / done(again)["kits"]["server"] / "startup/server.crt")
    assert "old.example.org" not in last and "new.example.org" in last


# Bad input


BAD: dict[str, tuple[Edit, str]] = {
    "broken YAML": (replace("participants:", "participants: ]"), "line 12: this is not YAML"),
    "not a mapping": (lambda _: "- a\n- b\n", "expected a mapping"),
    "no participants": (lambda _: "name: flowerbed\n", "participants: expected a list, found nothing"),
    "no type": (replace("    type: client\n", ""), "participant site-1: expected 'type' to be a string"),
    "unknown type": (replace("type: client", "type: clinet"), "expected type server, client"),
    "duplicate name": (replace("name: site-2", "name: site-1"), "participant 'site-1' appears 2 times"),
    "no server": (replace("type: server", "type: client"), "one participant of type server, found none"),
    "two servers": (
        replace("type: client", "type: server"),
        "one participant of type server, found server, site-1",
    ),
    "no admin": (replace("role: project_admin", "role: org_admin"), "type admin with role project_admin"),
    "unknown role": (replace("role: lead", "role: boss"), "expected role project_admin"),
    "capital in a site's name": (
        replace("name: site-2", "name: Site-2"),
        "site 'Site-2': expected a host name",
    ),
    "illegal site name": (replace("name: site-2", "name: site_2"), "site 'site_2': expected a host name"),
    "name reserved by FLARE": (
        lambda text: text.replace("name: server", "name: fl").replace("name: site-2", "name: server"),
        "site 'server': FLARE uses this name for something else",
    ),
    "name of a site's gate": (
        replace("name: site-2\n", "name: gate\n    elsewhere: true\n"),
        "site 'gate': this is the name of another container",
    ),
    "name of another container": (
        replace("name: site-2", "name: mlflow"),
        "site 'mlflow': this is the name of another container",
    ),
    "illegal admin name": (
        replace("name: lead@flowerbed.example", "name: lead"),
        "admin 'lead': expected an e-mail address",
    ),
    "illegal org": (replace("org: flowerbed", "org: flower-bed"), "expected org in letters, digits and _"),
    "illegal project name": (replace("name: flowerbed\n", "name: Flower Bed\n"), "name: expected lower-case"),
    "bad port": (
        replace("fed_learn_port: 8002", "fed_learn_port: x"),
        "expected fed_learn_port from 1 to 65535",
    ),
    "an IPv6 address": (
        replace(
            "name: site-2\n",
            'name: site-2\n    elsewhere: true\n    connect_to: {name: server, host: "2001:db8::1"}\n',
        ),
        "site 'site-2': expected a name or an IPv4 address in connect_to, found 2001:db8::1",
    ),
    "bad dialled port": (
        replace("fed_learn_port: 8002", "fed_learn_port: 8002\n    default_port: 0"),
        "expected default_port from 1 to 65535, found int 0",
    ),
    "a person here behind a proxy": (
        replace("role: lead\n", "role: lead\n    connect_through: http://p:1\n"),
        "admin 'lead@flowerbed.example': connect_through is for another machine (elsewhere: true)",
    ),
    "second port": (
        replace("fed_learn_port: 8002", "fed_learn_port: 8002\n    admin_port: 8003"),
        "admin_port 8003",
    ),
    "shared service": (
        replace("name: lead@flowerbed.example", "name: admin@other.example"),
        "would share one container, 'admin'",
    ),
    "missing builder": (
        replace("  - path: provisioning.harden.HardenBuilder\n", ""),
        "builders: provisioning.harden.HardenBuilder missing",
    ),
    "builders in another order": (
        lambda text: (
            text.replace("provisioning.harden.HardenBuilder", "X")
            .replace("nvflare.lighter.impl.workspace.WorkspaceBuilder", "provisioning.harden.HardenBuilder")
            .replace("path: X", "path: nvflare.lighter.impl.workspace.WorkspaceBuilder")
        ),
        "builders: wrong order",
    ),
    "unknown scheme": (
        replace("scheme: tcp", "scheme: quic"),
        "expected StaticFileBuilder's scheme to be grpc, tcp or http, found 'quic'",
    ),
    "unknown scheme of a relay": (
        lambda text: text.replace("\nbuilders:", SITES.replace("scheme: grpc", "scheme: https")),
        "relay 'relay-1': expected listening_host's scheme to be grpc, tcp or http, found 'https'",
    ),
    "no jobs at once": (
        replace(f"{HARDEN}\n", f"{HARDEN}\n    args: {{max_jobs: 0}}\n"),
        "expected HardenBuilder's max_jobs to be a whole number from 1, found int 0",
    ),
    "custom code is neither true nor false": (
        replace("name: site-2\n", "name: site-2\n    custom_code: never\n"),
        "site 'site-2': expected custom_code to be true or false, found 'never'",
    ),
    "custom code of an admin": (
        replace("role: lead", "role: lead\n    custom_code: false"),
        "admin 'lead@flowerbed.example': custom_code is for the server and for sites",
    ),
    "a policy that is misspelt": (
        replace("name: site-2\n", "name: site-2\n    alowed_apps: []\n"),
        "site 'site-2': unknown key 'alowed_apps'. Did you mean allowed_apps?",
    ),
    "revoked is misspelt": (
        replace("\nbuilders:", "\nrevoke: [site-9]\nbuilders:"),
        "project: unknown key 'revoke'. Did you mean revoked?",
    ),
    "a sandbox of another kind": (
        replace("name: site-2\n", "name: site-2\n    sandbox: strict\n"),
        "site 'site-2': expected sandbox to be required, best-effort, off, found 'strict'",
    ),
    "egress to one address": (
        replace("name: site-2\n", "name: site-2\n    egress: 10.0.0.1\n"),
        "site 'site-2': expected egress to be server, any, found '10.0.0.1'",
    ),
    "a server elsewhere": (
        replace("type: server\n", "type: server\n    elsewhere: true\n"),
        "server 'server': elsewhere is for all but the server. Leave it out",
    ),
    "elsewhere is a place": (
        replace("name: site-2\n", "name: site-2\n    elsewhere: berlin\n"),
        "site 'site-2': expected elsewhere to be true or false, found 'berlin'",
    ),
    "an allowed app by its name": (
        replace("name: site-2\n", "name: site-2\n    allowed_apps: [dice]\n"),
        "site 'site-2': expected allowed_apps to be a list of SHA-256 hashes",
    ),
    "an unknown limit": (
        replace("name: site-2\n", "name: site-2\n    limits: {memory: 4GB}\n"),
        "site 'site-2': expected limits to have job_files, log, audit, kept_jobs",
    ),
    "a limit that is no size": (
        replace("name: site-2\n", "name: site-2\n    limits: {log: much}\n"),
        "site 'site-2': expected limits.log to be a size such as 20GB, found 'much'",
    ),
    "no kept jobs": (
        replace("name: site-2\n", "name: site-2\n    limits: {kept_jobs: 0}\n"),
        "site 'site-2': expected limits.kept_jobs to be a whole number from 1, found int 0",
    ),
    "a node config of a wrong type": (
        replace("name: site-2\n", "name: site-2\n    node_config: {ids: [1, 2]}\n"),
        "site 'site-2': expected node_config.ids to be a string, a 64-bit integer",
    ),
    "a key of ours in a node config": (
        replace("name: site-2\n", "name: site-2\n    node_config: {client-name: me}\n"),
        "site 'site-2': node_config: client-name, partition-id, num-partitions are set for each job",
    ),
    "a node config of the server": (
        replace("type: server\n", "type: server\n    node_config: {a: 1}\n"),
        "server 'server': node_config is for sites. Leave it out",
    ),
    "data of a person": (
        replace("role: lead\n", "role: lead\n    data: /srv\n"),
        "admin 'lead@flowerbed.example': data is for the server and for sites",
    ),
    "a misspelt setting": (
        replace("name: site-2\n", "name: site-2\n    enviroment: {A: 1}\n"),
        "unknown key 'enviroment'. Did you mean environment?",
    ),
    "data that is not there": (
        replace("name: site-2\n", "name: site-2\n    data: /no/such/folder\n"),
        "site-2: data: /no/such/folder does not exist. Make it, or correct the path.",
    ),
    "a proxy that cannot be reached": (
        replace("name: site-2\n", "name: site-2\n    proxy: http://p:3128\n"),
        "site-2: proxy needs egress: any in project.yml",
    ),
    "somebody who is revoked and takes part": (
        replace("\nbuilders:", "\nrevoked: [site-2]\nbuilders:"),
        "revoked: 'site-2' is also a participant",
    ),
    "revoked is no list": (
        replace("\nbuilders:", "\nrevoked: site-9\nbuilders:"),
        "revoked: expected a list of names of sites and people, found 'site-9'",
    ),
    "a site under a name of the server's": (
        replace("[localhost, 127.0.0.1]", "[localhost, Site-2]"),
        "server 'server': expected a name in host_names that is nobody else's, found 'Site-2', under which "
        "'site-2' could pose as 'server'",
    ),
    "a site under the server's first name": (
        replace("    host_names: [", "    default_host: site-1\n    host_names: ["),
        "expected a name in default_host that is nobody else's, found 'site-1'",
    ),
    "a wrong shape beside other errors": (
        lambda text: text.replace("name: site-2\n", "name: site-2\n    memory: lots\n", 1).replace(
            "    org: flowerbed", "    orgg: flowerbed", 1
        ),
        "memory",
    ),
    "an address that containers here cannot dial": (
        replace("    host_names: [", "    default_host: 192.0.2.2\n    host_names: ["),
        "server 'server': expected a name in default_host, found the address 192.0.2.2",
    ),
    "a site that dials the server by another's name": (
        replace("name: site-2\n", "name: site-2\n    connect_to: {host: site-1}\n"),
        "site 'site-2': expected a name in connect_to that is nobody else's, found 'site-1'",
    ),
    "a relay under a name of the server's": (
        lambda text: text.replace("127.0.0.1]", "127.0.0.1, fl.example]").replace(
            "\nbuilders:", SITES.replace("port: 8102", "port: 8102, host_names: [fl.example]")
        ),
        "relay 'relay-1': expected a name in host_names that is nobody else's, found 'fl.example', under "
        "which 'server' could pose as 'relay-1'",
    ),
    # Left to FLARE to find.
    "old api_version": (
        replace("api_version: 3", "api_version: 2"),
        "API version expected 3 or 4 but found 2",
    ),
    "illegal host name": (replace("[localhost,", "[local host,"), "local host"),
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("bare") / "repo")


@pytest.mark.parametrize("case", BAD)
def test_bad_project_is_refused_with_one_clear_error(bare: Path, tmp_path: Path, case: str) -> None:
    change, expected = BAD[case]
    good = (bare / "project.yml").read_text()
    bad = tmp_path / "project.yml"
    bad.write_text(change(good))
    assert bad.read_text() != good
    code, outcome, text = verb(bare, "-p", str(bad))
    assert (code, expected in outcome["error"]) == (2, True), text
    assert str(bad) in outcome["error"]
    assert "Traceback" not in text
    assert not list(bare.glob("workspace/*/prod_*"))
    assert not (bare / ".env").exists()


def test_every_error_is_named_at_once(bare: Path, tmp_path: Path) -> None:
    bad = tmp_path / "project.yml"
    text = (bare / "project.yml").read_text()
    bad.write_text(text.replace("name: site-2", "name: site_2").replace("role: lead", "role: boss"))
    _, outcome, _ = verb(bare, "-p", str(bad))
    assert "site_2" in outcome["error"]
    assert "boss" in outcome["error"]


def test_missing_project_file(bare: Path) -> None:
    code, outcome, _ = verb(bare, "-p", "none.yml")
    assert code == 2
    assert "none.yml cannot be read: No such file" in outcome["error"]


def test_a_role_cannot_change_silently(again: Path) -> None:
    edit(again, replace("role: lead", "role: member"))
    code, outcome, text = verb(again)
    assert code == 1
    assert "previous role is lead but is now member" in outcome["error"]
    assert "Traceback" not in text


def test_damaged_state_is_reported(again: Path) -> None:
    (again / STATE).write_text("{")
    code, outcome, _ = verb(again)
    assert code == 1
    assert "state/cert.json, the CA and all certificates, cannot be read" in outcome["error"]


@pytest.mark.parametrize(
    ("arguments", "change", "expected"),
    [
        ((), replace("role: project_admin", "role: org_admin"), "type admin with role project_admin"),
        (("-w", "../elsewhere"), lambda text: text + "\n", "expected a workspace below"),
    ],
)
def test_flare_alone_shows_our_errors_as_its_own(
    tmp_path: Path, arguments: tuple[str, ...], change: Edit, expected: str
) -> None:
    root = checkout(tmp_path / "repo")
    edit(root, change)
    process = nvflare(root, *arguments)
    assert process.returncode == 4
    assert expected in process.stderr
    assert "Traceback" not in process.stderr
