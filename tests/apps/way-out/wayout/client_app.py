"""The client: tries each place, and reports at which of them anything came back.

tcp:HOST:PORT, udp:HOST:PORT    a connection, and a datagram with an answer
dns:NAME                        the container's resolver, asked for a name
gate:HOST:PORT                  a tunnel through the site's gate
moved:HOST:PORT                 the same, once the site's keeper was told that the server is there
"""

import errno
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context

WITHIN = 4.0
KEEPER_WITHIN = 8.0


def tcp(host, port):  # noqa: ANN001, ANN201
    with socket.create_connection((host, port), WITHIN) as line:
        # Linux 6.18 may tell the error only when it is asked again (`tests/reach.py`).
        error = line.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error not in (0, errno.ECONNRESET, errno.EPIPE):
        raise OSError(error, os.strerror(error))
    return True


def udp(host, port):  # noqa: ANN001, ANN201
    (family, kind, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    with socket.socket(family, kind) as line:
        line.settimeout(WITHIN)
        line.connect(address)
        line.send(b"out")
        return bool(line.recv(100))


def dns(name):  # noqa: ANN001, ANN201
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.settimeout(WITHIN)
        line.sendto(bytes.fromhex("123401000001000000000000") + labels + b"\0\0\1\0\1", ("127.0.0.11", 53))
        # 2 and 5: the resolver has asked nobody, or nobody answers it.
        return line.recv(512)[3] & 15 not in (2, 5)


def gate(host, port):  # noqa: ANN001, ANN201
    # Whatever the sandbox hides from an app, its network has a gate at this name.
    with socket.create_connection(("gate-inside", 3128), WITHIN) as line:
        line.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\n\r\n".encode())
        return b" 200 " in line.recv(200)


def moved(host, port):  # noqa: ANN001, ANN201
    Path("/spool/server.json").write_text(json.dumps({"host": host, "port": port}))
    end = time.monotonic() + KEEPER_WITHIN
    while time.monotonic() < end:
        if gate(host, port):
            return True
        time.sleep(0.5)
    return False


def reached(place):  # noqa: ANN001, ANN201
    kind, _, rest = place.partition(":")
    try:
        if kind == "dns":
            return dns(rest)
        host, _, port = rest.rpartition(":")
        return {"tcp": tcp, "udp": udp, "gate": gate, "moved": moved}[kind](host.strip("[]"), int(port))
    except ConnectionRefusedError:
        return True  # Somebody has said no.
    except OSError as error:
        print(f"{place}: {error!r}")
        return False


class TryingClient(NumPyClient):
    def __init__(self, places):  # noqa: ANN001, ANN204
        self.places = places

    def fit(self, parameters, config):  # noqa: ANN001, ANN201
        with ThreadPoolExecutor(32) as pool:
            found = list(pool.map(reached, self.places))
        # A bit for each, as a number that is exact for up to 53 places.
        return parameters, 10, {"reached": float(sum(1 << n for n, value in enumerate(found) if value))}


def client_fn(context: Context) -> Client:
    return TryingClient(str(context.run_config["places"]).split()).to_client()


app = ClientApp(client_fn=client_fn)
