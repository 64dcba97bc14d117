"""Fakes: a `docker` command with given answers, kits with real certificates, a link to an imitated server."""

from __future__ import annotations

import datetime
import ipaddress
import json
import shlex
import tomllib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from bridge.common import app_environment
from bridge.relay.calls import Call, Response

SCRIPT = """\
#!/bin/sh
printf '%s\\n' "$*" >> "${{0%/*}}/{name}.calls"
case "$*" in
{cases}
*) echo "{name} $*: nobody told me what to answer" >&2; exit 1;;
esac
"""
"""A shell's program, since it starts in no time."""
HASH = "a" * 64
"""Compose's hash of each container."""
NO_ENGINE = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock."


def versions(client: str = "20.10.24") -> str:
    """Return `docker version`'s answer in JSON."""
    server = {"Version": "27.1.0", "Arch": "amd64"}
    return json.dumps({"Client": {"Version": client}, "Server": server})


def inspected(**labels: str) -> str:
    """Return `docker image inspect`'s answer."""
    return json.dumps([{"Size": 1029000000, "Config": {"Labels": labels}}])


HEALTHY = {
    "version --format": {"out": versions()},
    "buildx version": {"code": 1, "err": "docker: 'buildx' is not a docker command.\n"},
    "compose version": {"out": "2.29.1\n"},
    "image inspect": {"out": inspected()},
    "image inspect flowerbed-base": {"code": 1},
    "image prune": {},
    "image ls": {},
    "create": {"out": "c0ffee\n"},
    "cp -": {},
    "commit": {},
    "rm c0ffee": {},
    "info --format": {"out": json.dumps({"DockerRootDir": "/", "SystemTime": "2026-01-02T03:04:05Z"})},
}
"""Answers of a healthy engine, with Compose and a CLI that can build."""


class Program:
    """A program alone on a PATH. Its answer depends on its arguments."""

    def __init__(self, folder: Path, name: str = "docker", answers: dict[str, Any] | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.name = folder, name
        self.answers: dict[str, Any] = dict(HEALTHY if answers is None else answers)
        self._save()

    def answer(self, words: str, **answer: Any) -> None:
        """Answer a call that begins with `words`: out, err, code, needs (a file), creates (a file), sleep."""
        self.answers[words] = answer
        self._save()

    def _save(self) -> None:
        # The longest beginning that fits is the one that was meant.
        words = sorted(self.answers, key=len, reverse=True)
        cases = "\n".join(f"{shlex.quote(word)}*) {_steps(self.answers[word])};;" for word in words)
        new = self.folder / f"{self.name}.new"
        new.write_text(SCRIPT.format(name=self.name, cases=cases))
        new.chmod(0o755)
        new.replace(self.folder / self.name)  # One that runs reads on in the old one.

    @property
    def calls(self) -> list[str]:
        """Return its calls, in order."""
        file = self.folder / f"{self.name}.calls"
        return file.read_text().splitlines() if file.exists() else []


def _steps(answer: dict[str, Any]) -> str:
    """Return the shell's steps for an answer."""
    steps = []
    if answer.get("needs"):
        lacks = f"printf %s {shlex.quote(NO_ENGINE)} >&2; exit 1"
        steps.append(f"[ -e {shlex.quote(str(answer['needs']))} ] || {{ {lacks}; }}")
    if "creates" in answer:
        steps.append(f": > {shlex.quote(str(answer['creates']))}")
    for key, where in (("out", ""), ("err", " >&2")):
        if answer.get(key):
            steps.append(f"printf %s {shlex.quote(answer[key])}{where}")
    if "sleep" in answer:
        steps.append(f"/bin/sleep {answer['sleep']}")
    return "; ".join([*steps, f"exit {answer.get('code', 0)}"])


class Authority:
    """A CA that signs kits."""

    def __init__(self, name: str = "flowerbed", names: Sequence[str] = ("127.0.0.1",)) -> None:
        self.names = names
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = name
        self.certificate = self._sign(name, self.key, 3650)

    def _sign(
        self, subject: str, key: ec.EllipticCurvePrivateKey, days: float, since: float = 400
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]),
            subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(days=since),
            not_valid_after=now + datetime.timedelta(days=days),
        )
        builder = builder.add_extension(
            x509.BasicConstraints(ca=subject == self.name, path_length=None), True
        ).add_extension(x509.SubjectAlternativeName([_general_name(name) for name in self.names]), False)
        return builder.sign(self.key, hashes.SHA256())

    def kit(self, folder: Path, role: str = "client", days: float = 300, since: float = 400) -> None:
        """Write a kit's certificates and key into FOLDER/startup."""
        startup = folder / "startup"
        startup.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (startup / f"{role}.key").write_bytes(pem)
        certificate = self._sign(folder.name, key, days, since)
        (startup / f"{role}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        (startup / "rootCA.pem").write_bytes(self.certificate.public_bytes(Encoding.PEM))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def environment(root: Path, name: str = "0123456789ab", app: Path | None = None, **facts: Any) -> Path:
    """Write the description of an app's environment into `root`, made for what `app` asks for."""
    keys = [app_environment.key(tomllib.loads((app / "pyproject.toml").read_text()))] if app else []
    known = {"flwr": "1.42.0", "python": "3.11", "gpu": False, "apt": [], "libraries": [], "packages": 3}
    known |= {"bytes": 1000, "made": 1.0, "apps": [], "keys": keys, **facts}
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / app_environment.DESCRIPTION).write_text(json.dumps(known))
    return root / name


