"""Environments on their way from the server to a site: what is fetched, when, and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nvflare.lighter.impl.cert import CertBuilder

from bridge.common import offers
from bridge.common.site_environments import VARIABLE, Approvals, News, Wishes
from bridge.flare import revocation, server_offers
from bridge.flare.server_offers import ServerOffers
from bridge.flare.site_environments import Lost, SiteEnvironments, state
from tests.unit.test_offers import NAME, Signer, Stick, admin, ca, person

__all__ = ["admin", "ca"]

OTHER = "ba9876543210"


class Line:
    """The way to the server, which may break."""

    def __init__(self, server: ServerOffers) -> None:
        self.server = server
        self.asked: list[tuple[str, int]] = []
        self.after: Callable[[int], None] = lambda number: None
        self.breaks_after = 1_000_000

    def ask(self, topic: str, body: bytes, within: float = 0) -> bytes | None:
        assert topic == offers.MESSAGE
        said = json.loads(body)
        if len(self.asked) >= self.breaks_after:
            return None
        self.asked.append((said["path"], said["offset"]))
        piece = self.server.piece("site-1", body)
        self.after(len(self.asked))
        return piece


class Site:
    """A site with a spool, and the server that it hears from."""

    def __init__(self, folder: Path, stick: Stick) -> None:
        self.spool, self.root = folder / "spool", folder / "environments"
        self.spool.mkdir(parents=True)
        self.server = ServerOffers(stick.folder)
        self.line = Line(self.server)
        self.keeper = stick.installer(self.root)
        self.keeper.spool = self.spool
        self.here = SiteEnvironments(self.spool, self.root, stick.folder / "rootCA.pem")

    def hear(self, **other: str) -> None:
        """Take a reply to a report, and fetch."""
        told = self.server.answer("site-1", {}) or {offers.OFFERED: {}}
        self.here._offered = {**told[offers.OFFERED], **other}
        self.here.fetch_all(self.line)  # type: ignore[arg-type]

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.spool / "environments").iterdir())


@pytest.fixture
def stick(tmp_path: Path, ca: CertBuilder, admin: Signer, monkeypatch: pytest.MonkeyPatch) -> Stick:
    monkeypatch.setattr(server_offers, "PIECE", 200)
    return Stick(tmp_path / "stick", ca, admin)


@pytest.fixture
def site(tmp_path: Path, stick: Stick) -> Site:
    return Site(tmp_path / "site", stick)


def test_a_new_environment_arrives(site: Site, stick: Stick) -> None:
    site.hear()
    assert site.files() == [f"{NAME}.json", f"{NAME}.tar.gz"]
    assert site.keeper.look() == [NAME]
    # What was installed leaves the spool, and nothing is asked again.
    asked = len(site.line.asked)
    site.hear()
    assert site.files() == []
    assert len(site.line.asked) == asked
    assert site.keeper.look() == []
    # A new description comes alone.
    stick.facts = {**stick.facts, "keys": ["more"]}
    stick.sign()
    site.hear()
    site.keeper.look()
    site.hear()
    assert site.files() == []
    assert {path for path, _ in site.line.asked[asked:]} == {f"environments/{NAME}.json"}
    assert "more" in (site.root / NAME / "environment.json").read_text()


def test_a_cut_line_costs_one_piece(site: Site, stick: Stick) -> None:
    site.line.breaks_after = 15
    with pytest.raises(Lost):
        site.hear()
    site.line.breaks_after = 1_000_000
    site.hear()
    asked = [offset for path, offset in site.line.asked if path.endswith(".tar.gz")]
    assert asked == sorted(set(asked))
    assert site.keeper.look() == [NAME]


def test_the_servers_word_is_checked(site: Site, stick: Stick) -> None:
    content = stick.archive.read_bytes()
    stick.archive.write_bytes(content[:-1] + b"x")
    site.hear()
    assert site.files() == [f"{NAME}.json"]
    # Longer, shorter, or with another statement than it has named.
    stick.archive.write_bytes(content + b"more")
    site.hear()
    stick.archive.write_bytes(content[:50])
    site.hear()
    assert site.keeper.look() == []
    asked = len(site.line.asked)
    site.hear(**{NAME: "0" * 64})
    assert len(site.line.asked) - asked < 50
    stick.archive.write_bytes(content)
    site.hear()
    assert site.keeper.look() == [NAME]


@pytest.mark.parametrize("policy", ["refuse", "acept"])
def test_nothing_comes_that_the_policy_refuses(
    site: Site, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setenv(VARIABLE, policy)
    site.hear()
    assert site.line.asked == []


def test_an_archive_comes_once_it_is_approved(
    site: Site, stick: Stick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "approve")
    site.keeper.policy = "approve"
    site.hear()
    assert site.files() == [f"{NAME}.json"]
    site.keeper.look()
    assert state(site.root) == {"waiting": [f"{NAME} {stick.packed.sha256}"], "refused": []}
    Approvals(site.root).add(stick.packed.sha256)
    site.hear()
    assert site.keeper.look() == [NAME]
    assert state(site.root) == {"waiting": [], "refused": []}


def test_no_archive_comes_without_the_right_signature(site: Site, stick: Stick, ca: CertBuilder) -> None:
    stick.signer = person(ca, "member")
    stick.sign()
    site.hear()
    assert site.files() == [f"{NAME}.json"]
    site.keeper.look()
    assert "member" in News.read(site.root).refused[NAME]


def test_a_removed_persons_signature_counts_no_more(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.server.answer("site-1", {}) != {}
    (tmp_path / "policy").mkdir()
    names = {"revoked": ["project_admin@hospital.example"]}
    (tmp_path / "policy" / "revoked.json").write_text(json.dumps(names))
    monkeypatch.setattr(server_offers, "REVOCATIONS", revocation.Revoked(tmp_path / "policy"))
    assert site.server.answer("site-1", {}) == {}


def test_what_a_job_waits_for_comes_first(site: Site, stick: Stick) -> None:
    for end in (".json", ".tar.gz"):
        source = stick.folder / "environments" / f"{NAME}{end}"
        (stick.folder / "environments" / f"{OTHER}{end}").write_bytes(source.read_bytes())
    stick.statement = stick.folder / "environments" / f"{OTHER}.json"
    stick.sign(name=OTHER)
    site.line.after = lambda number: Wishes(site.spool).make(OTHER) if number == 14 else None
    site.hear()
    archives = [path for path, _ in site.line.asked if path.endswith(".tar.gz")]
    order = [path for path, before in zip(archives, ["", *archives], strict=False) if path != before]
    assert order == [f"environments/{name}.tar.gz" for name in (NAME, OTHER, NAME)]
    assert site.keeper.look() == [NAME, OTHER]


def test_what_is_not_offered_any_more_leaves_the_spool(site: Site, stick: Stick) -> None:
    site.line.breaks_after = 15
    with pytest.raises(Lost):
        site.hear()
    assert len(site.files()) == 2
    stick.statement.unlink()
    site.hear()
    assert site.files() == []


def test_a_site_on_the_servers_machine_fetches_nothing(tmp_path: Path, site: Site) -> None:
    here = SiteEnvironments(tmp_path / "none", site.root)
    here.take(site.server.answer("site-1", {}), site.line)  # type: ignore[arg-type]
    assert site.line.asked == []


@pytest.mark.parametrize("told", [{}, {"environments": 3}, {"environments": {"../x": "y", NAME: 3}}])
def test_another_reply_is_left_alone(site: Site, told: dict[str, Any]) -> None:
    site.here.take(told, site.line)  # type: ignore[arg-type]
    assert site.here._offered == {}


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"[]",
        b"{}",
        b'{"path": "environments/../rootCA.pem", "offset": 0}',
        b'{"path": "rootCA.pem", "offset": 0}',
        b'{"path": "runtime/' + b"0" * 64 + b'.tar.gz", "offset": 0}',
        f'{{"path": "environments/{NAME}.json", "offset": -1}}'.encode(),
        f'{{"path": "environments/{NAME}.json", "offset": true}}'.encode(),
        f'{{"path": "environments/{NAME}.json", "offset": {1 << 80}}}'.encode(),
        b'{"path": ["environments"], "offset": 0}',
    ],
)
def test_a_site_gets_no_other_file(site: Site, stick: Stick, message: bytes) -> None:
    (stick.folder / "runtime").mkdir()
    (stick.folder / "runtime" / f"{'0' * 64}.tar.gz").touch()
    with pytest.raises(ValueError, match=r"expected a path|no such file"):
        site.server.piece("site-1", message)
