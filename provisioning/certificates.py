"""Reuse FLARE's certificates when they still fit project.yml, and reissue them otherwise.

FLARE 2.9's CertBuilder reuses a certificate by its subject alone. After an edit of `host_names` or `org`, or
past its last day, it hands out the old one without a word. It makes a listener's certificate (relays) again
at every run. It restricts no certificate's usage. Its state file, with the CA's key and everybody's, is
readable by all, and each run overwrites it in place.
"""

from __future__ import annotations

import datetime
import inspect
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.impl.cert import DEFAULT_CERT_VALID_DAYS, CertBuilder
from nvflare.lighter.spec import ProvisionContext
from nvflare.lighter.utils import build_subject_alt_names, serialize_cert, serialize_pri_key, x509_name
from nvflare.tool.cli_output import output_error

from provisioning import note, state

RENEW = datetime.timedelta(days=30)
"""Time left below which a certificate is reissued. The old one stays valid until its last day."""

CA_KEY_BITS, KEY_BITS = 3072, 2048
"""Lengths of new RSA keys. A CA lives for ten years, and NIST SP 800-57 wants more than 2048 bits after 2030.
All other keys last for 360 days, and FLARE's message cipher takes no other length than 2048 (nvflare 2.9.0
`fuel/f3/cellnet/cell_cipher.py`, KEY_ENC_LENGTH). It takes no other kind of CA key than RSA either."""

SERVES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
"""Usages of the certificates of the server and of a relay's listening end. They are clients too: of
themselves, in the health check (`images/tls_answer.py`)."""
CONNECTS = (ExtendedKeyUsageOID.CLIENT_AUTH,)
"""Usage of all other certificates: no site, relay or person can pose as the server, under any name."""


