"""A `docker` command that answers as it is told, kits with real certificates, a link to a made-up server."""

from __future__ import annotations

import datetime
import ipaddress
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from bridge.relay.calls import Call, Response

SCRIPT = """\
#!{python} -IS
import json, pathlib, sys
here = pathlib.Path(__file__).parent
said = " ".join(sys.argv[1:])
with (here / "{name}.calls").open("a") as calls:
    calls.write(said + "\\n")
answers = json.loads((here / "{name}.json").read_text())
# The longest beginning that fits is the one that was meant.
fits = [words for words in answers if said.startswith(words)]
if not fits:
    sys.exit(f"{name} {{said}}: nobody told me what to answer")
answer = answers[max(fits, key=len)]
needs = answer.get("needs")
if needs and not pathlib.Path(needs).exists():
    answer = {{"err": "Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", "code": 1}}
if "creates" in answer:
    pathlib.Path(answer["creates"]).touch()
sys.stdout.write(answer.get("out", ""))
sys.stderr.write(answer.get("err", ""))
sys.stdout.flush()
if "sleep" in answer:
    import time
    time.sleep(answer["sleep"])
sys.exit(answer.get("code", 0))
"""

HEALTHY = {
    "version --format {{.Server": {"out": "27.1.0 amd64\n"},
    "version --format {{.Client": {"out": "20.10.24\n"},
    "buildx version": {"code": 1, "err": "docker: 'buildx' is not a docker command.\n"},
    "compose version": {"out": "2.29.1\n"},
    "image inspect": {"out": "1029000000\n"},
    "image inspect --format {{.Id}} flowerbed-base": {"code": 1},
    "image prune": {},
    "info --format {{.DockerRootDir": {"out": "/\n"},
}
"""What an engine that is well, with Compose and a CLI that can build, answers."""


class Program:
    """A program on a PATH of its own, that answers by how it is called."""

    def __init__(self, folder: Path, name: str = "docker", answers: dict[str, Any] | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.name = folder, name
        self.answers: dict[str, Any] = dict(HEALTHY if answers is None else answers)
        self._save()
        program = folder / name
        program.write_text(SCRIPT.format(python=sys.executable, name=name))
        program.chmod(0o755)

    def answer(self, words: str, **answer: Any) -> None:
        """Answer a call that begins with `words`: out, err, code, needs (a file), creates (a file), sleep."""
        self.answers[words] = answer
        self._save()

    def _save(self) -> None:
        (self.folder / f"{self.name}.json").write_text(json.dumps(self.answers))

    @property
    def calls(self) -> list[str]:
        """How it was called, in order."""
        file = self.folder / f"{self.name}.calls"
        return file.read_text().splitlines() if file.exists() else []


class Authority:
    """A CA that signs kits."""

    def __init__(self, name: str = "flowerbed") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = name
        self.certificate = self._sign(name, self.key, 3650)

    def _sign(self, subject: str, key: ec.EllipticCurvePrivateKey, days: float) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]),
            subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(days=400),
            not_valid_after=now + datetime.timedelta(days=days),
        )
        builder = builder.add_extension(
            x509.BasicConstraints(ca=subject == self.name, path_length=None), True
        ).add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        return builder.sign(self.key, hashes.SHA256())

    def kit(self, folder: Path, role: str = "client", days: float = 300) -> None:
        """Write a kit's certificates and key into FOLDER/startup."""
        startup = folder / "startup"
        startup.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (startup / f"{role}.key").write_bytes(pem)
        (startup / f"{role}.crt").write_bytes(self._sign(folder.name, key, days).public_bytes(Encoding.PEM))
        (startup / "rootCA.pem").write_bytes(self.certificate.public_bytes(Encoding.PEM))


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
                "build": {"args": {"KIT": kit.relative_to(root).as_posix()}},
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
        for words in ("compose config", "compose --profile elsewhere config"):
            docker.answer(words, out=json.dumps({"name": "flowerbed", "services": services}))
        self.running()

    def running(self, **health: str) -> None:
        """Say which services run, and how healthy they are."""
        lines = [
            {"Service": name, "Name": f"flowerbed-{name}-1", "State": "running", "Health": value}
            for name, value in health.items()
        ]
        self.docker.answer("compose ps", out="".join(json.dumps(line) + "\n" for line in lines))


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
