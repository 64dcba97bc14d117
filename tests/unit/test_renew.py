"""`flowerbed renew`, on kits that FLARE's provisioner has made."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from provisioning import ca_key, dotenv, renewal
from scripts import console, core, offers, provision
from scripts import renew as verb
from tests.unit import forked
from tests.unit.forked import ended
from tests.unit.test_provisioning import PROD, STATE, again, age, certificate, done, edit, plain, replace

__all__ = ["again", "ended", "plain"]  # Fixtures, for pytest to find.

NAMES = ["server", "site-1", "site-2", "admin@flowerbed.example", "lead@flowerbed.example"]


def renew(root: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """`flowerbed renew` as a program: exit code, JSON object, text for users."""
    process = forked.run(root, "scripts", "renew", "--format", "json", *arguments)
    assert process.stdout, process.stderr
    return process.returncode, json.loads(process.stdout.splitlines()[-1]), process.stderr


def known(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / STATE).read_text()))


def files(root: Path) -> dict[str, bytes]:
    """Everything below the workspace but the state."""
    workspace = root / "workspace/flowerbed"
    return {
        path.relative_to(workspace).as_posix(): path.read_bytes()
        for path in workspace.rglob("*")
        if path.is_file() and "state" not in path.parts
    }


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    assert before.keys() == after.keys(), "no file came or went"
    return {name for name in after if after[name] != before[name]}


def shown(root: Path, name: str) -> x509.Certificate:
    """The certificate that a participant's container reads."""
    (file,) = (root / "workspace/flowerbed/renewed" / name).glob("*.crt")
    return certificate(file)


def trusts(root: Path, name: str = "site-1") -> list[x509.Certificate]:
    file = root / "workspace/flowerbed/renewed" / name / "rootCA.pem"
    return x509.load_pem_x509_certificates(file.read_bytes())


def test_the_new_cas_key_does_not_stay_behind_without_a_word(again: Path, tmp_path: Path) -> None:
    dotenv.write(again / ".env", {ca_key.FILE: str(tmp_path / "old")})
    code, _, text = renew(again, "--new-ca", "--force")
    assert code == 0 and "The new CA's key is on this machine" in text
    words = ("ca", "export", str(tmp_path / "new"), "--no-passphrase")
    process = forked.run(again, "scripts", *words)
    assert process.returncode == 1 and "the new CA's key would stay here" in process.stderr
    assert not (tmp_path / "new").exists()
    assert renew(again, "--new-ca", "--force")[0] == 0
    assert forked.run(again, "scripts", *words).returncode == 0
    assert not {ca_key.KEY, renewal.NEXT_KEY} & known(again).keys()


def test_nothing_is_due_in_a_new_federation(again: Path) -> None:
    before = files(again)
    code, outcome, text = renew(again)
    assert (code, outcome["renewed"], outcome["kept"]) == (0, [], NAMES)
    assert changed(before, files(again)) == set()
    assert "Not due: server" in text


def test_one_that_is_due_is_renewed_for_the_same_key_and_nothing_else_changes(again: Path) -> None:
    age(again, "site-1", 10)
    before, old = files(again), x509.load_pem_x509_certificate(known(again)["site-1"]["cert"].encode())
    code, outcome, _ = renew(again)
    assert (code, outcome["renewed"]) == (0, ["site-1"])
    kits = {f"{where}/client.crt" for where in ("prod_00/site-1/startup", "renewed/site-1")}
    assert changed(before, files(again)) == kits
    new = shown(again, "site-1")
    assert new.public_key() == old.public_key() and new.subject == old.subject
    assert new.not_valid_after_utc > old.not_valid_after_utc + datetime.timedelta(days=300)
    # The provisioner is content with it: no new kits, no new certificate.
    now = files(again)
    outcome = done(again)
    assert outcome["reissued"] == [] and outcome["compose"] == f"{PROD}/compose.yaml"
    assert changed(now, files(again)) == set()