class CertificateBuilder(CertBuilder):  # type: ignore[misc]
    """FLARE's CertBuilder, which also renews what no longer fits project.yml and protects its state."""

    def initialize(self, project: Project, ctx: ProvisionContext) -> None:
        """Close the state folder to others, then load the CA and the certificates from it."""
        folder = Path(ctx.get_state_dir())
        folder.chmod(0o700)
        try:
            state.read(folder)
        except state.Unreadable as error:
            output_error("INVALID_ARGS", exit_code=4, detail=str(error))
        super().initialize(project, ctx)

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Issue new certificates and replace stale ones, then write all of them into the kits."""
        known: dict[str, Any] = self.persistent_state.content
        for participant in project.get_all_participants():
            kept = known.get(participant.subject)
            reason = self._why_stale(kept["cert"], participant) if kept else None
            if reason:
                del known[participant.subject]
                note(ctx, f"{participant.name}: new certificate from the same CA ({reason}).")
        super().build(project, ctx)
        for participant in [*project.get_clients(), *project.get_relays()]:
            if participant.get_listening_host():
                self._keep_listener(participant, Path(ctx.get_kit_dir(participant)))
        self._tell_of_old(project, ctx)
        left = self.root_cert.not_valid_after_utc - _now()
        if left < 3 * RENEW:
            note(
                ctx,
                f"the CA's own certificate ends in {left.days} days, and with it every connection. "
                f"Move {ctx.get_workspace()} away and provision again. Everybody then needs a new kit.",
            )

    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        """Save the state in one step, if it has changed. FLARE's method would truncate the only copy of the
        CA's key each time. This builder finishes last, so it saves before the kits are put in their place."""
        state.save(Path(ctx.get_state_dir()), self.persistent_state.content)

    def _build_root(self, subject: str, subject_org: str | None) -> None:
        """Make the CA if there is none."""
        if self.persistent_state.is_available:
            return
        self.issuer = subject
        self.pri_key = _new_key(CA_KEY_BITS)
        self.pub_key = self.pri_key.public_key()
        begin = _now()
        end = begin + datetime.timedelta(days=self.root_valid_days)
        name = x509_name(subject, subject_org)
        self.root_cert = (
            _certificate(name, name, self.pub_key, self.pri_key, begin, end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
            # FLARE's CA has one too.
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
            .sign(self.pri_key, hashes.SHA256())
        )
        self.serialized_cert = serialize_cert(self.root_cert)
        self.persistent_state.set_root_cert(self.serialized_cert.decode())
        self.persistent_state.set_root_pri_key(serialize_pri_key(self.pri_key).decode())

    def get_pri_key_cert(self, participant: Participant) -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
        """Issue a certificate with a new key. FLARE's has neither basic constraints nor a key usage."""
        begin, last = _now(), self.root_cert.not_valid_after_utc
        if last <= begin:
            raise RuntimeError(f"the CA's own certificate expired on {last.date()}: nothing can be issued.")
        end = min(last, begin + datetime.timedelta(days=DEFAULT_CERT_VALID_DAYS))
        role = participant.get_prop("role") if participant.type == "admin" else None
        # For the listening end of a relay or site, FLARE asks with the type "server".
        serves = participant.type == "server"
        key = _new_key(KEY_BITS)
        certificate = (
            _certificate(
                x509_name(participant.subject, participant.org, role),
                self.root_cert.subject,
                key.public_key(),
                self.pri_key,
                begin,
                end,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            # Encipherment: FLARE's message cipher wraps keys with it.
            .add_extension(_usage("digital_signature", "key_encipherment"), critical=True)
            .add_extension(x509.ExtendedKeyUsage(SERVES if serves else CONNECTS), critical=False)
            .add_extension(x509.SubjectAlternativeName(_names(participant)), critical=False)
            .sign(self.pri_key, hashes.SHA256())
        )
        return key, certificate

    def _tell_of_old(self, project: Project, ctx: ProvisionContext) -> None:
        """Name old certificates without a usage. They go on to work, and nobody gets another kit for this
        alone."""
        known: dict[str, Any] = self.persistent_state.content
        without = [
            participant.name
            for participant in project.get_all_participants()
            if not _has_usage(x509.load_pem_x509_certificate(known[participant.subject]["cert"].encode()))
        ]
        if without:
            note(
                ctx,
                f"{', '.join(without)}: the certificate does not yet say whether it is for a server or a "
                f"client. It will after its renewal, {RENEW.days} days before its last day.",
            )

    def _why_stale(self, pem: str, participant: Participant) -> str | None:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        expected = set(_names(participant))
        if _sans(certificate) != expected:
            return f"it is now for {', '.join(sorted(str(name.value) for name in expected))}"
        org = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        if [attribute.value for attribute in org] != [participant.org]:
            return f"org is now {participant.org}"
        return self._why_too_old(certificate)

    def _why_too_old(self, certificate: x509.Certificate) -> str | None:
        end = certificate.not_valid_after_utc
        # A CA near its end can issue nothing that lasts longer. Then the old certificate is as good.
        longest = _now() + datetime.timedelta(days=DEFAULT_CERT_VALID_DAYS)
        best = min(longest, self.root_cert.not_valid_after_utc)
        if end - _now() < RENEW and best - end > datetime.timedelta(days=1):
            return f"the old one's last day is {end.date()}"
        return None

    def _keep_listener(self, participant: Participant, kit: Path) -> None:
        """Put the listener's certificate from the last run back into the kit, unless it no longer fits."""
        known: dict[str, Any] = self.persistent_state.content
        files = {"cert": kit / "server.crt", "pri_key": kit / "server.key"}
        kept = known.get(_listener(participant))
        fresh = x509.load_pem_x509_certificate(files["cert"].read_bytes())
        if kept:
            old = x509.load_pem_x509_certificate(kept["cert"].encode())
            if (_sans(old), old.subject) == (_sans(fresh), fresh.subject) and not self._why_too_old(old):
                for part, path in files.items():
                    path.write_text(kept[part])
                return
        known[_listener(participant)] = {part: path.read_text() for part, path in files.items()}


def _listener(participant: Participant) -> str:
    return f"{participant.subject}/listener"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _new_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: rsa.RSAPublicKey,
    issuer_key: rsa.RSAPrivateKey,
    begin: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    """Return the part that all certificates have, the CA's and others."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )


def _usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in allowed for usage in inspect.signature(x509.KeyUsage).parameters})


def _has_usage(certificate: x509.Certificate) -> bool:
    return any(isinstance(extension.value, x509.ExtendedKeyUsage) for extension in certificate.extensions)


def _names(participant: Participant) -> list[x509.GeneralName]:
    """Return the names that FLARE would put into a new certificate of this participant."""
    if participant.type == "server":
        return list(
            build_subject_alt_names(participant.get_default_host(), participant.get_prop("host_names"))
        )
    return list(build_subject_alt_names(fallback_subject_name=participant.subject))


def _sans(certificate: x509.Certificate) -> set[x509.GeneralName]:
    return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
