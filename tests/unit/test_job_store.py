"""FLARE's job store keeps an app's results."""

from __future__ import annotations

import io
import logging
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from nvflare.apis.storage import StorageException
from nvflare.app_common.storages.filesystem_storage import FilesystemStorage
from nvflare.fuel.utils.zip_utils import unzip_all_from_file
from nvflare.private.fed.server.job_cmds import JobCommandModule

from bridge.common import disk, meta
from bridge.flare import job_store
from bridge.flare.console import jobs
from bridge.flare.job_store import JobStore


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job's folder with one honest result."""
    folder = tmp_path / "job"
    (folder / "serverapp" / "sub").mkdir(parents=True)
    (folder / "serverapp" / "model.npz").write_text("model")
    (folder / "serverapp" / "sub" / "more.txt").write_text("more")
    (folder / "log.txt").write_text("log")
    return folder


HONEST = {
    "serverapp/": "",
    "serverapp/model.npz": "model",
    "serverapp/sub/": "",
    "serverapp/sub/more.txt": "more",
    "log.txt": "log",
}


def stored(job: Path, store: FilesystemStorage | None = None) -> dict[str, str]:
    """Return the files of a download of the job, by name."""
    root = job.parent / "store"
    store = store or JobStore(root_dir=str(root))
    store.create_object("job", b"", {}, overwrite_existing=True)
    path = store.update_object("job", [str(job)], "workspace")
    assert not list(job.parent.glob("*.zip")), "the archive was moved"
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"event": "x"}\n{"event": "run ended", "reason": "it\\nis over", "t": 1}\n', "it"),
        ('{"event": "run ended", "reason": "\\u001b[2K", "t": 1}\n', r"\x1b[2K"),
        ('{"event": "run ended", "reason": "aborted", "t": 1}\n', None),
        ('{"event": "run ended", "reason": "", "t": 1}\n', None),
        ("torn {", None),
        (None, None),
    ],
)
def test_a_jobs_own_account_of_its_end_is_noted(job: Path, lines: str | None, said: str | None) -> None:
    if lines is not None:
        (job / meta.EVENTS_FILE).write_text(lines)
    store = JobStore(root_dir=str(job.parent / "store"))
    assert "serverapp/model.npz" in stored(job, store)
    assert store.get_meta("job").get(meta.SAID) == said
    assert jobs._entry(store.get_meta("job"))["reason"] == (said or "")


def test_files_come_as_flare_brings_them(job: Path) -> None:
    assert stored(job) == HONEST
    assert stored(job, FilesystemStorage(root_dir=str(job.parent / "store"))) == HONEST


