"""FLARE's certificates, kept where they may be kept and issued anew where keeping would be silent trouble.

FLARE 2.9's CertBuilder reuses a certificate by its subject alone: after an edit of `host_names` or `org`,
or past its last day, it hands out the old one without a word; a listener's certificate (relays) it makes
anew at every run; and its state, with the CA's key and everybody's, is readable by all.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.impl.cert import DEFAULT_CERT_VALID_DAYS, CertBuilder
from nvflare.lighter.spec import ProvisionContext
from nvflare.lighter.utils import build_subject_alt_names

from provisioning import note

RENEW = datetime.timedelta(days=30)
"""A certificate with less than this left is issued anew; the old one stays good until its last day."""

STATE_FILE = "cert.json"


class CertificateBuilder(CertBuilder):  # type: ignore[misc]
    """FLARE's CertBuilder, which also renews what no longer fits project.yml and guards its state."""

    def initialize(self, project: Project, ctx: ProvisionContext) -> None:
        """Close the state folder to others, then load the CA and the certificates from it."""
        Path(ctx.get_state_dir()).chmod(0o700)
        super().initialize(project, ctx)

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Issue what is new or stale, write all certificates into the kits."""
        state: dict[str, Any] = self.persistent_state.content
        for participant in project.get_all_participants():
            kept = state.get(participant.subject)
            reason = self._why_stale(kept["cert"], participant) if kept else None
            if reason:
                del state[participant.subject]
                note(ctx, f"{participant.name}: certificate issued anew by the same CA ({reason}).")
        super().build(project, ctx)
        for participant in [*project.get_clients(), *project.get_relays()]:
            if participant.get_listening_host():
                self._keep_listener(participant, Path(ctx.get_kit_dir(participant)))
        left = self.root_cert.not_valid_after_utc - _now()
        if left < 3 * RENEW:
            note(
                ctx,
                f"the CA's own certificate ends in {left.days} days, and with it every connection. Move "
                f"{ctx.get_workspace()} away and provision anew: everybody then needs a new kit.",
            )

    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        """Save the state, readable by its owner only."""
        super().finalize(project, ctx)
        (Path(ctx.get_state_dir()) / STATE_FILE).chmod(0o600)

    def _why_stale(self, pem: str, participant: Participant) -> str | None:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        expected = _names(participant)
        if _sans(certificate) != expected:
            return f"it is now for {', '.join(sorted(_text(name) for name in expected))}"
        org = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        if [attribute.value for attribute in org] != [participant.org]:
            return f"org is now {participant.org}"
        return self._why_too_old(certificate)

    def _why_too_old(self, certificate: x509.Certificate) -> str | None:
        end = certificate.not_valid_after_utc
        # A CA near its own end can issue nothing that lasts longer: then the old one is as good.
        longest = _now() + datetime.timedelta(days=DEFAULT_CERT_VALID_DAYS)
        best = min(longest, self.root_cert.not_valid_after_utc)
        if end - _now() < RENEW and best - end > datetime.timedelta(days=1):
            return f"the old one's last day is {end.date()}"
        return None

    def _keep_listener(self, participant: Participant, kit: Path) -> None:
        """Put the listener's certificate of the last run back into the kit, unless it no longer fits."""
        state: dict[str, Any] = self.persistent_state.content
        files = {"cert": kit / "server.crt", "pri_key": kit / "server.key"}
        kept = state.get(_listener(participant))
        fresh = x509.load_pem_x509_certificate(files["cert"].read_bytes())
        if kept:
            old = x509.load_pem_x509_certificate(kept["cert"].encode())
            if (_sans(old), old.subject) == (_sans(fresh), fresh.subject) and not self._why_too_old(old):
                for part, path in files.items():
                    path.write_text(kept[part])
                return
        state[_listener(participant)] = {part: path.read_text() for part, path in files.items()}


def _listener(participant: Participant) -> str:
    return f"{participant.subject}/listener"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _names(participant: Participant) -> set[x509.GeneralName]:
    """The names that FLARE would put into a new certificate of this participant."""
    if participant.type == "server":
        return set(
            build_subject_alt_names(participant.get_default_host(), participant.get_prop("host_names"))
        )
    return set(build_subject_alt_names(fallback_subject_name=participant.subject))


def _sans(certificate: x509.Certificate) -> set[x509.GeneralName]:
    return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def _text(name: x509.GeneralName) -> str:
    return str(name.value)
