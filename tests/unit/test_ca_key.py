"""The CA's key on another medium: only what signs asks for it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from provisioning import ca_key, dotenv
from tests.unit import forked
from tests.unit.test_provisioning import PROD, STATE, again, done, edit, ended, plain, replace, verb, wide

__all__ = ["again", "ended", "plain", "wide"]  # Fixtures, for pytest to find.

MORE = "\n  - {name: site-9, type: client, org: flowerbed}\nbuilders:"


def move(root: Path, file: Path, passphrase: bytes | None = None) -> dict[str, str]:
    """Do as `ca export` does. Return the CA's file as it was."""
    before: dict[str, str] = json.loads((root / STATE).read_text())
    file.write_bytes(ca_key.encrypted(ca_key.load(before), passphrase))
    (root / STATE).write_text(json.dumps({key: v for key, v in before.items() if key != ca_key.KEY}))
    dotenv.write(root / ".env", {ca_key.FILE: str(file)})
    return before


def test_nothing_new_needs_no_key_and_something_new_names_the_file(again: Path, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    move(again, stick)
    stick.rename(tmp_path / "pocket")
    done(again)
    edit(again, replace("\nbuilders:", MORE))
    before = (again / STATE).read_bytes()
    code, _, said = verb(again)
    assert code == 1
    assert said.endswith(
        f"This needs the CA's key, to sign, and its file {stick} cannot be read: No such file or directory. "
        "Insert the medium that has it, or name another file with FLOWERBED_CA_KEY.\n"
    )
    assert (again / STATE).read_bytes() == before
    assert dotenv.read(again / ".env")["FLOWERBED_COMPOSE"].startswith(PROD)
    (tmp_path / "pocket").rename(stick)
    assert done(again)["added"] == ["site-9"]
    assert ca_key.KEY not in json.loads((again / STATE).read_text())


def test_a_relay_keeps_its_listeners_certificate_without_the_key(wide: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(wide, tmp_path / "repo"))
    stick = tmp_path / "stick"
    move(root, stick)
    stick.unlink()
    outcome = done(root)
    assert not outcome["reissued"] and "relay-1" in outcome["kept"]
    assert dotenv.read(root / ".env")["FLOWERBED_COMPOSE"].startswith(PROD), "nothing changed"


def test_a_passphrase_is_asked_for_only_where_something_is_signed(again: Path, tmp_path: Path) -> None:
    stick, words = tmp_path / "stick", tmp_path / "words"
    move(again, stick, b"open sesame")
    assert b"BEGIN FLOWERBED LOCKED KEY" in stick.read_bytes()
    done(again)
    edit(again, replace("\nbuilders:", MORE))
    code, _, said = verb(again)
    assert code == 1 and "is encrypted: expected a terminal" in said and ca_key.PASSPHRASE_FILE in said
    dotenv.write(again / ".env", {ca_key.PASSPHRASE_FILE: str(words)})
    code, _, said = verb(again)
    assert code == 1 and f"the passphrase's file {words} cannot be read" in said
    words.write_text("close sesame\n")
    code, _, said = verb(again)
    assert code == 1 and f"expected the CA's key in {stick}, as a PEM file, found another passphrase" in said
    words.write_text("open sesame\n")
    assert done(again)["added"] == ["site-9"]


def test_another_authoritys_key_signs_nothing(again: Path, wide: Path, tmp_path: Path) -> None:
    move(again, tmp_path / "stick")
    other = json.loads((wide / STATE).read_text())[ca_key.KEY]
    edit(again, replace("\nbuilders:", MORE))
    (tmp_path / "stick").write_text(other)
    code, _, said = verb(again)
    assert code == 1 and "has another CA's" in said
    (tmp_path / "stick").write_text("no key")
    code, _, said = verb(again)
    assert code == 1 and "found something else" in said
    dotenv.write(again / ".env", {ca_key.FILE: ""})
    code, _, said = verb(again)
    assert code == 1 and "the key is not on this machine" in said


def ca(root: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    process = forked.run(root, "scripts", "ca", *words, "--format", "json")
    assert "Traceback" not in process.stderr
    return process.returncode, json.loads(process.stdout.splitlines()[-1]), process.stderr


def test_the_key_is_moved_and_nothing_of_it_stays(again: Path, tmp_path: Path) -> None:
    before = json.loads((again / STATE).read_text())
    # The first lines hold the modulus, which certificates have too.
    secret = before[ca_key.KEY].splitlines()[6:-1]
    assert len(secret) > 4
    stick, words = tmp_path / "stick.key", tmp_path / "words"
    words.write_text("open sesame, please\n")
    code, outcome, said = ca(again, "export", str(stick), "--passphrase-file", str(words))
    assert code == 0 and outcome == {"file": str(stick), "encrypted": True}, said
    assert stick.stat().st_mode & 0o777 == 0o600
    for path in [stick, *again.rglob("*")]:
        if path.is_file():
            text = path.read_text(errors="replace")
            assert not any(line in text for line in secret), path
    dotenv.write(again / ".env", {ca_key.PASSPHRASE_FILE: str(words)})
    edit(again, replace("\nbuilders:", MORE))
    assert done(again)["added"] == ["site-9"]
    code, _, said = ca(again, "export", str(tmp_path / "other"), "--no-passphrase")
    assert code == 1 and f"The CA's key is elsewhere already: {stick}" in said
    code, outcome, said = ca(again, "restore")
    assert code == 0 and outcome == {"file": str(stick)}, said
    stick.unlink()
    key = ca_key.load(json.loads((again / STATE).read_text()))
    assert key.private_numbers() == ca_key.load(before).private_numbers()
    assert ca(again, "restore")[0] == 1


@pytest.mark.parametrize("case", ["there already", "no folder", "in the federation", "short", "nobody asked"])
def test_where_it_cannot_be_moved_it_stays(again: Path, tmp_path: Path, case: str) -> None:
    words = tmp_path / "words"
    words.write_text("open sesame" if case == "short" else "open sesame, please")
    (tmp_path / "there").write_text("mine")
    file, why = {
        "there already": (tmp_path / "there", "is there already: name another file"),
        "no folder": (tmp_path / "none/key", "cannot be written: No such file or directory"),
        "in the federation": (again / "workspace/flowerbed/ca.key", "is in the federation's own folder"),
        "short": (tmp_path / "key", "expected a passphrase of at least 12 characters, found 11"),
        "nobody asked": (tmp_path / "key", "expected a terminal to ask for a passphrase"),
    }[case]
    before = (again / STATE).read_bytes()
    code, outcome, _ = ca(
        again, "export", str(file), *(() if case == "nobody asked" else ("--passphrase-file", str(words)))
    )
    assert code in (1, 2) and why in outcome["error"]
    assert (again / STATE).read_bytes() == before
    assert (tmp_path / "there").read_text() == "mine" and not (tmp_path / "key").exists()


def test_renewing_asks_only_for_what_is_due(again: Path, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    move(again, stick)
    stick.rename(tmp_path / "pocket")

    def renew(*words: str) -> subprocess.CompletedProcess[str]:
        process = forked.run(again, "scripts", "renew", *words)
        assert "Traceback" not in process.stderr
        return process

    assert renew().returncode == 0
    before = (again / STATE).read_bytes()
    process = renew("--all")
    assert process.returncode == 1 and f"its file {stick} cannot be read" in process.stderr
    assert (again / STATE).read_bytes() == before
    (tmp_path / "pocket").rename(stick)
    assert renew("--all").returncode == 0
    assert (again / STATE).read_bytes() != before
