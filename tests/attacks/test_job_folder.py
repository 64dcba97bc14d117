"""A job folder that is handed to an admin writes nothing, and nothing is imported from where jobs write."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from scripts.console import PAYLOAD, PROGRAM
from tests.federation import Federation

CONSOLE = (*PROGRAM, json.dumps({"verb": "submit"}), PAYLOAD)


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for entry, content in entries:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def named(name: object) -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo("meta.json"), json.dumps({"name": name, "min_clients": 1}).encode()


EVIL = b"open('/workspace/stolen', 'w').close()\n"

FOLDERS = {
    "a name that is a path": tar(named("/workspace/nvflare"), (tarfile.TarInfo("__init__.py"), EVIL)),
    "a name that leads out": tar(named("../../workspace/bridge"), (tarfile.TarInfo("__init__.py"), EVIL)),
    "a name that is none": tar(named(["x"])),
    "a path": tar((tarfile.TarInfo("/workspace/nvflare/__init__.py"), EVIL)),
    "a path that leads out": tar((tarfile.TarInfo("../../workspace/numpy.py"), EVIL)),
    "a link": tar((link("out", "/workspace"), b""), (tarfile.TarInfo("out/numpy.py"), EVIL)),
    "a hard link": tar((link("meta.json", "/workspace/startup/fed_admin.json", tarfile.LNKTYPE), b"")),
    "a device": tar((link("x", "", tarfile.CHRTYPE), b"")),
}


def console(federation: Federation, content: bytes) -> tuple[int, str]:
    """Hand a tar to the admin's console program itself, past what the host's side looks at."""
    command = ["docker", "exec", "-i", federation.container("admin"), *CONSOLE]
    process = subprocess.run(command, input=content, capture_output=True, timeout=60, check=False)
    return process.returncode, process.stderr.decode()


@pytest.mark.parametrize("what", FOLDERS)
def test_a_job_folder_writes_nothing_in_the_admins_console(federation: Federation, what: str) -> None:
    listing = ("sh", "-c", "cd /workspace && find . -not -path './tmp*' | sort")
    before = federation.exec("admin", *listing)
    code, said = console(federation, FOLDERS[what])
    assert code == 2 and "expected" in said and "Traceback" not in said, said
    assert federation.exec("admin", *listing) == before


def test_the_verb_refuses_such_a_name_before_anything_is_sent(federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"name": "/workspace/nvflare"}))
    outcome = federation.verb("submit", str(tmp_path))
    assert outcome.code == 2 and "'/workspace/nvflare': expected letters" in outcome.value["error"]


def test_verbs_import_nothing_from_the_consoles_volume(federation: Federation) -> None:
    plant = 'mkdir -p nvflare bridge && echo "$0" | tee nvflare/__init__.py bridge/__init__.py > numpy.py'
    try:
        federation.exec("admin", "sh", "-c", f"cd /workspace && {plant}", EVIL.decode())
        federation.must("jobs")
        found = federation.exec("admin", "sh", "-c", "ls /workspace/stolen 2>/dev/null || true")
        assert found == "", "code from the volume has run"
    finally:
        federation.exec("admin", "sh", "-c", "cd /workspace && rm -rf nvflare bridge numpy.py stolen")


LOOK = r"""
import json, os, pathlib
found = []
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        words = (folder / "cmdline").read_bytes().split(b"\0")[:-1]
        lines = (folder / "environ").read_bytes().split(b"\0")
        variables = dict(line.partition(b"=")[::2] for line in lines if b"=" in line)
        cwd = os.readlink(folder / "cwd")
    except OSError:
        continue
    if not words or b"python" not in words[0] or int(folder.name) == os.getpid():
        continue
    text = [word.decode() for word in words]
    options = [word for word in text[1:4] if word.startswith("-") and not word.startswith("--")]
    script = next((word for word in text[1:] if not word.startswith("-")), "") if "-m" not in options else ""
    safe = b"PYTHONSAFEPATH" in variables or bool({"-P", "-I"} & set(options)) or script.startswith("/opt/")
    path = variables.get(b"PYTHONPATH", b"").decode().split(":")
    found.append([" ".join(text)[:200], safe, path, cwd])
print(json.dumps(found))
"""


def test_no_process_imports_from_its_working_directory_or_from_a_job(federation: Federation) -> None:
    """Check the start of FLARE's own processes of a job: they take the job's folder `custom` from their path
    before the app's first process exists (`tests/unit/test_import_path.py`)."""
    words = ("--rounds", "2", "--run-config", "train-seconds=4", "--sites", "site-1,site-2")
    job = federation.submit("numpy-add", *words)
    seen: dict[str, list[list[Any]]] = {}
    try:
        deadline = time.monotonic() + 60
        while len(seen) < 2 and time.monotonic() < deadline:
            for service in ("server", "site-1"):
                found = json.loads(federation.exec(service, "python", "-P", "-c", LOOK))
                if any("flwr" in line for line, *_ in found):
                    seen[service] = found
            time.sleep(0.5)
    finally:
        federation.must("wait", job)
    assert set(seen) == {"server", "site-1"}
    for service, found in seen.items():
        for line, safe, path, cwd in found:
            assert safe, f"{service}: {line} imports from {cwd}"
            flares = "runner_process" in line or "worker_process" in line
            # FLARE's script names /local/custom, which is not there and cannot be: the root is read-only.
            # In /workspace/local/custom are the deployed apps, which only the server's operator can change.
            unwritable = ("/opt/", "/usr/", "/local/", "/workspace/local/custom")
            foreign = [part for part in path if not part.startswith(unwritable)]
            own = [part for part in foreign if flares and part.endswith("/custom")]
            assert foreign == own, f"{service}: {line} imports from {foreign}"
        for part in federation.exec(service, "sh", "-c", "ls -d /workspace/*/app_*/custom || true").split():
            assert set(federation.exec(service, "ls", part).split()) <= {"app.fab"}
