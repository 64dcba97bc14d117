"""A site makes its own key, and the centre answers its request. What does not belong together is refused."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from bridge.common import own_key
from provisioning import join, own_keys
from tests.unit import forked
from tests.unit.test_provisioning import STATE, again, done, edit, ended, plain, replace

__all__ = ["again", "ended", "plain"]  # Fixtures, for pytest to find.

SITE, ORG = "hospital-c", "clinic"
TODAY = datetime.datetime.now(datetime.UTC).date()
KIT = "workspace/flowerbed/prod_01/hospital-c"

LINES = f"""
  - {{name: {SITE}, type: client, org: {ORG}, elsewhere: true, own_key: true}}
  - {{name: hospital-d, type: client, org: {ORG}, elsewhere: true}}
builders:"""

Approve = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def centre(again: Path) -> Path:
    """A federation in which two hospitals are to take part. One of them makes its own key."""
    edit(again, replace("\nbuilders:", LINES))
    assert done(again)["waiting"] == [SITE]
    return again


@pytest.fixture
def invited(centre: Path) -> str:
    """The id of a join file."""
    return invite(centre)


def invite(root: Path, days: int = 14, site: str = SITE) -> str:
    made = join.new_id()
    join.record(root / "workspace/flowerbed/policy", site, made, TODAY + datetime.timedelta(days=days))
    return made


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """The kit's folder at the site."""
    (tmp_path / "site/startup").mkdir(parents=True)
    return tmp_path / "site"


@pytest.fixture
def approve(centre: Path, tmp_path: Path) -> Approve:
    def call(request: str, *words: str) -> tuple[int, dict[str, Any], str]:
        (tmp_path / "request").write_text(request)
        given = words or ("--yes",)
        process = forked.run(
            centre, "scripts", "site", "approve", str(tmp_path / "request"), "--format", "json", *given
        )
        assert "Traceback" not in process.stderr
        return process.returncode, json.loads(process.stdout.splitlines()[-1]), process.stderr

    return call


def asked(kit: Path, join_id: str, site: str = SITE, org: str = ORG) -> str:
    return own_key.make_request(kit, site, org, join_id)


def state_of(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / STATE).read_text()))


def test_a_site_gets_a_certificate_for_a_key_that_the_centre_never_has(
    centre: Path, invited: str, kit: Path, approve: Approve, tmp_path: Path
) -> None:
    request = asked(kit, invited)
    before = {path.name: path.read_bytes() for path in (centre / "workspace").rglob("*.key")}
    code, outcome, said = approve(request)
    assert code == 0, said
    assert outcome["fingerprint"] in request and outcome["fingerprint"] in said
    renewed = tmp_path / "renewed"
    renewed.mkdir()
    shutil.copy(centre / KIT / "startup/rootCA.pem", renewed)
    taken = own_key.take_answer(outcome["answer"], kit, renewed, SITE)
    assert taken.not_valid_after_utc.date().isoformat() == outcome["last_day"]
    usage = taken.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    # Nothing that crossed, and nothing at the centre, has a line of the key.
    # The first lines hold the modulus, which the certificate has too.
    secret = (kit / own_key.KEY).read_text().splitlines()[10:-1]
    crossed = [request, outcome["answer"], said]
    crossed += [path.read_text(errors="replace") for path in centre.rglob("*") if path.is_file()]
    assert len(secret) > 10 and not any(line in text for line in secret for text in crossed)
    assert own_keys.PRIVATE_KEY not in state_of(centre)[SITE]
    assert not (centre / KIT / "startup/client.key").exists()
    after = {path.name: path.read_bytes() for path in (centre / "workspace").rglob("*.key")}
    assert after == before
    kept = centre / "workspace/flowerbed/renewed" / SITE / "client.crt"
    assert x509.load_pem_x509_certificate(kept.read_bytes()) == taken


def test_the_same_request_has_the_same_answer(invited: str, kit: Path, approve: Approve) -> None:
    request = asked(kit, invited)
    first, second = approve(request), approve(request)
    assert (first[0], first[1]) == (second[0], second[1]) and first[0] == 0


def test_a_join_file_is_for_one_key(
    centre: Path, invited: str, kit: Path, approve: Approve, tmp_path: Path
) -> None:
    assert approve(asked(kit, invited))[0] == 0
    other = tmp_path / "other"
    (other / "startup").mkdir(parents=True)
    before = state_of(centre)
    code, outcome, _ = approve(asked(other, invited))
    assert code == 1 and "this join file was used before, with another key" in outcome["error"].lower()
    assert state_of(centre) == before
    # A newer file may bring a new key: the machine may be another.
    code, outcome, said = approve(asked(other, invite(centre)))
    assert code == 0 and "has a certificate for another key" in said
    assert own_key.read_request(asked(other, "x")).fingerprint == outcome["fingerprint"]


