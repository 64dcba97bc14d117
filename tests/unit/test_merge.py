"""`./site update FILE` keeps what is newer at the site than in the join file."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.common import join_file, trust
from bridge.keeper.merge import OlderFile, merge
from provisioning import join, renewal, signing
from tests.unit.test_renewals import KINDS, Elsewhere, authority_of, key_of, signed, site

__all__ = ["site"]


class JoinFile:
    """The certificates of site-1 in a join file that the centre makes now."""

    def __init__(self, site: Elsewhere, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "client.crt").write_text(site.known["site-1"]["cert"])
        (folder / "rootCA.pem").write_text(renewal.trusted(site.known))
        if statement := site.known.get(renewal.TRUST):
            (folder / trust.FILE).write_text(statement)


def later(monkeypatch: pytest.MonkeyPatch, minutes: int) -> None:
    """Let the centre sign at another time."""
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    monkeypatch.setattr(signing, "now", lambda: then)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def replace(site: Elsewhere, *steps: Callable[[dict[str, object]], None]) -> None:
    """Take steps of a change of the CA."""
    for step in steps:
        step(site.known)
        renewal.renew(site.known, KINDS, days=1)
    site.hand_out()


STEPS = (renewal.begin, renewal.switch, renewal.finish)


def test_a_newer_file_brings_all(site: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, 1)
    replace(site, *STEPS)
    file = JoinFile(site, tmp_path / "file")
    merge(file.folder, site.renewed)
    assert contents(site.renewed) == contents(file.folder) and trust.FILE in contents(file.folder)


def test_a_renewed_certificate_stays(
    site: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = JoinFile(site, tmp_path / "file")
    later(monkeypatch, 1)
    site.renew()
    monkeypatch.undo()
    (site.renewed / "client.crt").write_text(site.known["site-1"]["cert"])
    before = contents(site.renewed)
    merge(file.folder, site.renewed)
    assert contents(site.renewed) == before


@pytest.mark.parametrize("known", [0, 1, 2])
def test_a_file_from_before_a_change_of_the_ca_undoes_nothing(
    site: Elsewhere, tmp_path: Path, known: int
) -> None:
    """The file is from the first or a later step, and the site has taken all of them."""
    for step in STEPS[:known]:
        replace(site, step)
        assert site.arrives()
    file = JoinFile(site, tmp_path / "file")
    for step in STEPS[known:]:
        replace(site, step)
        assert site.arrives()
    before = contents(site.renewed)
    assert site.trusts() == ["flowerbed 2"] and trust.FILE in before
    merge(file.folder, site.renewed)
    assert contents(site.renewed) == before
    # The next change arrives as ever.
    replace(site, renewal.begin)
    assert site.arrives() and site.trusts() == ["flowerbed 2", "flowerbed 3"]


def test_a_file_of_a_new_federation_brings_its_ca(
    site: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its administrator has named the fingerprint. The old list of CAs must not stay beside the new CA."""
    replace(site, renewal.begin)
    assert site.arrives()
    later(monkeypatch, 1)
    ca = signing.new_authority(signing.load(site.known[renewal.ROOT]).subject, 1)
    site.known = {renewal.ROOT: signing.dump(ca.certificate), renewal.ROOT_KEY: signing.dump_key(ca.key)}
    site.known["site-1"] = {"cert": signing.dump(signed(ca, "site-1", key_of("another")))}
    file = JoinFile(site, tmp_path / "file")
    merge(file.folder, site.renewed)
    assert contents(site.renewed) == contents(file.folder)


def test_a_statement_about_other_cas_is_not_kept(site: Elsewhere, tmp_path: Path) -> None:
    replace(site, renewal.begin)
    file = JoinFile(site, tmp_path / "file")
    (file.folder / "rootCA.pem").write_text(site.known[renewal.ROOT])
    merge(file.folder, site.renewed)
    assert trust.FILE not in contents(site.renewed)


def test_an_older_file_with_another_key_is_refused(
    site: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = JoinFile(site, tmp_path / "file")
    later(monkeypatch, 1)
    new = signed(renewal.authority(site.known), "site-1", key_of("another"))
    (site.renewed / "client.crt").write_text(signing.dump(new))
    before = contents(site.renewed)
    with pytest.raises(OlderFile, match="has another key than the site, and its certificate is older"):
        merge(file.folder, site.renewed)
    assert contents(site.renewed) == before


def test_a_broken_certificate_at_the_site_is_replaced(site: Elsewhere, tmp_path: Path) -> None:
    file = JoinFile(site, tmp_path / "file")
    for name in contents(file.folder):
        (site.renewed / name).write_text("broken")
    merge(file.folder, site.renewed)
    assert contents(site.renewed) == contents(file.folder)


def test_a_site_trusts_the_cas_of_its_list_only(site: Elsewhere) -> None:
    replace(site, renewal.begin)
    first, second = (signing.load(site.known[name]) for name in (renewal.ROOT, renewal.NEXT))
    both = renewal.trusted(site.known).encode()
    stranger = join_file.fingerprint(authority_of("a stranger").certificate)
    assert [join_file.trusts(join_file.fingerprint(ca), both) for ca in (first, second)] == [True, True]
    assert not join_file.trusts(stranger, both) and not join_file.trusts(stranger, b"broken")


def update(root: Path) -> None:
    """Run what a join file runs in a container, on folders of the test. The certificates are left out."""
    (script,) = re.findall(r"-ec '\n(.*?)' sh \"\$@\"", (join.FOLDER / "join.sh").read_text(), re.DOTALL)
    script = script.replace("/fresh", f"{root}/fresh").replace("/folder", f"{root}/folder")
    (root / "bin").mkdir()
    (root / "bin/python3").symlink_to("/bin/true")
    path = f"{root}/bin:{os.environ['PATH']}"
    subprocess.run(
        ["sh", "-ec", script, "sh", "kit", "compose", "site", ".env"], env={"PATH": path}, check=True
    )


@pytest.mark.parametrize("cut_off", [False, True])
def test_a_key_that_the_site_has_made_stays(tmp_path: Path, cut_off: bool) -> None:
    """Also if an earlier update was cut off between its two moves."""
    for folder, text in (("fresh", "new"), ("folder", "old")):
        for name in ("kit/startup/fed_client.json", "compose/site.yaml", "site", ".env"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(text)
    site = tmp_path / "folder"
    (site / "kit/startup/client.key").write_text("the key")
    if cut_off:
        (site / "kit").rename(site / ".old")
        (site / ".new").mkdir()
    update(tmp_path)
    found = {path.relative_to(site).as_posix(): path for path in site.rglob("*") if path.is_file()}
    assert {name: path.read_text() for name, path in found.items()} == {
        "kit/startup/client.key": "the key",
        "kit/startup/fed_client.json": "new",
        "compose/site.yaml": "new",
        "site": "new",
        ".env": "new",
    }
    assert not (site / ".old").exists() and not (site / ".new").exists()
