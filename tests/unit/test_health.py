"""The server's health check: healthy is our own certificate on an open port, for a client that is let in."""

from __future__ import annotations

import importlib.util
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.faking import Authority

PROGRAM = Path(__file__).resolve().parents[2] / "images" / "tls_answer.py"


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    folder = tmp_path / "server"
    Authority().kit(folder, "server")
    return folder / "startup"


@pytest.fixture
def program(kit: Path) -> ModuleType:
    """The health check's program, looking at the kit here."""
    spec = importlib.util.spec_from_file_location("tls_answer", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(KIT=f"{kit}/", TIMEOUT=2.0)
    return module


@contextmanager
def serving(
    kit: Path, *, clients: Path | None = None, greeting: bytes = b"h2", alpn: bool = True
) -> Iterator[int]:
    """Run a TLS server with a kit's certificate, for one connection at a time, and yield its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kit / "server.crt", kit / "server.key")
    context.load_verify_locations((clients or kit) / "rootCA.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    if alpn:
        context.set_alpn_protocols(["h2"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        def serve() -> None:
            try:
                plain, _ = listener.accept()
                with context.wrap_socket(plain, server_side=True) as tls:
                    if greeting:
                        tls.sendall(greeting)
                    tls.recv(1)  # The client hangs up first.
            except OSError:
                return  # The client has gone, or was refused: it is the client that is tested.

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_health(program: ModuleType, kit: Path) -> None:
    with serving(kit) as port:
        assert program.main(port) == ""
    with serving(kit, alpn=False, greeting=b"") as port:
        assert program.main(port) == "", "a transport other than gRPC does not greet"


def test_nobody_listens(program: ModuleType) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "no answer on port" in program.main(port)


def test_somebody_else_listens(program: ModuleType, kit: Path, tmp_path: Path) -> None:
    Authority("elsewhere").kit(tmp_path / "other", "server")
    with serving(tmp_path / "other" / "startup") as port:
        assert "certificate verify failed" in program.main(port)


def test_another_kit_of_the_same_authority(tmp_path: Path) -> None:
    authority = Authority()
    authority.kit(tmp_path / "server", "server")
    authority.kit(tmp_path / "double", "server")
    code = f"import runpy, sys; m = runpy.run_path({str(PROGRAM)!r}); g = m['main'].__globals__; "
    code += f"g['KIT'] = {str(tmp_path / 'server' / 'startup') + '/'!r}; print(m['main'](int(sys.argv[1])))"
    with serving(tmp_path / "double" / "startup") as port:
        said = subprocess.run([sys.executable, "-c", code, str(port)], capture_output=True, text=True).stdout
    assert "another certificate than the kit's" in said


@pytest.mark.parametrize("alpn", [True, False])
def test_a_server_that_does_not_let_its_own_in(
    program: ModuleType, kit: Path, tmp_path: Path, alpn: bool
) -> None:
    Authority("elsewhere").kit(tmp_path / "other", "server")
    with serving(kit, clients=tmp_path / "other" / "startup", alpn=alpn, greeting=b"") as port:
        assert program.main(port) != ""