def test_all_are_renewed_for_some_minutes(again: Path) -> None:
    before = {name: shown(again, name) for name in NAMES}
    code, outcome, text = renew(again, "--all", "--days", "0.01")
    assert (code, outcome["renewed"]) == (0, NAMES), text
    for name in NAMES:
        new = shown(again, name)
        assert new.serial_number != before[name].serial_number
        assert new.public_key() == before[name].public_key()
        assert new.not_valid_after_utc < datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=20)


def test_it_says_whose_console_elsewhere_needs_a_join_file(again: Path) -> None:
    name = "name: lead@flowerbed.example\n"
    edit(again, replace(name, f"{name}    elsewhere: true\n"))
    _, _, text = renew(again, "--all")
    assert [line for line in text.splitlines() if "join file" in line] == [
        "lead@flowerbed.example gets it on the other machine with a new join file: "
        "./flowerbed site add lead@flowerbed.example"
    ]
    assert "join file" not in renew(again)[2]


def test_project_yml_sets_the_life(again: Path) -> None:
    edit(again, replace("root_valid_days: 3650", "root_valid_days: 3650\n      valid_days: 30"))
    assert renew(again, "--all")[0] == 0
    new = shown(again, "server")
    assert new.not_valid_after_utc - new.not_valid_before_utc == datetime.timedelta(days=30)


@pytest.mark.parametrize("more", ["", "revoked: [site-2]\n"])
def test_one_that_has_left_project_yml_is_not_renewed(again: Path, more: str) -> None:
    """Its certificate stays in the CA's file, and may still be valid."""
    site = "  - name: site-2\n    type: client\n    org: flowerbed\n"
    edit(again, lambda text: text.replace(site, "") + more)
    before = known(again)["site-2"]["cert"]
    assert "site-2" not in renew(again, "--all")[1]["renewed"]
    assert known(again)["site-2"]["cert"] == before


def test_a_cas_key_that_is_elsewhere_is_asked_for_only_if_something_is_due(again: Path) -> None:
    content = known(again)
    key = content.pop("root_pri_key")
    (again / STATE).write_text(json.dumps(content))
    assert renew(again)[0] == 0
    before = files(again)
    code, _, text = renew(again, "--all")
    assert code == 1 and "needs the CA's key" in text and "Traceback" not in text
    assert changed(before, files(again)) == set()
    (again / "ca.key").write_text(key)
    with (again / ".env").open("a") as settings:
        settings.write(f"FLOWERBED_CA_KEY={again / 'ca.key'}\n")
    assert renew(again, "--all")[1]["renewed"] == NAMES
    assert "root_pri_key" not in known(again), "the key stays where it is"


def test_a_site_with_its_own_key_is_renewed_without_it(again: Path) -> None:
    content, before = known(again), shown(again, "site-2")
    del content["site-2"]["pri_key"]
    (again / STATE).write_text(json.dumps(content))
    assert renew(again, "--all")[1]["renewed"] == NAMES
    assert shown(again, "site-2").public_key() == before.public_key()
    assert shown(again, "site-2") != before


def test_without_certificates_it_says_what_to_do(again: Path) -> None:
    (again / STATE).unlink()
    code, outcome, text = renew(again)
    assert code == 1 and "First: ./flowerbed provision" in text, outcome
    (again / STATE).write_text("{")
    code, _, text = renew(again)
    assert code == 1 and "cannot be read" in text and "Traceback" not in text