def test_a_jobs_size_is_shown_and_freed(job: Path) -> None:
    root = job.parent / "store"
    store = JobStore(root_dir=str(root))
    (job / "serverapp" / "model").write_bytes(bytes(100_000))
    stored(job, store)
    found = store.get_meta("job")[meta.STORED]
    assert found == sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) > 100_000
    # It is looked up, not kept: what FLARE writes back is no older than what it reads.
    store.update_meta("job", {"status": "FINISHED:COMPLETED"}, replace=False)
    store.update_object("job", b"x" * 50_000, "LOG_site-1")
    assert store.get_meta("job")[meta.STORED] > found + 49_000
    assert store.get_meta("job")["status"] == "FINISHED:COMPLETED"
    store.delete_object("job")
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_no_link_brings_a_file_of_the_server(job: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = job.parent / "server.key"
    secret.write_text("secret")
    (job.parent / "other").mkdir()
    (job.parent / "other" / "mine.txt").write_text("another job's")
    for name, target in (("key", secret), ("gone", job / "nowhere"), ("zeros", Path("/dev/zero"))):
        (job / "serverapp" / name).symlink_to(target)
    (job / "serverapp" / "folder").symlink_to(job.parent / "other")

    with caplog.at_level(logging.WARNING):
        assert stored(job) == HONEST

    assert "4 links, pipes or devices are not part of the results" in caplog.text
    assert secret.read_text() == "secret" and (job.parent / "other" / "mine.txt").exists()


def test_a_link_that_comes_late_is_not_followed(job: Path) -> None:
    (job.parent / "server.key").write_text("secret")
    (job / "key").symlink_to(job.parent / "server.key")
    archive = job.parent / "late.zip"
    job_store._entries, entries = (
        lambda folder: iter([folder / "key", folder / "log.txt"]),
        job_store._entries,
    )
    try:
        job_store.pack([job], archive)
    finally:
        job_store._entries = entries
    assert zipfile.ZipFile(archive).namelist() == ["log.txt"]


@pytest.mark.timeout(60)
def test_no_pipe_holds_up_the_end_of_jobs(job: Path) -> None:
    os.mkfifo(job / "serverapp" / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(job)
        try:
            listener.bind("socket")
        finally:
            os.chdir(Path(__file__).parent)
        assert stored(job) == HONEST


def test_closed_and_deep_folders_are_stored_counted_and_removed(job: Path) -> None:
    """Run as a user without privileges, who is bound by the files' modes."""
    program = f"""
import encodings.cp437, os, shutil, sys, zipfile
from pathlib import Path
from tests.unit.test_job_store import HONEST, stored
from bridge.common import disk
from bridge.common.disk import remove
os.chown({str(job.parent)!r}, 10001, 10001)
for path in [*Path({str(job.parent)!r}).rglob('*')]: os.chown(path, 10001, 10001)
os.setgid(10001); os.setuid(10001)
job = Path({str(job)!r})
(job / 'closed').mkdir()
(job / 'closed' / 'in.txt').write_bytes(b'x' * 1_000_000)
(job / 'closed').chmod(0o300)
assert disk.used(job) > 1_000_000, disk.used(job)
(job / 'closed').chmod(0)
os.chdir(job / 'serverapp')
for _ in range(1500): os.mkdir('deep'); os.chdir('deep')
open('file', 'w').write('x')
os.chdir('/')
assert disk.used(job, 10**12) > 10**12
found = stored(job)
assert found['closed/in.txt'] == 'x' * 1_000_000
assert HONEST.items() <= found.items(), found.keys()
assert 'serverapp/' + 'deep/' * 60 in found and not any(name.endswith('file') for name in found)
(job / 'closed').chmod(0)
remove(job)
"""
    for folder in (job.parent, *job.parent.parents):
        if folder.stat().st_mode & 0o005 != 0o005 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    if os.getuid() != 0:
        pytest.skip("it takes root to become another user")
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert not job.exists()


def test_a_hole_counts_as_it_will_in_the_archive(job: Path) -> None:
    with (job / "sparse").open("wb") as file:
        file.truncate(300_000_000)
    assert disk.used(job) > 300_000_000
    shutil.rmtree(job)


MANY = """
import resource, sys
from bridge.flare.job_store import JobStore
from nvflare.private.fed.server.job_cmds import JobCommandModule
held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
content = JobStore(root_dir=sys.argv[1]).get_data("job", "workspace")
module = JobCommandModule()
print(module._extract_server_log_from_workspace_zip(content))
print(module._extract_client_logs_from_workspace_zip(content))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 32 * 1024)
"""


def test_a_log_is_read_without_the_results(job: Path) -> None:
    """FLARE reads the whole archive for it: a ServerApp with a file of holes ended the server by that."""
    store = JobStore(root_dir=str(job.parent / "store"))
    store.create_object("job", b"", {})
    path = Path(store.update_object("job", [str(job)], "workspace"))
    with zipfile.ZipFile(path, "a") as archive, archive.open("serverapp/hole", "w", force_zip64=True) as hole:
        for _ in range(150):
            hole.write(bytes(1 << 20))
    words = [sys.executable, "-P", "-c", MANY, str(job.parent / "store")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[:3] == ["log", "{}", "True"], done


def test_only_the_end_of_a_long_log_is_read(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_store, "LOG_END", 1000)
    (job / "log.txt").write_text("first\n" + "x" * 5000 + "\nlast\n")
    stored(job)
    content = JobStore(root_dir=str(job.parent / "store")).get_data("job", "workspace")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = archive.read("log.txt")
    assert len(found) == 1000 and found.endswith(b"x\nlast\n")


def test_no_app_writes_the_log_of_a_site(job: Path) -> None:
    """FLARE takes any `NAME/log.txt` in the results for it."""
    for name in ("site-1", "n" * 255, "server"):
        (job / "serverapp" / name).mkdir()
        (job / "serverapp" / name / "log.txt").write_text("FORGED")
    assert stored(job)["serverapp/site-1/log.txt"] == "FORGED", "it is a result all the same"
    content = JobStore(root_dir=str(job.parent / "store")).get_data("job", "workspace")
    module = JobCommandModule()
    assert module._extract_client_logs_from_workspace_zip(content) == {}
    assert module._extract_server_log_from_workspace_zip(content) == "log"


def test_results_that_are_none_are_flares_error(job: Path) -> None:
    store = JobStore(root_dir=str(job.parent / "store"))
    store.create_object("job", b"", {})
    with pytest.raises(StorageException, match="the results cannot be read"):
        store.get_data("job", "workspace")
    with pytest.raises(StorageException):
        store.get_data("nothing", "workspace")
    assert store.get_data("job") == b""


def test_each_name_can_be_stored_and_unpacked(job: Path) -> None:
    """A name that is not UTF-8 once kept its job running forever. FLARE unpacks none with a backslash."""
    folder = os.fsencode(job / "serverapp")
    for name in (b"\xff\xfe", b"a\\..\\b", "\u00e4".encode(), b"a\nb"):
        Path(os.fsdecode(folder + b"/" + name)).write_text("here")
    found = stored(job)
    assert {name for name, text in found.items() if text == "here"} == {
        "serverapp/%ff%fe",
        "serverapp/a%5c..%5cb",
        "serverapp/\u00e4",
        "serverapp/a\nb",
    }
    archive = next((job.parent / "store").rglob("workspace"))
    (job.parent / "unpacked").mkdir()
    unzip_all_from_file(str(archive), str(job.parent / "unpacked"))
    assert (job.parent / "unpacked" / "serverapp" / "a%5c..%5cb").read_text() == "here"


def test_files_without_end_are_left_out(
    job: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(job_store, "MOST", 3)
    for number in range(10):
        (job / "serverapp" / f"{number}").touch()
    with caplog.at_level(logging.WARNING):
        assert len(stored(job)) == 3
    assert "more than 3 files" in caplog.text
