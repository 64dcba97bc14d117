"""Reuse FLARE's certificates when they still fit project.yml, and reissue them for the same keys otherwise.

FLARE 2.9's CertBuilder reuses a certificate by its subject alone. After an edit of `host_names` or `org`, or
past its last day, it hands out the old one without a word. It makes a listener's key and certificate (relays)
again at every run. It restricts no certificate's usage. Its state file, with the CA's key and everybody's, is
readable by all, and each run overwrites it in place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.impl.cert import DEFAULT_CERT_VALID_DAYS, CertBuilder
from nvflare.lighter.spec import ProvisionContext
from nvflare.lighter.utils import build_subject_alt_names, load_private_key, x509_name
from nvflare.tool.cli_output import output_error

from provisioning import NO_KEY, NO_PASSPHRASE, ca_key, note, own_keys, renewal, signing, state
from provisioning.keys import OWN_KEY
from provisioning.renewal import LISTENER, VALID_DAYS

CA_ENDS = 90
"""Days left of the CA's certificate below which each run says so."""


class CertificateBuilder(CertBuilder):  # type: ignore[misc]
    """FLARE's CertBuilder, which also renews what no longer fits project.yml and protects its state."""

    def __init__(
        self, root_valid_days: int = DEFAULT_CERT_VALID_DAYS, valid_days: float = VALID_DAYS
    ) -> None:
        """Create the builder.

        Args:
            root_valid_days: the CA's life, fixed when it is made.
            valid_days: the life of each new certificate. It is renewed at half of it.
        """
        super().__init__(root_valid_days)
        if isinstance(valid_days, bool) or not isinstance(valid_days, int | float) or valid_days <= 0:
            output_error(
                "INVALID_ARGS",
                exit_code=4,
                detail=f"CertificateBuilder: expected valid_days, a number of days, found {valid_days!r}.",
            )
        self.valid_days = valid_days

    def initialize(self, project: Project, ctx: ProvisionContext) -> None:
        """Close the state folder to others, then load the CA and the certificates from it."""
        folder = Path(ctx.get_state_dir())
        folder.chmod(0o700)
        try:
            known = state.read(folder)
        except state.Unreadable as error:
            output_error("INVALID_ARGS", exit_code=4, detail=str(error))
        self._load_authority(project, ctx, known)
        if self.persistent_state.is_available and not project.root_private_key:
            # While the CA is replaced, everybody trusts both.
            self.serialized_cert = renewal.trusted(self.persistent_state.content).encode()

    def _load_authority(self, project: Project, ctx: ProvisionContext, known: dict[str, Any]) -> None:
        """Do as FLARE's method, which reads the CA's key. If the key is elsewhere, only `_key` reads it."""
        if not ca_key.is_elsewhere(known) or project.root_private_key:
            super().initialize(project, ctx)
            return
        project.root_private_key = signing.load(known[ca_key.CERTIFICATE])
        project.serialized_root_cert = known[ca_key.CERTIFICATE].encode()
        super().initialize(project, ctx)
        project.root_private_key = project.serialized_root_cert = None
        self.pri_key: Any = None

    def _key(self) -> rsa.RSAPrivateKey:
        """Return the CA's key. This program ends if the key is elsewhere and cannot be read."""
        try:
            self.pri_key = self.pri_key or ca_key.load(self.persistent_state.content)
        except ca_key.NoKey as error:
            lacks = NO_PASSPHRASE if isinstance(error, ca_key.NoPassphrase) else NO_KEY
            output_error("INVALID_ARGS", exit_code=lacks, detail=str(error))
        return cast("rsa.RSAPrivateKey", self.pri_key)

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Issue new certificates and replace stale ones, then write all of them into the kits."""
        known: dict[str, Any] = self.persistent_state.content
        everybody = project.get_all_participants()
        for name in own_keys.settle(known, [(p.subject, _has_own_key(p)) for p in everybody]):
            note(ctx, f"{name}: its earlier certificate is no longer used here, since {OWN_KEY} has changed.")
        for participant in everybody:
            kept = known.get(participant.subject)
            if kept and (key := own_keys.asked(kept)):
                kept["cert"] = signing.dump(self._issue(participant, key))
            reason = self._why_stale(kept["cert"], participant) if kept and "cert" in kept else None
            if kept and reason:
                old = signing.load(kept["cert"])
                kept["cert"] = signing.dump(self._issue(participant, old.public_key()))
                note(ctx, f"{participant.name}: new certificate from the same CA ({reason}).")
        super().build(project, ctx)
        for participant in [*project.get_clients(), *project.get_relays()]:
            if participant.get_listening_host():
                self._keep_listener(participant, Path(ctx.get_kit_dir(participant)))
        self._tell_of_old(project, ctx)
        left = self.root_cert.not_valid_after_utc - signing.now()
        if left.days < CA_ENDS:
            note(
                ctx,
                f"the CA's own certificate expires in {left.days} days, and with it every connection. "
                f"./flowerbed renew --new-ca replaces it while the federation runs.",
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
        ca = signing.new_authority(x509_name(subject, subject_org), self.root_valid_days)
        self.root_cert, self.pri_key, self.pub_key = ca.certificate, ca.key, ca.key.public_key()
        self.persistent_state.set_root_cert(signing.dump(ca.certificate))
        self.persistent_state.set_root_pri_key(signing.dump_key(ca.key))
        self.serialized_cert = signing.dump(ca.certificate).encode()

    def get_pri_key_cert(self, participant: Participant) -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
        """Issue a certificate with a new key. FLARE's has neither basic constraints nor a key usage."""
        key = signing.new_key()
        # A listener has a certificate already. Only this one's names count, and `_keep_listener` replaces it.
        known = (
            participant.type == "server" and participant.subject + LISTENER in self.persistent_state.content
        )
        return key, self._issue(participant, key.public_key(), key if known else None)

    def _issue(
        self, participant: Participant, key: Any, by: rsa.RSAPrivateKey | None = None
    ) -> x509.Certificate:
        """Issue a certificate for a key, signed with the CA's key if no other is given."""
        role = participant.get_prop("role") if participant.type == "admin" else None
        return signing.Authority(self.root_cert, by or self._key()).sign(
            x509_name(participant.subject, participant.org, role),
            x509.SubjectAlternativeName(_names(participant)),
            key,
            # For the listening end of a relay or site, FLARE asks with the type "server".
            serves=participant.type == "server",
            days=self.valid_days,
        )

    def _build_write_cert_pair(self, participant: Participant, base_name: str, ctx: ProvisionContext) -> None:
        """Write a participant's key and certificates into its kit. Of a site with its own key, we have only
        the certificate, and before its request not even that."""
        if not _has_own_key(participant):
            super()._build_write_cert_pair(participant, base_name, ctx)
            return
        kit = Path(ctx.get_kit_dir(participant))
        known: dict[str, Any] = self.persistent_state.content
        if certificate := known.get(participant.subject, {}).get("cert"):
            (kit / f"{base_name}.crt").write_text(certificate)
        (kit / "rootCA.pem").write_bytes(self.serialized_cert)

    def _tell_of_old(self, project: Project, ctx: ProvisionContext) -> None:
        """Name old certificates without a usage. They go on to work, and are not renewed for this alone."""
        known: dict[str, Any] = self.persistent_state.content
        without = [
            participant.name
            for participant in project.get_all_participants()
            if "cert" in known.get(participant.subject, {})
            and not signing.has_usage(signing.load(known[participant.subject]["cert"]))
        ]
        if without:
            note(
                ctx,
                f"{', '.join(without)}: the certificate does not yet say whether it is for a server or a "
                f"client. It will after its renewal, at half of its life.",
            )

    def _why_stale(self, pem: str, participant: Participant) -> str | None:
        certificate = signing.load(pem)
        expected = set(_names(participant))
        if _sans(certificate) != expected:
            return f"it is now for {', '.join(sorted(str(name.value) for name in expected))}"
        org = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        if [attribute.value for attribute in org] != [participant.org]:
            return f"org is now {participant.org}"
        return renewal.why_renew(certificate, self.root_cert, days=self.valid_days)

    def _keep_listener(self, participant: Participant, kit: Path) -> None:
        """Put the listener's key from the last run back into the kit, with the old certificate if it fits."""
        known: dict[str, Any] = self.persistent_state.content
        files = {"cert": kit / "server.crt", "pri_key": kit / "server.key"}
        kept = known.get(participant.subject + LISTENER)
        fresh = signing.load(files["cert"].read_text())
        if kept:
            old = signing.load(kept["cert"])
            fits = (_sans(old), old.subject) == (_sans(fresh), fresh.subject)
            if not fits or renewal.why_renew(old, self.root_cert, days=self.valid_days):
                names = fresh.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
                ca = signing.Authority(self.root_cert, self._key())
                key = load_private_key(kept["pri_key"]).public_key()
                new = ca.sign(fresh.subject, names, key, serves=True, days=self.valid_days)
                kept["cert"] = signing.dump(new)
            for part, path in files.items():
                path.write_text(kept[part])
            return
        known[participant.subject + LISTENER] = {part: path.read_text() for part, path in files.items()}


def _has_own_key(participant: Participant) -> bool:
    return bool(participant.get_prop(OWN_KEY, False))


def _names(participant: Participant) -> list[x509.GeneralName]:
    """Return the names that FLARE would put into a new certificate of this participant."""
    if participant.type == "server":
        return list(
            build_subject_alt_names(participant.get_default_host(), participant.get_prop("host_names"))
        )
    return list(build_subject_alt_names(fallback_subject_name=participant.subject))


def _sans(certificate: x509.Certificate) -> set[x509.GeneralName]:
    return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