def _up(health: str) -> str:
    """Return `docker ps`'s line for a running container."""
    return (
        f"Up 3 minutes ({'health: ' if health == 'starting' else ''}{health})" if health else "Up 3 minutes"
    )


class Checkout:
    """A root folder with a federation of a server, a site and an admin, as Compose resolves it."""

    def __init__(self, root: Path, docker: Program, port: int = 8002) -> None:
        self.root, self.docker = root, docker
        self.authority = Authority()
        (root / "jobs").mkdir()
        (root / "data" / "site-1").mkdir(parents=True)
        prod = root / "workspace" / "flowerbed" / "prod_00"
        self.kits = {"server": prod / "server", "site-1": prod / "site-1", "admin": prod / "admin@x.example"}
        for name, kit in self.kits.items():
            self.authority.kit(kit, "server" if name == "server" else "client")
        (prod / "compose.yaml").touch()
        services: dict[str, Any] = {
            name: {
                "image": f"flowerbed-{name}:dev",
                "labels": {"org.flowerbed.participant": kit.name},
                "volumes": [],
            }
            for name, kit in self.kits.items()
        }
        services["server"]["ports"] = [{"host_ip": "127.0.0.1", "published": str(port), "target": 8002}]
        site = {"type": "bind", "source": str(root / "data" / "site-1"), "target": "/data"}
        services["site-1"]["volumes"] = [site]
        self.env = root / ".env"
        self.env.write_text(
            "COMPOSE_PROJECT_NAME=flowerbed\nFLOWERBED_COMPOSE=workspace/flowerbed/prod_00/compose.yaml\n"
            "FLOWERBED_TAG=dev\n"
        )
        docker.answer("compose config", out=json.dumps({"name": "flowerbed", "services": services}))
        self.running()
        self.edited()

    def edited(self, *services: str) -> None:
        """Set the services with another part of the Compose file than when their containers were made."""
        lines = [f"{name} {'b' * 64 if name in services else HASH}\n" for name in self.kits]
        self.docker.answer("compose --profile * config --hash", out="".join(lines))

    def running(self, **health: str) -> None:
        """Say which services run, and how healthy they are. The server's port is 8002."""
        lines = [
            {
                "Service": name,
                "Name": f"flowerbed-{name}-1",
                "State": "running",
                "Status": _up(value),
                "Image": f"flowerbed-{name}:dev",
                "Ports": "127.0.0.1:8002->8002/tcp" if name == "server" else "",
                "Hash": HASH,
            }
            for name, value in health.items()
        ]
        self.docker.answer("ps --all --format", out="".join(json.dumps(line) + "\n" for line in lines))


Server = Callable[[Call], Awaitable[Response]]


class Link:
    """A `relay.Link` that never fails, with `server` at its end."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def send(self, call: Call) -> Response:
        """See `relay.Link`."""
        return await self._server(call)

    async def probe(self) -> None:
        """See `relay.Link`."""


def signed_kit_certificate(name: str, role: str) -> bytes:
    """A person's certificate with a role, as FLARE's provisioner writes it."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.UNSTRUCTURED_NAME, role)]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)
