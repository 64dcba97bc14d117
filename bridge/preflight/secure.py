"""Check TLS: the certificate that answers is the federation's, and the server accepts this participant's."""

from __future__ import annotations

import contextlib
import email.utils
import ipaddress
import ssl
import time
from dataclasses import dataclass

from cryptography import x509

from bridge.common.finding import Finding
from bridge.common.text import one_line
from bridge.preflight import over_grpc
from bridge.preflight.kit import NEW_KIT, Kit, common_name
from bridge.preflight.reach import ANSWER_WITHIN, Stopped, Way

REFUSED_WITHIN = 1.0
"""Seconds after a handshake within which a server refuses a certificate, and some round trips on top."""

SAID_LIMIT = 120
"""Characters shown of a stranger's answer."""

HEAD_LIMIT = 16384
"""Bytes of an answer's head that are read."""

HTTP = "http/1.1"
"""The name of HTTP among TLS's protocols (ALPN)."""

HTTP_PATH = "/f3"
"""FLARE's path over http (nvflare 2.9.0 `fuel/f3/drivers/aio_http_driver.py`)."""

REASONS = {
    "UNKNOWN_CA": "it trusts another CA",
    "CERTIFICATE_EXPIRED": "it has expired, by the server's clock",
    "CERTIFICATE_REVOKED": "it was revoked",
    "CERTIFICATE_REQUIRED": "it got none, so something on the way removes it",
    "UNSUPPORTED_CERTIFICATE": "it is not for clients",
    "BAD_CERTIFICATE": "it is not a valid one",
    "CERTIFICATE_UNKNOWN": "it is not a valid one",
    "HANDSHAKE_FAILURE": "the handshake fails",
    "ACCESS_DENIED": "access is denied",
}
"""Ends of OpenSSL's names for a server's alerts, and their meaning."""

NOT_YET, EXPIRED, NAMES = 9, 10, (62, 64)
"""OpenSSL's numbers for what is wrong with a certificate (X509_V_ERR_...)."""

SKEW_WARN, SKEW_FAIL = 1.0, 5.0
"""Seconds between this clock and the server's. Flower refuses a site with a clock 5 s ahead."""

INSPECTS = "ask that TLS to {to} passes through without inspection"


@dataclass(frozen=True)
class Accepted:
    """The end of the checks: findings, and the server's time if it tells one."""

    finding: Finding
    ahead: float | None = None
    """Seconds by which this clock is ahead of the server's."""


def check_certificate(line: Way, kit: Kit) -> Finding:
    """Check that the certificate that answers is the federation's, and for the name that is dialled.

    Raises:
        Stopped: it is not.
    """
    try:
        found = _peer(line, kit, line.to.host)
    except OSError as error:
        raise Stopped(_no_tls(line, kit, error)) from None
    try:
        certificate = x509.load_der_x509_certificate(found)
    except ValueError as error:
        text = f"{line.to} answers with a certificate that cannot be read: {one_line(str(error), SAID_LIMIT)}"
        raise Stopped(Finding("tls", "fail", text, INSPECTS.format(to=line.to))) from None
    issuer, subject = common_name(certificate.issuer), common_name(certificate.subject)
    try:
        with _context(kit, verify=True).wrap_socket(line.open(), server_hostname=line.to.host) as tls:
            version = tls.version()
    except ssl.SSLCertVerificationError as error:
        raise Stopped(_not_ours(line, kit, certificate, error)) from None
    except OSError as error:
        raise Stopped(_no_tls(line, kit, error)) from None
    return Finding(
        "tls", "ok", f"{subject} answers for {line.to.host}, issued by our CA {issuer} ({version})"
    )


