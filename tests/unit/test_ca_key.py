"""The CA's key on another medium: only what signs asks for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from provisioning import ca_key, dotenv
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
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in stick.read_bytes()
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
