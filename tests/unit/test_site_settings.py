"""A site's settings for apps: refusals, Compose's part, Flower's part."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.common.config import parse_config_args
from nvflare.apis.fl_constant import SystemConfigs
from nvflare.app_common.logging.constants import is_log_streaming_allowed
from nvflare.fuel.utils.config_service import ConfigService

from bridge.common import connect_through, own_policy, own_settings, site_service, site_settings, versions
from bridge.common.job_options import ConfigValue
from bridge.job import settings
from bridge.launch import environment
from provisioning import here, site_files

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a list as a node config": ({"node_config": ["a"]}, "expected node_config to have keys, each with"),
    "a list in a node config": (
        {"node_config": {"a": [1]}},
        "expected node_config.a to be a string, a 64-bit",
    ),
    "a date in a node config": (
        {"node_config": {"a": None}},
        "expected node_config.a to be a string, a 64-bit",
    ),
    "a number beyond 64 bits": ({"node_config": {"a": 2**63}}, "64-bit integer"),
    "a number without end": ({"node_config": {"a": float("inf")}}, "a finite number"),
    "a key with a blank": ({"node_config": {"a b": 1}}, "keys of letters, digits"),
    "one of our keys": ({"node_config": {"partition-id": 7}}, "Leave partition-id out"),
    "a key that is also a table": ({"node_config": {"a": 1, "a.b": 2}}, "a is both a value and a table"),
    "a number as data": ({"data": 5}, "expected data to be a folder, {folder: PATH, group: GROUP}"),
    "no data": ({"data": {}}, "expected data to be a folder"),
    "a home folder": ({"data": "~/x"}, "a folder's path (without ~)"),
    "a data folder's name with a slash": ({"data": {"../a": "/x"}}, "expected data to have names of letters"),
    "data of root's group": ({"data": {"folder": "/x", "group": "root"}}, "the root group would open more"),
    "data of a group that is true": ({"data": {"folder": "/x", "group": True}}, "a group's name or number"),
    "an unknown key of data": ({"data": {"folder": "/x", "mode": 7}}, "{folder: PATH, group: GROUP}"),
    "a list as environment": ({"environment": ["A=1"]}, "expected environment to be names of variables"),
    "the linker's variable": ({"environment": {"LD_PRELOAD": "x"}}, "LD_PRELOAD is not for apps"),
    "Python's variable": ({"environment": {"PYTHONPATH": "x"}}, "PYTHONPATH is not for apps"),
    "a proxy as a variable": ({"environment": {"http_proxy": "x"}}, "http_proxy: use proxy"),
    "a variable of no name": ({"environment": {"A-B": "x"}}, "a variable's name in letters"),
    "a list as a variable": ({"environment": {"A": [1]}}, "expected environment.A to be a string"),
    "a number as env_file": ({"env_file": 3}, "expected env_file to be the path of a file"),
    "a size of a word": ({"shm_size": "much"}, "expected shm_size to be a size such as 2GB, found 'much'"),
    "memory below nothing": ({"memory": -1}, "expected memory to be a size such as 16GB, found int -1"),
    "half of no core": ({"cpus": 0}, "expected cpus to be a number of cores above 0"),
    "no GPU": ({"gpus": 0}, "expected gpus to be all, a number of GPUs, or a list of their ids"),
    "GPUs that are true": ({"gpus": True}, "expected gpus to be all"),
    "a list of hosts": ({"hosts": ["a:1.2.3.4"]}, "expected hosts to be names, each with an address"),
    "a host by a name": ({"hosts": {"db": "other"}}, "expected hosts.db to be an IP address or host-gateway"),
    "loopback elsewhere": ({"hosts": {"localhost": "10.0.0.1"}}, "names of hosts other than localhost"),
    "a proxy without a port": ({"proxy": "http://p"}, "expected proxy to be an address such as http://"),
    "a proxy out of reach": ({"proxy": "http://p:40000"}, "expected a port from 1 to 32767"),
    "a way through a proxy of another kind": (
        {"connect_through": "socks5://me:geheim@p:1080"},
        "expected connect_through to be an address such as http://",
    ),
    "logs to some": ({"share_logs": "some"}, "expected share_logs to be true or false, found 'some'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_wrong_value_has_one_clear_error(case: str) -> None:
    given, expected = WRONG[case]
    (problem,) = site_settings.problems(given)
    assert expected in problem


def test_node_config_and_share_logs_are_refused_at_the_server() -> None:
    found = list(site_settings.problems({"node_config": {"a": 1}, "share_logs": False}, server=True))
    assert found == ["node_config is for sites. Leave it out", "share_logs is for sites. Leave it out"]


RIGHT: dict[str, Any] = {
    "node_config": {"db-url": "x", "n": 3, "f": 0.5, "b": True, "a.b": 1},
    "data": {"images": "/srv/images", "tables": {"folder": "rel/tables", "group": "research"}},
    "environment": {"HF_HUB_OFFLINE": 1, "NAME": "a$b", "ON": True},
    "env_file": "secrets.env",
    "shm_size": "2GB",
    "gpus": "all",
    "hosts": {"db.example": "10.0.0.5", "v6": "fd00::1", "here": "host-gateway"},
    "proxy": "http://u:p@proxy.example:3128",
    "cpus": 1.5,
    "memory": "3 GB",
    "share_logs": False,
}


def test_compose_gets_each_of_them() -> None:
    assert not list(site_settings.problems(RIGHT))
    service = site_service.service(RIGHT, {"research": 1234}, without_proxy=["server", "localhost"])
    volumes = [(v["source"], v["target"], v["read_only"]) for v in service.pop("volumes")]
    assert volumes == [("/srv/images", "/data/images", True), ("./rel/tables", "/data/tables", True)]
    (device,) = service.pop("deploy")["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "capabilities": ["gpu", "compute", "utility"], "count": "all"}
    variables = service.pop("environment")
    for name in ("http_proxy", "HTTPS_PROXY"):
        assert variables[name] == RIGHT["proxy"]
    assert variables["no_proxy"] == variables["NO_PROXY"] == "localhost,127.0.0.1,::1,server"
    assert json.loads(variables["FLOWERBED_NODE_CONFIG"]) == RIGHT["node_config"]
    assert variables["NVFLARE_ALLOW_LOG_STREAMING"] == "false"
    assert (variables["HF_HUB_OFFLINE"], variables["NAME"], variables["ON"]) == ("1", "a$$b", "true")
    assert service == {
        "group_add": ["1234"],
        "env_file": ["./secrets.env"],
        "shm_size": 2 * 2**30,
        "mem_limit": 3 * 2**30,
        "memswap_limit": 3 * 2**30,
        "cpus": 1.5,
        "extra_hosts": ["db.example:10.0.0.5", "v6:fd00::1", "here:host-gateway"],
    }


def test_a_way_through_a_proxy_is_one_variable_and_leaves_the_server_to_that_proxy() -> None:
    own = {"connect_through": "http://me:a$b@gate.example:3128", "proxy": "http://proxy.example:3128"}
    assert not list(site_settings.problems(own))
    variables = site_service.service(own, {}, without_proxy=["fl.example.org"])["environment"]
    assert variables["FLOWERBED_CONNECT_THROUGH"] == "http://me:a$$b@gate.example:3128"
    assert variables["no_proxy"] == "localhost,127.0.0.1,::1"


def test_nothing_said_is_nothing_told() -> None:
    assert site_service.service({}, {}, without_proxy=["server"]) == {}


def test_gpus_by_number_and_by_id() -> None:
    def device(gpus: Any) -> Any:
        service = site_service.service({"gpus": gpus}, {}, without_proxy=[])
        return service["deploy"]["resources"]["reservations"]["devices"][0]

    assert device(2)["count"] == 2
    assert device([0, "GPU-1"])["device_ids"] == ["0", "GPU-1"]


def test_one_folder_is_all_of_data() -> None:
    assert site_settings.folders("/x") == [site_settings.Folder("/x", "/data")]
    one = site_settings.folders({"folder": "/x", "group": "77"})
    assert one == [site_settings.Folder("/x", "/data", 77)]


def test_the_sites_file_adds_to_the_projects_and_goes_before_it() -> None:
    project = {
        "name": "site-1",
        "node_config": {"a": 1, "b": 2},
        "data": "/x",
        "cpus": 1,
        "hosts": {"h": "1.1.1.1"},
    }
    own = {"node_config": {"b": 3}, "data": {"c": "/y"}, "hosts": None}
    assert site_settings.merged(project, own) == {
        "node_config": {"a": 1, "b": 3},
        "data": {"c": "/y"},
        "cpus": 1,
        "hosts": {"h": "1.1.1.1"},
    }


def test_flower_reads_a_node_config_as_written() -> None:
    config: dict[str, ConfigValue] = {
        "text": "postgresql://u:p@h/d?a=1&b='2' \"x\"",
        "lines": "a\nb\t\\ \u2028 ü 😀",
        "empty": "",
        "file": "x.toml",
        "n": -5,
        "f": 1e16,
        "yes": True,
        "no": False,
        "a.b": 1,
        "client-name": "site-1",
    }
    command = environment.supernode_command(1, 2, config, environment.PREFORK, versions.generation())
    assert parse_config_args([command[command.index("--node-config") + 1]]) == config


def test_a_sites_own_settings_override_the_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / settings.FILE).write_text('{"node_config": {"a": 1, "b": "kit"}}')
    assert settings.read(tmp_path).node_config == {"a": 1, "b": "kit"}
    monkeypatch.setenv("FLOWERBED_NODE_CONFIG", '{"b": "own"}')
    assert settings.read(tmp_path).node_config == {"a": 1, "b": "own"}
    assert settings.read(tmp_path / "simulated").node_config == {"b": "own"}


def test_a_site_elsewhere_decides_what_its_apps_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local").mkdir()
    kit = {"sandbox": "best-effort", "egress": "any", "custom_code": True, "allowed_apps": None}
    (tmp_path / settings.FILE).write_text(json.dumps(kit))
    decided = {"sandbox": "required", "egress": "server", "custom_code": False, "allowed_apps": ["ab" * 32]}
    assert own_settings.problems(decided) == []
    service = yaml.safe_load(own_settings.render("site-3", decided, []))["services"]["site-3"]
    monkeypatch.setenv(own_policy.VARIABLE, service["environment"][own_policy.VARIABLE])
    found = settings.read(tmp_path)
    assert (found.sandbox, found.egress, found.custom_code) == ("required", "server", False)
    assert found.allowed_apps == ("ab" * 32,)


def test_a_relay_or_console_elsewhere_has_the_settings_of_a_machine_without_apps() -> None:
    assert own_settings.problems({"hosts": {"fl.example.org": "10.0.0.5"}, "cpus": 1}, "relay") == []
    (problem,) = own_settings.problems({"gpus": "all"}, "console")
    assert problem == "unknown key gpus: expected one of hosts, connect_through, env_file, cpus, memory"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sandbox", "maybe"),
        ("egress", True),
        ("custom_code", True),
        ("allowed_apps", ["x"]),
        ("allowed_apps", "x"),
    ],
)
def test_a_wrong_decision_of_a_site_is_named(key: str, value: Any) -> None:
    (problem,) = own_settings.problems({key: value})
    assert problem.startswith(f"expected {key} to be")


def test_a_sandbox_is_off_as_people_write_it() -> None:
    services = yaml.safe_load(made("sandbox: off\n").stdout)["services"]
    for name in ("site-3", "doctor"):
        assert services[name]["environment"][own_policy.VARIABLE] == '{"sandbox": "off"}'


@pytest.mark.parametrize("text", ["{", "[]", '{"colour": "red"}', '{"sandbox": "none"}'])
def test_a_broken_decision_lets_nothing_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / settings.FILE).write_text("{}")
    monkeypatch.setenv(own_policy.VARIABLE, text)
    with pytest.raises(ValueError, match=own_policy.VARIABLE):
        settings.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "found invalid JSON"),
        ('{"a": [1]}', "expected node_config.a"),
        ('{"client-name": "x"}', "Leave client-name"),
    ],
)
def test_a_broken_variable_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    monkeypatch.setenv("FLOWERBED_NODE_CONFIG", text)
    with pytest.raises(ValueError, match=f"FLOWERBED_NODE_CONFIG: .*{expected}"):
        settings.read(tmp_path)


@pytest.mark.parametrize(
    ("kit", "variable", "shares"),
    [({}, None, True), ({"allow_log_streaming": False}, None, False), ({}, "false", False)],
)
def test_a_site_keeps_its_logs_by_the_kit_or_by_its_own_variable(
    monkeypatch: pytest.MonkeyPatch, kit: dict[str, Any], variable: str | None, shares: bool
) -> None:
    """FLARE's own reading of both (nvflare 2.9.0 `app_common/logging/constants.py`)."""
    monkeypatch.setattr(ConfigService, "_sections", {SystemConfigs.RESOURCES_CONF: kit})
    monkeypatch.setattr(ConfigService, "_var_values", {})
    monkeypatch.delenv(site_settings.SHARE_LOGS_VARIABLE, raising=False)
    if variable:
        monkeypatch.setenv(site_settings.SHARE_LOGS_VARIABLE, variable)
    assert is_log_streaming_allowed() is shares