def test_the_ca_is_replaced_in_three_steps_for_the_same_keys(again: Path) -> None:
    first, keys = trusts(again), {name: shown(again, name).public_key() for name in NAMES}
    old_key = known(again)["root_pri_key"]

    code, outcome, text = renew(again, "--new-ca")
    assert (code, outcome["ca"], outcome["renewed"]) == (0, "both trusted", []), text
    both = trusts(again)
    assert both[:1] == first and len(both) == 2
    assert both[1].subject.rfc4514_string() == "CN=flowerbed 2"
    assert both[1].public_key().key_size == first[0].public_key().key_size  # type: ignore[union-attr]
    assert "Step 1 of 3" in text

    code, outcome, text = renew(again, "--new-ca")
    assert (code, outcome["ca"], outcome["renewed"]) == (0, "reissued", NAMES), text
    assert trusts(again) == [both[1], both[0]], "the one that signs comes first"
    for name in NAMES:
        shown(again, name).verify_directly_issued_by(both[1])
        assert shown(again, name).public_key() == keys[name]
    assert old_key not in (again / STATE).read_text(), "the old CA's key is gone"
    # In between, provisioning goes on: a new site trusts both, and nobody else's kit changes.
    before = files(again)
    edit(again, replace("\nbuilders:", "\n  - {name: site-3, type: client, org: flowerbed}\nbuilders:"))
    assert done(again)["reissued"] == []
    assert trusts(again, "site-3") == trusts(again)
    after = files(again)
    assert {name for name in before if after[name] != before[name]} <= {"prod_00/compose.yaml"}

    code, outcome, text = renew(again, "--new-ca")
    assert (code, outcome["ca"]) == (0, "one")
    assert trusts(again) == [both[1]] and trusts(again, "site-3") == [both[1]]
    assert renew(again, "--new-ca")[1]["ca"] == "both trusted"
    assert trusts(again)[1].subject.rfc4514_string() == "CN=flowerbed 3"


@pytest.fixture
def here(again: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The copy, with site-2 elsewhere, as the folder of this process's verbs."""
    edit(again, replace("name: site-2\n", "name: site-2\n    elsewhere: true\n"))
    monkeypatch.setattr(core, "ROOT", again)
    monkeypatch.setattr(provision, "DEFAULT_PROJECT", again / "project.yml")
    monkeypatch.setattr(offers, "FOLDER", again / ".flowerbed" / "offers")
    return again


def reports(monkeypatch: pytest.MonkeyPatch, certificate: dict[str, Any] | None) -> None:
    """Let the server have this report of site-2, or let it be down."""

    def ask(*_: Any) -> dict[str, Any]:
        if certificate is None:
            raise core.Failure("The federation is down.")
        return {"reports": [{"name": "site-2", "report": {"certificate": certificate}}]}

    monkeypatch.setattr(console, "ask", ask)


def test_each_step_waits_for_the_sites_elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verb.run(new_ca=True)["ca"] == "both trusted"
    first, second = (root.fingerprint(hashes.SHA256()).hex() for root in trusts(here))
    before = files(here)
    for certificate_ in (None, {}, {"trusts": [first]}):
        reports(monkeypatch, certificate_)
        with pytest.raises(core.Failure, match="--force") as refused:
            verb.run(new_ca=True)
        assert refused.value.facts == {"waits_for": ["site-2"]}
    assert changed(before, files(here)) == set()
    reports(monkeypatch, {"trusts": [first, second]})
    assert verb.run(new_ca=True)["ca"] == "reissued"
    reports(monkeypatch, {"trusts": [second, first], "serial": "1"})
    with pytest.raises(core.Failure, match="site-2"):
        verb.run(new_ca=True)
    reports(monkeypatch, {"serial": f"{shown(here, 'site-2').serial_number:x}"})
    assert verb.run(new_ca=True)["ca"] == "one"


def test_nobody_waits_for_a_console_elsewhere_which_never_reports(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "name: lead@flowerbed.example\n"
    edit(here, replace(name, f"{name}    elsewhere: true\n"))
    verb.run(new_ca=True)
    first, second = (root.fingerprint(hashes.SHA256()).hex() for root in trusts(here))
    reports(monkeypatch, {"trusts": [first]})
    with pytest.raises(core.Failure) as refused:
        verb.run(new_ca=True)
    assert refused.value.facts == {"waits_for": ["site-2"]}
    reports(monkeypatch, {"trusts": [first, second]})
    assert verb.run(new_ca=True)["ca"] == "reissued"
    assert "./flowerbed site add lead@flowerbed.example" in capsys.readouterr().err


def test_force_goes_on_without_them(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports(monkeypatch, None)
    steps = [verb.run(new_ca=True, force=True)["ca"] for _ in range(3)]
    assert steps == ["both trusted", "reissued", "one"]


def test_environments_are_signed_again_with_the_new_certificates(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that has dropped the old CA takes nothing that was signed under it."""
    signed: list[object] = []
    monkeypatch.setattr(offers, "update", signed.append)
    verb.run(every=True)
    assert signed == [()], "only those that are offered already"
