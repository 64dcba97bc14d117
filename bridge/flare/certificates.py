"""Take renewed certificates in processes that run: at each handshake, and for each signature.

A renewed certificate takes the old one's place in the kit (`/renewed`). Its key is the same. FLARE's clients
read the files at each connect, so they need nothing. These do (nvflare 2.9.0):

- A listener reads the files once. Here it looks at them at each handshake.
- Over TCP and HTTP a listener resumes TLS sessions, and looks at no certificate then. So one that has ended,
  or is of a CA that was replaced, would go on for ever. Here no session is resumed. (gRPC resumes none from
  before a change.)
- The server introduces itself with a certificate that it has read once. Here it reads the file when it
  changes.
- FLARE trusts one CA, the first in `rootCA.pem`. Here it trusts all that are in the kit's file now, which are
  two while the CA is replaced (`provisioning/renewal.py`).

TLS looks at dates in the handshake only. An open connection goes on past its certificate's last day.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from nvflare.apis.fl_constant import ConnectionSecurity
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.private.fed.utils.identity_utils import IdentityAsserter

from bridge.job import replaced

log = logging.getLogger(__name__)

KIT = Path(os.environ.get("FLOWERBED_KIT", "/kit")) / "startup"
"""The folder of this container's certificates."""

Stamp = tuple[object, ...]
T = TypeVar("T")


def stamp(files: Sequence[str | Path]) -> Stamp:
    """Return a value that changes when one of the files does. Links are followed."""
    found: list[object] = []
    for file in files:
        try:
            status = Path(file).stat()
            found.append((status.st_mtime_ns, status.st_ino, status.st_size))
        except OSError:
            found.append(None)
    return tuple(found)


class FromFiles(Generic[T]):
    """What is made of some files, made again when one of them changes. Thread-safe."""

    def __init__(self, files: Sequence[str | Path], make: Callable[[], T]) -> None:
        self._files, self._make = files, make
        self._lock = threading.Lock()
        self._stamp: Stamp = stamp(files)
        self._made: T = make()

    def now(self) -> T:
        """Return it. What cannot be made keeps the one before."""
        with self._lock:
            found = stamp(self._files)
            if found != self._stamp:
                self._stamp = found
                try:
                    self._made = self._make()
                except (OSError, ValueError) as error:
                    log.error("a changed certificate is not taken: %s", error)
                else:
                    log.warning("took renewed certificates: %s", ", ".join(map(str, self._files)))
            return self._made


# Listeners, over TCP and HTTP


class Listening(ssl.SSLContext):
    """The context of a listener. Each handshake uses the files as they are then."""

    _calls: list[tuple[str, tuple[Any, ...]]]
    _watched: FromFiles[ssl.SSLContext] | None

    def __new__(cls, *args: Any) -> Listening:
        """Make the context that FLARE fills."""
        self = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        self._calls, self._watched = [], None
        self.num_tickets = 0
        self.options |= ssl.OP_NO_TICKET
        self.sni_callback = _swap
        return self

    def load_verify_locations(self, cafile: Any = None, *rest: Any, **more: Any) -> None:
        """Remember the file, besides loading it."""
        super().load_verify_locations(cafile, *rest, **more)
        self._calls.append(("load_verify_locations", (cafile,)))

    def load_cert_chain(self, certfile: Any, keyfile: Any = None, password: Any = None) -> None:
        """Remember the files, besides loading them."""
        super().load_cert_chain(certfile, keyfile, password)
        self._calls.append(("load_cert_chain", (certfile, keyfile)))

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        """Remember the names, besides setting them."""
        super().set_alpn_protocols(alpn_protocols)
        self._calls.append(("set_alpn_protocols", (list(alpn_protocols),)))

    def now(self) -> ssl.SSLContext:
        """Return a context with the files as they are now."""
        if self._watched is None:
            files = [file for name, files in self._calls if name.startswith("load") for file in files if file]
            self._watched = FromFiles(files, self._made)
        return self._watched.now()

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self.minimum_version
        context.verify_mode = self.verify_mode
        for name, arguments in self._calls:
            getattr(context, name)(*arguments)
        return context


