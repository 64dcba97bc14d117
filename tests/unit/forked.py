"""Programs that are started often: each is a copy of a process that has imported FLARE already.

Importing it takes most of the time of a program that provisions. What a checkout brings itself (`scripts`,
`provisioning`) is imported by each copy, from that checkout.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SHORT_KEYS = """
import functools
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
make, load = rsa.generate_private_key, serialization.load_pem_private_key
rsa.generate_private_key = lambda public_exponent, key_size, backend=None: make(public_exponent, 1024)
serialization.load_pem_private_key = functools.partial(load, unsafe_skip_rsa_key_validation=True)
"""
"""Keys that are no less new, made and read fast. `test_certificates.py` looks at those that are used."""

PROGRAM = (
    SHORT_KEYS
    + """
import gc, importlib, json, os, runpy, subprocess, sys, tempfile
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
# A copy looks for no garbage in what it shares, or it would copy that.
gc.freeze()

def copy(cwd, module, arguments, out, err, env):
    "Run a module in a copy of this process; return its exit code."
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for file, number in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(file, number)
    os.chdir(cwd)
    os.environ.update(env)
    sys.path.insert(0, str(cwd))
    sys.argv = [module, *arguments]
    sys.stdin = open(0)
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

start = subprocess.run

def run(words, **options):
    "The verb starts FLARE as a program: that is a copy too."
    if words[1:4] != ["-P", "-m", "nvflare.cli"]:
        return start(words, **options)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        code = copy(options["cwd"], words[3], words[4:], out.fileno(), err.fileno(), {})
        said = [os.pread(file.fileno(), 10**7, 0) for file in (out, err)]
    return subprocess.CompletedProcess(words, code, *said)

subprocess.run = run
for line in sys.stdin:
    cwd, module, arguments, out, err, env = json.loads(line)
    with open(out, "wb") as out, open(err, "wb") as err:
        code = copy(cwd, module, arguments, out.fileno(), err.fileno(), env)
    print(code, flush=True)
"""
)

PRELOADED = (
    "dotenv",
    "typer.core",
    "rich.console",
    "nvflare.cli",
    "nvflare.lighter.provision",
    "nvflare.lighter.impl.static_file",
    "nvflare.lighter.impl.workspace",
    "nvflare.tool.agent.inspector",
    "nvflare.tool.install_skills",
    "bridge.common.connect_through",
    "bridge.common.offers",
    "bridge.common.own_key",
    "bridge.common.server_address",
    "bridge.common.site_service",
)


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that is copied."""
    command = [sys.executable, "-P", "-c", PROGRAM, json.dumps(PRELOADED)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    """End it with the tests of a file that imports this: others look for what they have left running."""
    yield
    if _server.cache_info().currsize:
        with _server() as server:
            assert server.stdin is not None
            server.stdin.close()
        _server.cache_clear()


def run(cwd: Path, module: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` in `cwd`, in such a copy, with more variables `env`."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    files = [cwd.parent / f"{cwd.name}.{name}" for name in ("out", "err")]
    server.stdin.write(json.dumps([str(cwd), module, arguments, *map(str, files), env]) + "\n")
    server.stdin.flush()
    code = int(server.stdout.readline())
    out, err = (file.read_text() for file in files)
    for file in files:
        file.unlink()
    return subprocess.CompletedProcess([module, *arguments], code, out, err)