def check_admission(line: Way, kit: Kit) -> Accepted:
    """Check that the server or relay accepts this participant's certificate, as its side of TLS."""
    context = _context(kit, verify=True)
    try:
        with context.wrap_socket(line.open(), server_hostname=line.to.host) as tls:
            if kit.scheme == "http":
                return _over_http(tls, line, kit)
            # A server refuses after its side of the handshake. A gRPC server greets, others wait.
            within = REFUSED_WITHIN + 4 * line.seconds
            tls.settimeout(ANSWER_WITHIN if kit.scheme == "grpc" else within)
            try:
                closed = not tls.recv(1)
            except TimeoutError:
                closed = False
        if closed or (kit.scheme == "grpc" and over_grpc.is_closed(line, kit, within)):
            return Accepted(_closed(kit))
        return Accepted(_accepted(kit), ask_time(line, kit) if kit.scheme == "tcp" else None)
    except OSError as error:
        return Accepted(_refused(kit, error))


def _over_http(tls: ssl.SSLSocket, line: Way, kit: Kit) -> Accepted:
    """Open a WebSocket as FLARE does. The answer tells the server's time."""
    tls.settimeout(ANSWER_WITHIN)
    before = time.time()
    request = (
        f"GET {HTTP_PATH} HTTP/1.1\r\nHost: {line.to}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: Zmxvd2VyYmVkIGRvY3Rvcg==\r\n\r\n"
    )
    tls.sendall(request.encode())
    head = read_head(tls)
    if not head:
        return Accepted(_closed(kit))
    if not head.startswith("HTTP/1.1 101"):
        said = one_line(head.partition("\r\n")[0], SAID_LIMIT)
        text = f"the server does not open a connection for {kit.name}: {said}"
        return Accepted(Finding("admission", "fail", text, "ask the centre to look at the server's log"))
    tls.settimeout(REFUSED_WITHIN)
    try:
        # A connection that is refused is closed again at once: with a closing frame, or without.
        closed = tls.recv(1) in (b"", b"\x88")
    except TimeoutError:
        closed = False
    return Accepted(_closed(kit) if closed else _accepted(kit), _ahead(head, before))


def ask_time(line: Way, kit: Kit) -> float | None:
    """Return by how much this clock is ahead of the server's, over TCP, or None if the server does not tell.

    The server answers HTTP on the same port to those who ask for it in TLS (`bridge/flare/offers_door.py`).
    """
    context = _context(kit, verify=True)
    context.set_alpn_protocols([HTTP])
    with contextlib.suppress(OSError), context.wrap_socket(line.open(), server_hostname=line.to.host) as tls:
        if tls.selected_alpn_protocol() == HTTP:
            before = time.time()
            tls.sendall(f"HEAD / HTTP/1.1\r\nHost: {line.to}\r\nConnection: close\r\n\r\n".encode())
            return _ahead(read_head(tls), before)
    return None


def _ahead(head: str, before: float) -> float | None:
    """Return by how much this clock is ahead of the `Date` in an HTTP answer, which has whole seconds."""
    dates = [
        line.partition(":")[2].strip() for line in head.split("\r\n") if line.lower().startswith("date:")
    ]
    with contextlib.suppress(IndexError, TypeError, ValueError):
        theirs = email.utils.parsedate_to_datetime(dates[0]).timestamp()
        after = time.time()
        if theirs > after:
            return after - theirs
        return max(0.0, before - (theirs + 1))
    return None


def check_clock(ahead: float | None, upstream: str) -> Finding:
    """Compare this clock with the server's, if the server told its time."""
    if ahead is None:
        text = f"{upstream} tells its time only to registered sites, so the clocks were not compared"
        return Finding("clock", "ok", text)
    which = "ahead of" if ahead > 0 else "behind"
    mend = "turn on time synchronization on this machine (timedatectl set-ntp true)"
    if abs(ahead) > SKEW_FAIL:
        text = f"this clock is {abs(ahead):.0f} s {which} {upstream}'s. Flower refuses a site 5 s ahead"
        return Finding("clock", "fail", text, mend)
    if abs(ahead) > SKEW_WARN:
        return Finding("clock", "warn", f"this clock is {abs(ahead):.0f} s {which} {upstream}'s", mend)
    return Finding("clock", "ok", f"this clock agrees with {upstream}'s within {SKEW_WARN:.0f} s")