def _swap(connection: Any, name: str | None, context: ssl.SSLContext) -> int | None:
    """Called by OpenSSL at the begin of each handshake, whether the client names a server or not.

    Returns: the alert that ends it, for a session of TLS 1.2. OpenSSL keeps those, and Python cannot say no.
    """
    if isinstance(context, Listening):
        if connection.session_reused:
            return ssl.AlertDescription.ALERT_DESCRIPTION_ACCESS_DENIED
        connection.context = context.now()
    return None


# Listeners, over gRPC


def grpc_credentials(params: dict[str, Any]) -> grpc.ServerCredentials:
    """Replace FLARE's function: gRPC asks for the certificates at each handshake."""
    wanted = (DriverParams.CA_CERT, DriverParams.SERVER_CERT, DriverParams.SERVER_KEY)
    files = [str(params[name.value]) for name in wanted]
    mutual = params.get(DriverParams.CONNECTION_SECURITY.value) != ConnectionSecurity.TLS

    def made() -> grpc.ServerCertificateConfiguration:
        ca, certificate, key = (Path(file).read_bytes() for file in files)
        # gRPC would refuse everybody with a file that it cannot read.
        x509.load_pem_x509_certificates(ca)
        x509.load_pem_x509_certificates(certificate)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=ca)

    watched = FromFiles(files, made)
    used = watched.now()

    def newer() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        if (found := watched.now()) is used:
            return None
        used = found
        return found

    params[DriverParams.IMPLEMENTED_CONN_SEC.value] = f"Server {'mTLS' if mutual else 'TLS'}: renewed"
    return grpc.dynamic_ssl_server_credentials(used, newer, mutual)


# Signatures


class Trusted:
    """The CAs of a kit's file, as it is now, in place of any that was in it before."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ever: set[bytes] = set()
        self._watched = FromFiles([file], self._read)

    def instead_of(self, roots: Sequence[x509.Certificate]) -> list[x509.Certificate]:
        """Return the CAs to trust where FLARE trusts `roots`."""
        now = self._watched.now()
        if now and all(_mark(root) in self._ever for root in roots):
            return now
        return list(roots)

    def _read(self) -> list[x509.Certificate]:
        if not self._file.exists():
            return []  # Not in a container, as in FLARE's simulator.
        found = x509.load_pem_x509_certificates(self._file.read_bytes())
        self._ever |= {_mark(root) for root in found}
        return found


def _mark(certificate: x509.Certificate) -> bytes:
    return certificate.fingerprint(hashes.SHA256())


class Identity(IdentityAsserter):  # type: ignore[misc]
    """How the server introduces itself, with its certificate as it is now."""

    def __init__(self, private_key_file: str, cert_file: str) -> None:
        self._watched = FromFiles([cert_file], lambda: self._read(cert_file))
        super().__init__(private_key_file, cert_file)

    @staticmethod
    def _read(file: str) -> tuple[bytes, x509.Certificate]:
        content = Path(file).read_bytes()
        return content, x509.load_pem_x509_certificate(content)

    @property
    def cert_data(self) -> bytes:
        """The file's content."""
        return self._watched.now()[0]

    @cert_data.setter
    def cert_data(self, value: bytes) -> None:
        """Leave out what FLARE has read at the start."""

    @property
    def cert(self) -> x509.Certificate:
        """The certificate."""
        return self._watched.now()[1]

    @cert.setter
    def cert(self, value: x509.Certificate) -> None:
        """Leave out what FLARE has read at the start."""


def install() -> None:
    """Take renewed certificates in this process."""
    trusted = Trusted(KIT / "rootCA.pem")
    replaced.replace(replaced.CA_STORE, lambda store: lambda roots: store(trusted.instead_of(roots)))
    replaced.replace(replaced.OWN_IDENTITY, lambda _: Identity)
    replaced.replace(replaced.GRPC_LISTENER, lambda _: grpc_credentials)