# The site's own file


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(site_files, "ROOT", tmp_path)
    (tmp_path / "sites").mkdir()
    return tmp_path


SITE = {"name": "site-1", "type": "client"}

BAD_FILES = {
    "no YAML": ("a: ]", "sites/site-1.yml: line 1: this is not YAML"),
    "no keys": ("- a", "sites/site-1.yml: expected keys with values, found list"),
    "an unknown key": ("datas: /x", "sites/site-1.yml: unknown key datas: expected one of node_config"),
    "a wrong value": ("cpus: many", "sites/site-1.yml: expected cpus to be a number of cores"),
    "a proxy where nothing is reached": (
        "proxy: http://p:1",
        "site-1: proxy needs egress: any in project.yml",
    ),
    "a way through a proxy on this machine": (
        "connect_through: http://p:1",
        "site-1: connect_through is for another machine (elsewhere: true)",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_sites_own_file_has_one_clear_error(root: Path, case: str) -> None:
    text, expected = BAD_FILES[case]
    (root / "sites/site-1.yml").write_text(text)
    (problem,) = site_files.problems([SITE])
    assert expected in problem


def test_a_private_file_stops_only_provisioning(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = root / "sites/site-1.yml"
    file.write_text("cpus: 4\n")

    def closed(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", closed)
    monkeypatch.setattr(os, "access", lambda path, mode: path != file)
    assert not list(site_files.problems([SITE])) and site_files.settings(SITE) == {}
    (problem,) = site_files.missing([SITE])
    assert problem == "sites/site-1.yml is not readable for you. Its owner must provision."


def test_a_file_of_comments_says_nothing(root: Path) -> None:
    (root / "sites/site-1.yml").write_text("# cpus: 4\n")
    assert not list(site_files.problems([SITE])) and site_files.settings(SITE) == {}


@pytest.mark.parametrize("kind", ["client", "server"])
def test_each_line_of_the_template_counts_without_its_mark(root: Path, kind: str) -> None:
    text = site_files.TEMPLATE.format(name="site-1") + (site_files.OF_SITES if kind == "client" else "")
    lines = [line.removeprefix("# ") for line in text.splitlines() if re.match(r"# [a-z_]+: ", line)]
    assert len(lines) > 8
    for line in lines:
        (root / "sites/site-1.yml").write_text(line + "\n")
        assert not list(site_files.problems([{**SITE, "type": kind, "egress": "any"}])), line


def test_a_proxy_is_fine_with_a_way_out(root: Path) -> None:
    (root / "sites/site-1.yml").write_text("proxy: http://p:1\n")
    assert not list(site_files.problems([{**SITE, "egress": "any"}]))


def test_a_group_of_another_machine_needs_its_number(root: Path) -> None:
    away = {**SITE, "elsewhere": True, "data": {"folder": "/x", "group": "research"}}
    (problem,) = site_files.problems([away])
    assert "expected the number of group research, because the site is on another machine" in problem


# The same on a machine that has only the site's image


def made(text: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", own_settings.__name__, "site", "site-3", "fl.example.org"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=30)


def test_the_image_makes_a_compose_file_of_it() -> None:
    process = made("data: {folder: /srv/x, group: 4321}\nproxy: http://p.example:3128\n# cpus: 2\n")
    assert process.returncode == 0, process.stderr
    service = yaml.safe_load(process.stdout)["services"]["site-3"]
    assert [v["target"] for v in service["volumes"]] == ["/data"] and service["group_add"] == ["4321"]
    assert service["environment"]["no_proxy"] == "localhost,127.0.0.1,::1,fl.example.org"
    assert yaml.safe_load(made("# nothing\n").stdout) == {"services": {"site-3": {}}}


def test_what_leads_to_the_server_is_for_the_gate_of_a_site() -> None:
    text = (
        "connect_through: http://clinic@p.example:3128\nenv_file: p.env\nhosts: {fl.example.org: 192.0.2.7}\n"
        "environment: {HF_HUB_OFFLINE: 1}\ndata: /srv/x\n"
    )
    services = yaml.safe_load(made(text).stdout)["services"]
    through = {connect_through.VARIABLE: "http://clinic@p.example:3128"}
    assert services["gate"] == {
        "environment": through,
        "env_file": ["./p.env"],
        "extra_hosts": ["fl.example.org:192.0.2.7"],
    }
    # The doctor dials as the gate, and has all else of the site.
    offline = {"HF_HUB_OFFLINE": "1"}
    assert services["doctor"] == {**services["site-3"], "environment": {**through, **offline}}
    assert services["site-3"]["environment"] == offline and "networks" not in services["site-3"]
    # A password may be in it, and no other variable beside it.
    alone = yaml.safe_load(made("connect_through: http://clinic:geheim@p.example:3128\n").stdout)["services"]
    assert alone["site-3"] == {} and "geheim" in str(alone["gate"]) and "geheim" in str(alone["doctor"])


@pytest.mark.parametrize(
    ("by_project", "by_site", "may_go_out"),
    [("server", "", False), ("server", "any", True), ("any", "", True), ("any", "server", False)],
)
def test_a_sites_container_has_a_way_out_only_with_egress_any(
    by_project: str, by_site: str, may_go_out: bool
) -> None:
    content = {"egress": by_site} if by_site else {}
    text = own_settings.render("site-3", content, [], egress=by_project)
    assert ("outside: {}" in text, "dns: !override []" in text) == (may_go_out, may_go_out)
    assert "outside" not in own_settings.render("relay-1", {}, [], role="relay", egress="any")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: ]", "settings of site-3: this is not YAML"),
        ("- a", "expected keys with values, found list"),
        ("datas: /x", "unknown key datas: expected one of node_config"),
        ("cpus: many", "expected cpus to be a number of cores"),
        (
            "data: {folder: /x, group: research}",
            "the number of group research, which `getent",
        ),
    ],
)
def test_the_image_refuses_what_is_wrong(text: str, expected: str) -> None:
    process = made(text)
    assert process.returncode == 1 and process.stdout == "" and "Traceback" not in process.stderr
    assert expected in process.stderr


# Things on this machine.


def missing(root: Path, **given: Any) -> list[str]:
    assert not list(site_settings.problems(given))
    return list(here.missing(given, root))


def test_a_folder_has_to_be_there_and_to_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "file").touch()
    assert missing(tmp_path, data={"a": "there", "b": str(tmp_path / "there")}) == []
    (gone,) = missing(tmp_path, data="gone")
    assert f"{tmp_path}/gone does not exist. Make it" in gone
    (link,) = missing(tmp_path, data="link")
    assert "is a link to there. Name the folder itself" in link
    (file,) = missing(tmp_path, data="file")
    assert "is a file. Name the folder that it is in" in file


def test_a_closed_folder_needs_a_group(tmp_path: Path) -> None:
    folder = tmp_path / "patients"
    folder.mkdir()
    folder.chmod(0o750)
    number = folder.stat().st_gid
    (closed,) = missing(tmp_path, data="patients")
    assert "is not readable by the containers' user (10001, mode 0750, group" in closed
    assert "name its group ({folder: ..., group:" in closed
    (other,) = missing(tmp_path, data={"folder": "patients", "group": number + 1})
    assert "chgrp it to that group and chmod g+rx it" in other
    if os.geteuid() == 0:
        os.chown(folder, 0, 4321)
        assert missing(tmp_path, data={"folder": "patients", "group": 4321}) == []
        folder.chmod(0o700)
        assert len(missing(tmp_path, data={"folder": "patients", "group": 4321})) == 1
        os.chown(folder, here.USER, 0)
        assert missing(tmp_path, data="patients") == []


def test_a_group_has_to_be_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    found = missing(tmp_path, data={"folder": "there", "group": "no-such-group"})
    assert "expected group no-such-group on this machine, found none of that name" in found[0]


def test_a_file_of_variables_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "good.env").write_text("DB_PASSWORD='x$y'\n")
    (tmp_path / "bad.env").write_text("LD_PRELOAD=x\n")
    assert missing(tmp_path, env_file="good.env") == []
    (gone,) = missing(tmp_path, env_file=["good.env", "gone.env"])
    assert "gone.env does not exist. Make it (chmod 600" in gone
    (bad,) = missing(tmp_path, env_file="bad.env")
    assert "env_file bad.env: LD_PRELOAD is not for apps" in bad


def test_gpus_need_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(here, "DRIVERS", (tmp_path / "version",))
    (none,) = missing(tmp_path, gpus="all")
    assert "gpus: expected NVIDIA's driver on this machine, found none" in none
    (tmp_path / "version").touch()
    assert missing(tmp_path, gpus="all") == []
    monkeypatch.setattr(here, "DRIVERS", (tmp_path / "none",))
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2376")
    assert missing(tmp_path, gpus="all") == []
