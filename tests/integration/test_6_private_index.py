"""An app's packages come from an index with a password, and the password is left nowhere."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts import uv
from tests.federation import Federation
from tests.integration.test_6_environments import build, forget, with_requirements

PASSWORD = "of-the-private-index-5e6f"
WHEEL = "flowerbed_private-1.0-py3-none-any.whl"
PARTS = {
    "flowerbed_private.py": "VALUE = 1\n",
    "flowerbed_private-1.0.dist-info/METADATA": "Metadata-Version: 2.1\n"
    "Name: flowerbed-private\nVersion: 1.0\n",
    "flowerbed_private-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "flowerbed_private-1.0.dist-info/RECORD": "",
}


@dataclass
class Index:
    """An index of one package, for clients that know the password."""

    wheel: bytes
    served: list[str] = field(default_factory=list)
    seen: set[bytes] = field(default_factory=set)
    """Command lines of this machine, the containers' among them, in which the password stood meanwhile."""
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        self.seen |= {line for line in command_lines() if PASSWORD.encode() in line}
        known = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
        pages = {
            "/simple/flowerbed-private/": f'<a href="/{WHEEL}">{WHEEL}</a>'.encode(),
            f"/{WHEEL}": self.wheel,
        }
        allowed = request.headers["Authorization"] == f"Basic {known}"
        body = pages.get(request.path)
        request.send_response(401 if not allowed else 404 if body is None else 200)
        if not allowed:
            request.send_header("WWW-Authenticate", 'Basic realm="index"')
        elif body is not None:
            self.served.append(request.path)
            request.send_header(
                "Content-Type", "text/html" if request.path.endswith("/") else "application/zip"
            )
        request.send_header("Content-Length", str(len(body or b"")) if allowed else "0")
        request.end_headers()
        request.wfile.write((body or b"") if allowed else b"")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """Run the index on loopback."""
    file = tmp_path / WHEEL
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in PARTS.items():
            # The same each time, and so is the environment's name.
            archive.writestr(zipfile.ZipInfo(name), text)
    made = Index(file.read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://user:{PASSWORD}@127.0.0.1:{server.server_port}/simple"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()


def command_lines() -> Iterator[bytes]:
    """Yield the command lines of all processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield (folder / "cmdline").read_bytes()


def test_a_package_of_an_index_with_a_password_which_is_left_nowhere(
    checkout: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Index
) -> None:
    began = time.time()
    app = with_requirements(tmp_path / "app", '"flwr", "numpy", "flowerbed-private==1.0"')
    client = app / "numpyadd" / "client_app.py"
    client.write_text(f"import flowerbed_private\n{client.read_text()}")
    (tmp_path / "pip.conf").write_text(f"[global]\nextra-index-url = {index.url}\n")
    with monkeypatch.context() as patch:
        patch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
        dry = checkout.must("build", "--app", str(app), "--dry-run", timeout=900)["environments"]
    assert dry[0]["packages"]["flowerbed-private"] == "1.0"

    monkeypatch.setenv("UV_INDEX", index.url)
    forget(app)
    made = build(checkout, app)
    assert "flowerbed_private" in made["imports"] and f"/{WHEEL}" in index.served
    assert index.seen == set()
    files = [path for path in files_below(uv.ENVIRONMENTS / uv.CACHE) if path.stat().st_mtime >= began]
    files += files_below(uv.ENVIRONMENTS / made["name"])
    assert files and [path for path in files if PASSWORD.encode() in path.read_bytes()] == []


def files_below(folder: Path) -> list[Path]:
    """All files, without links."""
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