@pytest.mark.parametrize(
    ("site", "org", "of", "why"),
    [
        ("hospital-d", ORG, "mine", "hospital-d has a key that the centre made"),
        ("hospital-x", ORG, "mine", "found one of 'hospital-x'"),
        (SITE, "evil", "mine", "is of clinic in project.yml, and the request says evil"),
        (SITE, ORG, "nobody's", "not of a join file that was made for hospital-c"),
        (SITE, ORG, "another's", "not of a join file that was made for hospital-c"),
        (SITE, ORG, "an old one", "the last day of its join file was"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    centre: Path, kit: Path, approve: Approve, site: str, org: str, of: str, why: str
) -> None:
    made = {
        "mine": invite(centre),
        "nobody's": "00" * 16,
        "another's": invite(centre, site="hospital-d"),
        "an old one": invite(centre, days=-1),
    }
    before = state_of(centre)
    code, outcome, _ = approve(asked(kit, made[of], site, org))
    assert code == 1 and why in outcome["error"]
    assert state_of(centre) == before


def test_a_revoked_site_gets_nothing(centre: Path, invited: str, kit: Path, approve: Approve) -> None:
    edit(centre, lambda text: f"revoked: [{SITE}]\n" + text.replace(LINES.splitlines()[1] + "\n", ""))
    code, outcome, _ = approve(asked(kit, invited))
    assert code == 1 and "is revoked in project.yml" in outcome["error"]


def test_a_removed_key_gets_no_certificate(invited: str, centre: Path, kit: Path, approve: Approve) -> None:
    assert approve(asked(kit, invited))[0] == 0
    content = state_of(centre)
    assert len(own_keys.forget(content, SITE)) == 1 and SITE not in content
    (centre / STATE).write_text(json.dumps(content))
    code, outcome, _ = approve(asked(kit, invite(centre)))
    assert code == 1 and "a key that was removed" in outcome["error"]
    (kit / own_key.KEY).unlink()
    assert approve(asked(kit, invite(centre)))[0] == 0


def test_a_request_whose_key_is_forgotten_before_its_answer_is_removed_too(kit: Path) -> None:
    content: dict[str, Any] = {}
    own_keys.accept(content, own_key.read_request(asked(kit, "id")))
    assert own_keys.forget(content, SITE) == set(content["/removed"]) and len(content["/removed"]) == 1


def test_the_fingerprint_decides(centre: Path, invited: str, kit: Path, approve: Approve) -> None:
    request = asked(kit, invited)
    right = own_key.read_request(request).fingerprint
    code, outcome, _ = approve(request, "--fingerprint", right.replace("A", "B").replace("1", "2"))
    assert code == 1 and "Somebody may have put another request in its place" in outcome["error"]
    code, outcome, _ = approve(request, "--output", str(centre / "answer"))
    assert code == 2 and "expected --fingerprint F" in outcome["error"]
    assert approve(request, "--fingerprint", right.lower().replace(":", " "))[0] == 0


def test_a_site_that_no_longer_makes_its_key_gets_one(
    centre: Path, invited: str, kit: Path, approve: Approve
) -> None:
    assert approve(asked(kit, invited))[0] == 0
    edit(centre, replace(", own_key: true", ""))
    outcome = done(centre)
    assert outcome["reissued"] == [SITE] and own_keys.PRIVATE_KEY in state_of(centre)[SITE]
    edit(centre, replace(f"name: {SITE},", f"name: {SITE}, own_key: true,"))
    assert done(centre)["waiting"] == [SITE]
    assert SITE not in state_of(centre)


def test_its_certificate_is_renewed_for_the_same_key(
    centre: Path, invited: str, kit: Path, approve: Approve
) -> None:
    def renewed() -> list[str]:
        process = forked.run(centre, "scripts", "renew", "--all", "--format", "json")
        assert process.returncode == 0, process.stderr
        return list(json.loads(process.stdout.splitlines()[-1])["renewed"])

    assert SITE not in renewed()  # It waits for its answer.
    request = asked(kit, invited)
    assert approve(request)[0] == 0
    before = x509.load_pem_x509_certificate(state_of(centre)[SITE]["cert"].encode())
    assert SITE in renewed()
    handed_out = (centre / "workspace/flowerbed/renewed" / SITE / "client.crt").read_bytes()
    after = x509.load_pem_x509_certificate(handed_out)
    assert after.serial_number != before.serial_number
    assert after.public_key() == before.public_key() == own_key.read_request(request).key
