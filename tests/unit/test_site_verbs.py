"""`site add`, `site list` and `site remove`: they edit project.yml as a person would, and write only what
works. FLARE provisions for real. No engine."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.common import join_file, removed_keys
from provisioning.places import TEMPLATE
from scripts import core
from scripts.site import project_file
from tests.unit import forked
from tests.unit.test_provisioning import checkout, done, edit, ended, replace

__all__ = ["ended"]  # A fixture, for pytest to find.

TEXT = (TEMPLATE / "project.yml").read_text()
SITE = {"name": "hospital-c", "type": "client", "org": "hospital", "elsewhere": True}


def test_a_participant_comes_after_all_others_and_every_comment_stays() -> None:
    text = project_file.with_participant(TEXT, SITE)
    lines, before = text.splitlines(), TEXT.splitlines()
    added = [line for line in lines if line not in before]
    assert added == ["  - name: hospital-c", "    org: hospital", "    elsewhere: true"]
    at = lines.index("  - name: hospital-c")
    assert lines[at - 1] == "    role: lead" and lines[at + 4 : at + 5] == [""]
    assert lines[:at] + lines[at + 4 :] == before
    assert project_file.without_participant(text, "hospital-c") == TEXT


def test_a_participant_in_the_middle_goes_with_its_lines_only() -> None:
    text = project_file.without_participant(TEXT, "site-1")
    assert [line for line in TEXT.splitlines() if line not in text.splitlines()] == ["  - name: site-1"]
    assert len(TEXT.splitlines()) - len(text.splitlines()) == 3


@pytest.mark.parametrize("before", ["", "revoked: [old]\n", "revoked:\n  - old  # in May\n"])
def test_a_name_is_revoked_once(before: str) -> None:
    start = TEXT.replace("participants:", f"{before}participants:", 1)
    text = project_file.with_revoked(start, "site-1")
    assert yaml.safe_load(text)["revoked"] == (["old", "site-1"] if before else ["site-1"])
    assert project_file.with_revoked(text, "site-1") == text
    comments = [line for line in TEXT.splitlines() if "#" in line]
    assert [line for line in text.splitlines() if line in comments] == comments


def test_a_file_in_another_form_is_left_to_its_owner() -> None:
    flow = yaml.safe_dump(yaml.safe_load(TEXT), default_flow_style=True, width=10_000)
    with pytest.raises(core.UsageError, match="has a form that this verb cannot edit"):
        project_file.with_participant(flow, SITE)


class Federation:
    """A folder with a provisioned federation, and an engine that has its runtime."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.engine = root / "bin/docker"
        self.engine.parent.mkdir()
        self.answer('[{"Id": "sha256:abc", "Size": 1}]')

    def answer(self, said: str, code: int = 0) -> None:
        cases = f"image*) echo '{said}'; exit {code} ;; tag*) exit ;; save*) echo archive; exit ;;"
        self.engine.write_text(f"#!/bin/sh\ncase $* in {cases} esac\nexit 1\n")
        self.engine.chmod(0o755)

    def verb(self, *words: str) -> tuple[int, dict[str, Any], str]:
        path = f"{self.engine.parent}:/usr/bin:/bin"
        process = forked.run(self.root, "scripts", *words, "--format", "json", PATH=path)
        lines = process.stdout.strip().splitlines()
        return process.returncode, json.loads(lines[-1]) if lines else {}, process.stderr

    @property
    def project(self) -> str:
        return (self.root / "project.yml").read_text()

    def files(self) -> set[str]:
        return {path.name for path in self.root.rglob("*") if path.name.endswith((".join", ".new"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = checkout(tmp_path_factory.mktemp("made") / "repo")
    edit(root, replace("    fed_learn_port: 8002\n", "    default_host: fl.example.org\n"))
    done(root)
    return root


@pytest.fixture
def federation(made: Path, tmp_path: Path) -> Federation:
    return Federation(Path(shutil.copytree(made, tmp_path / "repo")))


def kits(root: Path) -> dict[str, bytes]:
    prod = sorted((root / "workspace/flowerbed").glob("prod_*"))[-1]
    found = (path for path in prod.rglob("*") if path.is_file())
    return {path.relative_to(prod).as_posix(): path.read_bytes() for path in found}


def test_a_site_is_added_and_nothing_else_changes(federation: Federation) -> None:
    before, state = kits(federation.root), federation.project
    words = ("--org", "hospital", "--set", "sandbox=required", "--set", "node_config={ward: 3}")
    code, outcome, said = federation.verb("site", "add", "hospital-c", *words)
    assert code == 0, said
    after = kits(federation.root)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {
        "hospital-c",
        "elsewhere-hospital-c.yaml",
    }
    entry = yaml.safe_load(federation.project)["participants"][-1]
    assert entry == SITE | {"sandbox": "required", "node_config": {"ward": 3}}
    file = federation.root / "hospital-c.join"
    text = file.read_text()
    assert outcome["bytes"] == len(text) < 100_000 and file.stat().st_mode & 0o777 == 0o600
    assert join_file.check(text) == outcome["fingerprint"] and outcome["fingerprint"] in said
    assert hashlib.sha256(file.read_bytes()).hexdigest() == outcome["sha256"]
    assert f"sha256sum hospital-c.join   {outcome['sha256']}" in said
    (archive,) = (federation.root / ".flowerbed/offers/runtime").iterdir()
    assert outcome["runtime_by"] == "server" and "RUNTIME_OFFERED='1'" in text
    assert f"RUNTIME_SUM='{hashlib.sha256(archive.read_bytes()).hexdigest()}'" in text
    # A stick that was made for another site has the same archive.
    code, again, _ = federation.verb(
        "site", "add", "hospital-c", "--no-from-server", "--output", "second.join"
    )
    second = (federation.root / "second.join").read_text()
    assert again["runtime_by"] is None and "RUNTIME_OFFERED=''" in second
    assert re.findall("RUNTIME_SUM='.*'", second) == re.findall("RUNTIME_SUM='.*'", text)
    assert (outcome["server"], outcome["runtime"]) == ("fl.example.org:8002", "sha256:abc")
    assert f"JOIN='{outcome['id']}'" in text and after["hospital-c/startup/client.key"].decode() in text
    known = json.loads((federation.root / "workspace/flowerbed/policy/joins.json").read_text())
    assert [item["id"] for item in known["hospital-c"]] == [outcome["id"], again["id"]]
    assert "FLOWERBED_BIND=0.0.0.0" in said, "the port is published for this machine only"

    code, again, said = federation.verb("site", "add", "hospital-c")
    assert code == 0, said
    assert kits(federation.root) == after and again["id"] != outcome["id"] and not again["added"]
    assert federation.project.count("hospital-c") == 1 and state != federation.project

    code, listed, said = federation.verb("site", "list")
    assert [site["join_file_until"] for site in listed["sites"]] == [None, None, outcome["last_day"]]
    assert listed["fingerprint"] == outcome["fingerprint"] and outcome["fingerprint"] in said


WRONG = {
    "no name": ((), "Missing argument 'NAME'"),
    "a name that Compose forbids": (("Hospital_C",), "expected a host name in lower-case letters"),
    "a site of this machine": (("site-1",), "site-1 runs on this machine, by project.yml"),
    "the server": (("server",), "server runs on this machine"),
    "an unknown key": (("c", "--set", "colour=red"), "expected KEY=VALUE with one of allowed_apps"),
    "no value": (("c", "--set", "sandbox"), "expected KEY=VALUE with one of allowed_apps"),
    "a wrong value": (("c", "--set", "sandbox=maybe"), "found 'maybe'"),
    "a value that is no YAML": (("c", "--set", "data={a"), "--set data: expected a value in YAML"),
    "an unknown relay": (("c", "--connect-to", "relay-9"), "found none of the name relay-9"),
    "a person without a role": (("jane@lab.example",), "expected --role with one of project_admin"),
    "half a relay": (("relay-1", "--relay", "8003"), "expected --relay PORT and --address HOST"),
    "a file that is no join file": (("c", "--output", "project.yml"), "exists and is not a join file"),
    "a folder that is not there": (("c", "--output", "no/c.join"), "expected a file's path"),
    "no days": (("c", "--days", "0"), "--days"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_words_change_nothing(federation: Federation, what: str) -> None:
    words, expected = WRONG[what]
    before, project = kits(federation.root), federation.project
    code, outcome, _ = federation.verb("site", "add", *words)
    assert code == 2 and expected in outcome["error"], outcome
    assert (kits(federation.root), federation.project, federation.files()) == (before, project, set())


@pytest.mark.parametrize("words", [("--no-from-server",), ("--own-key",), ("--passphrase-file", "words")])
def test_a_file_that_cannot_bring_the_runtime_says_so(federation: Federation, words: tuple[str, ...]) -> None:
    (federation.root / "words").write_text("four words and more\n")
    code, outcome, said = federation.verb("site", "add", "hospital-c", *words)
    assert code == 0 and outcome["runtime_by"] is None, said
    assert "The file brings no runtime image" in said
    # No way is named that would be refused.
    assert ("--from-server" in said) == (words == ("--no-from-server",))
    assert not list((federation.root / ".flowerbed").glob("offers/runtime/*"))


def test_with_grpc_the_server_does_not_bring_the_runtime(federation: Federation) -> None:
    edit(federation.root, replace("scheme: tcp", "scheme: grpc"))
    code, outcome, said = federation.verb("site", "add", "hospital-c")
    assert code == 0 and outcome["runtime_by"] is None and "--with-images FOLDER" in said, said


def test_a_server_that_nobody_can_dial_is_named_before_anything_is_written(federation: Federation) -> None:
    edit(federation.root, replace("    default_host: fl.example.org\n", ""))
    project = federation.project
    code, outcome, _ = federation.verb("site", "add", "hospital-c")
    assert federation.project == project and not federation.files()
    assert code == 2 and "Write default_host: NAME into the part of server" in outcome["error"]
    assert "could not find the server: project.yml" in outcome["error"]


def test_without_a_runtime_nothing_is_written(federation: Federation) -> None:
    federation.answer("", code=1)
    project = federation.project
    code, outcome, _ = federation.verb("site", "add", "hospital-c")
    assert code == 1 and "no runtime image flowerbed-runtime:dev yet" in outcome["error"]
    assert federation.project == project and not federation.files()


def test_when_no_kit_can_be_made_project_yml_stays(federation: Federation) -> None:
    project = federation.project
    (federation.root / "workspace/flowerbed/state/cert.json").write_text("{")
    code, outcome, _ = federation.verb("site", "add", "hospital-c")
    assert code == 1 and "cert.json" in outcome["error"], outcome
    assert federation.project == project and not federation.files()


def test_a_name_that_is_revoked_cannot_be_added(federation: Federation) -> None:
    code, outcome, said = federation.verb("site", "remove", "site-2")
    assert code == 0, said
    assert outcome["removed"] == "site-2" and not any("prod_" in sentence for sentence in outcome["left"])
    assert not list((federation.root / "workspace/flowerbed").glob("prod_*/site-2")), "its kit has its key"
    revoked = json.loads((federation.root / "workspace/flowerbed/policy/revoked.json").read_text())
    names = [name for name in revoked["revoked"] if not name.startswith("sha256:")]
    assert names == ["site-2"] == yaml.safe_load(federation.project)["revoked"]
    project = federation.project
    code, outcome, _ = federation.verb("site", "add", "site-2")
    assert code == 2 and "site-2" in outcome["error"] and federation.project == project


def entry(pem: str) -> str:
    return removed_keys.of_certificate(pem.encode())


def test_a_removed_key_stays_out_when_its_name_comes_back(federation: Federation) -> None:
    workspace = federation.root / "workspace/flowerbed"
    state, policy = workspace / "state/cert.json", workspace / "policy/revoked.json"
    assert federation.verb("site", "add", "hospital-c")[0] == 0
    old = json.loads(state.read_text())["hospital-c"]
    code, outcome, said = federation.verb("site", "remove", "hospital-c")
    assert code == 0 and "gets a new key" in outcome["left"][-1], said
    known = json.loads(state.read_text())
    assert "hospital-c" not in known and known["/removed"] == [entry(old["cert"])]
    # No file of the centre has the key, except for the join file, which the verb names.
    line = old["pri_key"].splitlines()[5]
    with_key = [f.name for f in federation.root.rglob("*") if f.is_file() and line in f.read_text("latin-1")]
    assert with_key == ["hospital-c.join"] and "hospital-c.join" in outcome["left"][1]
    assert set(json.loads(policy.read_text())["revoked"]) == {"hospital-c", entry(old["cert"])}
    # The name comes back.
    content = yaml.safe_load(federation.project)
    assert content.pop("revoked") == ["hospital-c"]
    (federation.root / "project.yml").write_text(yaml.safe_dump(content))
    code, _, said = federation.verb("site", "add", "hospital-c", "--org", "hospital")
    assert code == 0 and "sha256:" not in said, said
    new = json.loads(state.read_text())["hospital-c"]
    assert entry(new["cert"]) != entry(old["cert"]) and new["pri_key"] != old["pri_key"]
    assert json.loads(policy.read_text())["revoked"] == [entry(old["cert"])]
    # Nor is it forgotten with either file.
    policy.unlink()
    assert done(federation.root)
    assert json.loads(policy.read_text())["revoked"] == [entry(old["cert"])]
    content = json.loads(state.read_text())
    del content["/removed"]
    state.write_text(json.dumps(content))
    assert done(federation.root)
    assert json.loads(policy.read_text())["revoked"] == [entry(old["cert"])]


def test_a_site_elsewhere_is_removed_with_a_word_on_its_folder(federation: Federation) -> None:
    assert federation.verb("site", "add", "hospital-c")[0] == 0
    code, outcome, said = federation.verb("site", "remove", "hospital-c")
    assert code == 0 and outcome["elsewhere"] and "./site leave" in outcome["left"][0], said
    assert "hospital-c" not in [item["name"] for item in yaml.safe_load(federation.project)["participants"]]


@pytest.mark.parametrize("name", ["site-9", "admin@flowerbed.example", "server"])
def test_who_cannot_be_removed_stays(federation: Federation, name: str) -> None:
    project = federation.project
    code, outcome, _ = federation.verb("site", "remove", name)
    assert code == 2 and outcome["error"] and federation.project == project


def test_a_relay_and_a_person_get_join_files_too(federation: Federation) -> None:
    words = ("--relay", "8003", "--address", "relay.example.org")
    code, relay, said = federation.verb("site", "add", "relay-1", *words)
    assert code == 0, said
    text = (federation.root / "relay-1.join").read_text()
    assert "ROLE='relay'" in text and "${FLOWERBED_PORT:-8003}:8003" in text
    assert "# hosts: " in text and "# gpus: " not in text
    code, behind, said = federation.verb("site", "add", "hospital-c", "--connect-to", "relay-1")
    assert code == 0 and behind["server"].startswith("relay.example.org:8003"), (said, behind)
    code, person, said = federation.verb("site", "add", "jane@lab.example", "--role", "lead")
    assert code == 0, said
    text = (federation.root / person["file"]).read_text()
    assert "ROLE='console'" in text and "SITE='jane'" in text and "compose/flwr.yaml" not in text
    assert person["server"] == relay["server"] == "fl.example.org:8002"
    before = federation.project
    code, refused, _ = federation.verb("site", "remove", "relay-1")
    assert code == 2 and "hospital-c would have nobody to connect to" in refused["error"]
    assert federation.project == before
    # By the name of the console, which it knows.
    code, removed, said = federation.verb("site", "remove", "jane")
    assert code == 0 and removed["removed"] == "jane@lab.example", said


def test_site_alone_names_its_verbs(federation: Federation) -> None:
    code, outcome, _ = federation.verb("site")
    assert code == 2 and "site add, site approve, site list, site remove" in outcome["error"]
