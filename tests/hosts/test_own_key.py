"""Sites on other hosts make their own keys, or unlock the one in their join file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.common import own_key
from tests.hosts.engine import Host
from tests.hosts.federation import HostsFederation

SITE, OTHER = "hospital-k", "hospital-p"
WORDS = "open sesame, please"

pytestmark = pytest.mark.timeout(900)


def asked(federation: HostsFederation, site: str, host: Host) -> tuple[dict[str, object], str]:
    """Run a join file for an own key. Return what `site add` said, and the request."""
    federation.carry_runtime(host)
    invited = federation.invite(site, host, "--own-key")
    said = host.run("sh", f"{site}.join", "--fingerprint", str(invited["fingerprint"]))
    assert said.returncode == 0, said.stderr
    assert own_key.read_request(said.stdout).site == site
    return invited, said.stdout


def key_of(folder: Path) -> list[str]:
    """The private part of a site's key, by lines. The first lines hold the modulus, which is public."""
    return (folder / "kit" / own_key.KEY).read_text().splitlines()[10:-1]


def test_a_site_makes_its_key_and_joins_with_the_answer(
    centre: HostsFederation, engine: Callable[[str], Host], tmp_path: Path
) -> None:
    ward, thief = engine("ward"), engine("thief")
    invited, request = asked(centre, SITE, ward)
    early = ward.run(f"{SITE}/site", "start")
    assert early.returncode == 1 and "is waiting for the answer to its request" in early.stderr

    (tmp_path / "request").write_text(request)
    fingerprint = own_key.read_request(request).fingerprint
    answer = centre.must("site", "approve", str(tmp_path / "request"), "--fingerprint", fingerprint)["answer"]

    # Nothing but the answer of this CA to this key is taken.
    (ward.home / "altered").write_text(answer.replace("A", "B"))
    refused = ward.run(f"{SITE}/site", "join", "altered")
    assert refused.returncode == 1 and "Nothing was changed" in refused.stderr
    (ward.home / "answer").write_text(answer)
    said = ward.run(f"{SITE}/site", "join", "answer")
    assert said.returncode == 0, said.stderr
    assert f"{SITE} is registered with" in said.stderr
    assert SITE in [site["name"] for site in centre.must("status")["sites"]]

    # The key is at the site alone, and only the containers' user reads it.
    key = ward.home / SITE / "kit" / own_key.KEY
    assert (key.stat().st_mode & 0o777, key.stat().st_uid) == (0o400, 10001)
    secret = key_of(ward.home / SITE)
    texts = [request, answer, (ward.home / f"{SITE}.join").read_text(), said.stderr]
    texts += [path.read_text(errors="replace") for path in centre.root.rglob("*") if path.is_file()]
    assert len(secret) > 5 and not any(line in text for line in secret for text in texts)

    # Whoever finds the join file makes another key, and gets nothing for it.
    centre.carry_runtime(thief)
    (thief.home / "found.join").write_text((ward.home / f"{SITE}.join").read_text())
    stolen = thief.run("sh", "found.join", "--fingerprint", str(invited["fingerprint"]))
    (tmp_path / "request").write_text(stolen.stdout)
    outcome = centre.verb("site", "approve", str(tmp_path / "request"), "--yes")
    assert outcome.code == 1 and "was used before, with another key" in outcome.value["error"]
    (thief.home / "answer").write_text(answer)
    refused = thief.run(f"{SITE}/site", "join", "answer")
    assert refused.returncode == 1 and "for another key than this site's" in refused.stderr

    # A newer join file brings what is new, and keeps the key and its certificate.
    centre.invite(SITE, ward)
    updated = ward.run(f"{SITE}/site", "update", f"{SITE}.join")
    assert updated.returncode == 0, updated.stderr
    assert key_of(ward.home / SITE) == secret
    assert f"{SITE} is registered with" in updated.stderr


def test_a_locked_key_opens_with_its_passphrase(
    centre: HostsFederation, engine: Callable[[str], Host], tmp_path: Path
) -> None:
    host = engine("clinic")
    (tmp_path / "words").write_text(f"{WORDS}\n")
    centre.carry_runtime(host)
    invited = centre.invite(OTHER, host, "--passphrase-file", str(tmp_path / "words"))
    assert "PRIVATE KEY-----" not in (host.home / f"{OTHER}.join").read_text()
    command = ("sh", f"{OTHER}.join", "--fingerprint", invited["fingerprint"])
    alone = host.run(*command)
    assert alone.returncode == 2 and "expected a terminal to ask for its passphrase" in alone.stderr
    for words in ("open sesame, now\n", f"{WORDS}\n"):
        (host.home / "words").write_text(words)
        said = host.run(*command, "--passphrase-file", "words")
        if "now" in words:
            assert said.returncode == 1 and "the key stays locked" in said.stderr
            assert not (host.home / OTHER).exists()
    assert said.returncode == 0, said.stderr
    assert f"{OTHER} is registered with" in said.stderr