def _context(kit: Kit, *, verify: bool) -> ssl.SSLContext:
    """Return the context of a client, as FLARE's connections have it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    files = kit.files
    if verify:
        context.load_verify_locations(files["authorities"])
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    # A key that cannot be used is a finding about the kit. What answers can be seen without one.
    with contextlib.suppress(OSError):
        context.load_cert_chain(files["certificate"], files["key"])
    if kit.scheme == "grpc":
        context.set_alpn_protocols(["h2"])
    return context


def can_identify(kit: Kit) -> bool:
    """Return whether the kit's certificate and key can be used together."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(kit.files["certificate"], kit.files["key"])
    except OSError:
        return False
    return True


def _peer(line: Way, kit: Kit, name: str | None) -> bytes:
    """Return the certificate that answers, whoever signed it."""
    with _context(kit, verify=False).wrap_socket(line.open(), server_hostname=name) as tls:
        return tls.getpeercert(binary_form=True) or b""


def _no_tls(line: Way, kit: Kit, error: OSError) -> Finding:
    """Name what answers instead of TLS."""
    if isinstance(error, ssl.SSLError) and _reason(error):
        return _refused(kit, error)
    if said := _plain_answer(line):
        text = f"{line.to} answers without TLS: {said}. A firewall or another server answers"
        return Finding("tls", "fail", text, INSPECTS.format(to=line.to))
    with contextlib.suppress(OSError):
        _peer(line, kit, None)
        text = f"{line.to} ends TLS that names {line.to.host} (SNI), and answers without the name"
        return Finding("tls", "fail", f"{text}: a firewall filters by name", INSPECTS.format(to=line.to))
    if isinstance(error, TimeoutError):
        text = f"{line.to} takes the connection, and does not answer in TLS within {ANSWER_WITHIN:.0f} s"
        mend = f"at the centre: docker compose logs {kit.upstream}. Or {INSPECTS.format(to=line.to)}"
        return Finding("tls", "fail", text, mend)
    text = (
        f"{line.to} takes the connection, and closes it when TLS begins: a firewall lets no TLS pass, or a "
        "load balancer finds no server"
    )
    mend = f"{INSPECTS.format(to=line.to)}. At the centre: ./flowerbed status"
    return Finding("tls", "fail", text, mend)


def _plain_answer(line: Way) -> str:
    """Return the first line of what answers in plain text, or an empty string."""
    try:
        with line.open() as plain:
            plain.settimeout(REFUSED_WITHIN)
            with contextlib.suppress(TimeoutError):
                # Some speak first: mail servers, SSH.
                if first := plain.recv(SAID_LIMIT):
                    return one_line(first.decode("latin-1").partition("\n")[0].rstrip(), SAID_LIMIT)
                return ""
            plain.settimeout(ANSWER_WITHIN)
            plain.sendall(f"HEAD / HTTP/1.0\r\nHost: {line.to.host}\r\n\r\n".encode())
            first = plain.recv(SAID_LIMIT)
    except OSError:
        return ""
    # A TLS server answers plain text with an alert, which begins with these bytes.
    if not first or first[:2] == b"\x15\x03":
        return ""
    return one_line(first.decode("latin-1").partition("\n")[0].rstrip(), SAID_LIMIT)


