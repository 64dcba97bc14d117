"""Exit 0 if a participant answers on a port of this container over TLS, with this kit's certificate.

Called as: python -I -S tls_answer.py PORT

Part of the health check: it imports little, and only from the standard library.
"""

import socket
import ssl
import sys

KIT = "/kit/startup/"
TIMEOUT = 3.0
"""Seconds. A local handshake takes some milliseconds."""
REFUSED_WITHIN = 0.2
"""Seconds after a handshake within which a server refuses, if it sends no greeting."""


def main(port: int) -> str:
    """Return what is wrong, or an empty string."""
    context = ssl.create_default_context(cafile=KIT + "rootCA.pem")
    # The name does not matter: the certificate must be exactly the kit's.
    context.check_hostname = False
    context.load_cert_chain(KIT + "server.crt", KIT + "server.key")
    context.set_alpn_protocols(["h2"])
    with open(KIT + "server.crt") as file:  # noqa: PTH123 (pathlib takes as long to import as all the rest)
        ours = ssl.PEM_cert_to_DER_cert(file.read())
    try:
        with (
            socket.create_connection(("127.0.0.1", port), TIMEOUT) as plain,
            context.wrap_socket(plain) as tls,
        ):
            if tls.getpeercert(binary_form=True) != ours:
                return f"another certificate than the kit's answers on port {port}"
            # In TLS 1.3 the server refuses a client after the handshake. gRPC greets at once, the other
            # schemes say nothing.
            greets = tls.selected_alpn_protocol() == "h2"
            tls.settimeout(TIMEOUT if greets else REFUSED_WITHIN)
            try:
                closed = not tls.recv(1)
            except TimeoutError:
                if greets:
                    raise
                closed = False
            if closed:
                return f"port {port} closes the connection after the handshake"
    except OSError as error:
        return f"no answer on port {port}: {error}"
    return ""


if __name__ == "__main__":
    problem = main(int(sys.argv[1]))
    print(problem or "answers")
    sys.exit(bool(problem))
