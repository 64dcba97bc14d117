"""A site makes its key itself. A request and an answer cross, and neither helps anybody else."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from bridge.common import own_key
from bridge.common.own_key import UnfitRequest

JOIN = "00112233445566778899aabbccddeeff"


class Authority:
    """A federation's CA."""

    def __init__(self, name: str = "flowerbed") -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.name = _name(name)
        self.pem = self.issue(self.name, self.key.public_key(), ca=True)

    def issue(self, name: x509.Name, key: rsa.RSAPublicKey, *, ca: bool = False, age: int = 0) -> str:
        now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=age)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(days=90))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
            .decode()
        )

    def answer(self, request: str, site: str = "", age: int = 0) -> str:
        asked = own_key.read_request(request)
        return own_key.make_answer(self.issue(_name(site or asked.site), asked.key, age=age), self.pem)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    (tmp_path / "kit/startup").mkdir(parents=True)
    return tmp_path / "kit"


@pytest.fixture
def renewed(tmp_path: Path, authority: Authority) -> Path:
    (tmp_path / "renewed").mkdir()
    (tmp_path / "renewed/rootCA.pem").write_text(authority.pem)
    return tmp_path / "renewed"


def asked(kit: Path, site: str = "hospital-c") -> str:
    return own_key.make_request(kit, site, "clinic", JOIN)


def test_a_request_tells_who_asks_and_the_key_stays(kit: Path) -> None:
    text = asked(kit)
    found = own_key.read_request(text)
    assert (found.site, found.org, found.join) == ("hospital-c", "clinic", JOIN)
    assert found.fingerprint in text and re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", found.fingerprint)
    key = kit / own_key.KEY
    assert key.stat().st_mode & 0o777 == 0o600
    # The first lines hold the modulus, which the request has too.
    inside = key.read_text().splitlines()[10:-1]
    assert len(inside) > 10
    assert not any(line in text for line in inside)
    assert "PRIVATE" not in text and len(text) < 2000


def test_asking_again_keeps_the_key(kit: Path) -> None:
    assert own_key.read_request(asked(kit)).fingerprint == own_key.read_request(asked(kit)).fingerprint


def test_an_answer_brings_the_certificate(kit: Path, renewed: Path, authority: Authority) -> None:
    text = authority.answer(asked(kit))
    own_key.take_answer(f"> a mail\n{text}\n-- \nbye", kit, renewed, "hospital-c")
    placed = x509.load_pem_x509_certificate((renewed / "client.crt").read_bytes())
    assert placed.public_key() == own_key.read_request(asked(kit)).key
    assert sorted(path.name for path in renewed.iterdir()) == ["client.crt", "rootCA.pem"]


def refused(kit: Path, renewed: Path, answer: str, why: str) -> None:
    with pytest.raises(UnfitRequest, match=why):
        own_key.take_answer(answer, kit, renewed, "hospital-c")
    assert [path.name for path in renewed.iterdir()] == ["rootCA.pem"]


def test_an_answer_to_another_name_is_refused(kit: Path, renewed: Path, authority: Authority) -> None:
    refused(
        kit,
        renewed,
        authority.answer(asked(kit), "hospital-d"),
        "expected an answer to hospital-c, found one to",
    )


def test_an_answer_to_another_key_is_refused(
    kit: Path, renewed: Path, authority: Authority, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (other / "startup").mkdir(parents=True)
    asked(kit)
    refused(kit, renewed, authority.answer(asked(other)), "for another key")


def test_an_answer_of_another_authority_is_refused_even_if_it_brings_its_own(
    kit: Path, renewed: Path
) -> None:
    refused(kit, renewed, Authority().answer(asked(kit)), "not from the federation's CA")


def test_an_altered_answer_is_refused(kit: Path, renewed: Path, authority: Authority) -> None:
    lines = authority.answer(asked(kit)).splitlines()
    place = lines.index("-----BEGIN CERTIFICATE-----") + 10
    lines[place] = lines[place][::-1]
    refused(kit, renewed, "\n".join(lines), "altered|another key")


def test_an_expired_answer_is_refused(kit: Path, renewed: Path, authority: Authority) -> None:
    refused(kit, renewed, authority.answer(asked(kit), age=91), "was valid until .* send the request again")


@pytest.mark.parametrize("text", ["", "no", "x" * 100_000])
def test_what_is_no_answer_is_refused(kit: Path, renewed: Path, text: str) -> None:
    asked(kit)
    refused(kit, renewed, text, "expected the lines of an answer")


def test_an_answer_without_a_request_is_refused(
    kit: Path, renewed: Path, authority: Authority, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (other / "startup").mkdir(parents=True)
    refused(kit, renewed, authority.answer(asked(other)), "cannot be read.*./site request makes one")


def test_an_altered_request_is_refused(kit: Path) -> None:
    text = asked(kit)
    der = x509.load_pem_x509_csr(text[text.index("-----BEGIN") :].encode()).public_bytes(
        serialization.Encoding.DER
    )
    body = x509.load_der_x509_csr(der.replace(b"hospital-c", b"hospital-d"))
    with pytest.raises(UnfitRequest, match="altered"):
        own_key.read_request(body.public_bytes(serialization.Encoding.PEM).decode())


@pytest.mark.parametrize("count", [0, 2])
def test_one_request_is_expected(kit: Path, count: int) -> None:
    with pytest.raises(UnfitRequest, match=f"found {count}"):
        own_key.read_request(asked(kit) * count)


def test_a_request_with_another_kind_of_key_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "hospital-c"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "clinic"),
        ]
    )
    built = x509.CertificateSigningRequestBuilder().subject_name(names)
    built = built.add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, JOIN.encode())
    text = built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(UnfitRequest, match="expected an RSA key of 2048 bits"):
        own_key.read_request(text)
    nameless = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    with pytest.raises(UnfitRequest, match="cannot be read"):
        own_key.read_request(nameless.public_bytes(serialization.Encoding.PEM).decode())