def _not_ours(
    line: Way, kit: Kit, certificate: x509.Certificate, error: ssl.SSLCertVerificationError
) -> Finding:
    """Name what is wrong with a certificate."""
    if not any(_is_from(certificate, authority) for authority in kit.authorities):
        return _foreign(line, kit, certificate)
    mend = "at the centre: ./flowerbed renew. Or is this machine's clock wrong?"
    if error.verify_code == EXPIRED:
        text = f"the server's certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        return Finding("tls", "fail", text, mend)
    if error.verify_code == NOT_YET:
        text = f"the server's certificate begins at {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        mend = "turn on time synchronization (timedatectl set-ntp true)"
        return Finding("clock", "fail", f"{text}, so this machine's clock is behind", mend)
    host = line.to.host
    if error.verify_code in NAMES:
        text = f"the server's certificate is for {', '.join(_names(certificate))}, and this kit dials {host}"
        mend = f"at the centre: add {host} to host_names of the server in project.yml, then ./flowerbed up"
        return Finding("tls", "fail", text, mend)
    text = f"the certificate that answers is not valid: {error.verify_message}"
    return Finding("tls", "fail", text, "ask the centre to look at the server's certificate")


def _foreign(line: Way, kit: Kit, certificate: x509.Certificate) -> Finding:
    """Name who has issued a certificate that is not of our CA."""
    issuer = one_line(common_name(certificate.issuer), SAID_LIMIT)
    expected = [common_name(authority.subject) for authority in kit.authorities]
    if issuer in expected:
        text = f"the server has another CA with the name {issuer}: this kit was made by another provisioning"
        return Finding("tls", "fail", text, NEW_KIT.format(name=kit.name))
    if _is_for(certificate, line.to.host):
        text = f"a firewall inspects TLS: issuer seen '{issuer}', for {line.to.host}"
    else:
        subject = one_line(common_name(certificate.subject), SAID_LIMIT)
        text = f"another server answers, or a firewall inspects TLS: issuer seen '{issuer}', for '{subject}'"
    text += f". Expected our CA, {', '.join(expected)}"
    return Finding("tls", "fail", text, INSPECTS.format(to=line.to))


def _is_from(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # One of another kind of key raises errors of its own.
        return False
    return True


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return ["no name"]
    return [one_line(str(name.value), SAID_LIMIT) for name in names]


def _is_for(certificate: x509.Certificate, host: str) -> bool:
    with contextlib.suppress(ValueError):
        host = str(ipaddress.ip_address(host))
    domain = host.partition(".")[2]
    return bool({host, f"*.{domain}"} & set(_names(certificate)))


def _accepted(kit: Kit) -> Finding:
    return Finding("admission", "ok", f"{kit.upstream} accepts the certificate of {kit.name}")


def _closed(kit: Kit) -> Finding:
    text = f"{kit.upstream} closes the connection after the handshake, as for a participant that was removed"
    mend = (
        f"ask the centre whether {kit.name} is under revoked: in project.yml. If it was removed and is in "
        "again, ask for a new join file, since its old key stays refused"
    )
    return Finding("admission", "fail", text, mend)


def _refused(kit: Kit, error: OSError) -> Finding:
    reason = _reason(error) if isinstance(error, ssl.SSLError) else ""
    if not reason:
        why = error.strerror or str(error) or type(error).__name__
        text = f"{kit.upstream} ends the connection after the handshake ({why})"
        return Finding("admission", "fail", text, f"at the centre: docker compose logs {kit.upstream}")
    text = f"{kit.upstream} refuses the certificate of {kit.name}: {reason}"
    return Finding("admission", "fail", text, NEW_KIT.format(name=kit.name))


def _reason(error: ssl.SSLError) -> str:
    name = error.reason or ""
    if "ALERT" not in name:
        return ""
    return next((text for end, text in REASONS.items() if name.endswith(end)), name.lower().replace("_", " "))


def read_head(line: ssl.SSLSocket) -> str:
    """Return the head of an HTTP answer, as far as it comes in time."""
    head, deadline = b"", time.monotonic() + ANSWER_WITHIN
    while b"\r\n\r\n" not in head and len(head) < HEAD_LIMIT and time.monotonic() < deadline:
        part = line.recv(1)
        if not part:
            break
        head += part
    return head.decode("latin-1")
