"""What an app leaves in its results, as FLARE's job store keeps it."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from nvflare.app_common.storages.filesystem_storage import FilesystemStorage

from bridge.common import disk
from bridge.flare import job_store
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
    """What a download of the job brings, by name."""
    root = job.parent / "store"
    store = store or JobStore(root_dir=str(root))
    store.create_object("job", b"", {}, overwrite_existing=True)
    path = store.update_object("job", [str(job)], "workspace")
    assert not list(job.parent.glob("*.zip")), "the archive was moved"
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_files_come_as_flare_brings_them(job: Path) -> None:
    assert stored(job) == HONEST
    assert stored(job, FilesystemStorage(root_dir=str(job.parent / "store"))) == HONEST


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
    """As a user without privileges, whom the rights of files concern."""
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
