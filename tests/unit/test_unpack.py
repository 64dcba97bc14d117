"""Unpacked files are readable by the right users."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from scripts.core import unpack


@pytest.mark.parametrize(
    ("for_consoles", "umask", "modes"),
    [(True, 0o077, (0o755, 0o644)), (False, 0o077, (0o700, 0o600)), (False, 0o022, (0o755, 0o644))],
)
def test_the_umask_decides_who_reads_unpacked_files(
    tmp_path: Path, for_consoles: bool, umask: int, modes: tuple[int, int]
) -> None:
    """Job folders are for the consoles, which are another user. For results, the umask decides."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo("app")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        tar.addfile(folder)
        file = tarfile.TarInfo("app/x")
        file.mode = 0o666
        tar.addfile(file, io.BytesIO())
    buffer.seek(0)
    before = os.umask(umask)
    try:
        with tarfile.open(fileobj=buffer) as tar:
            unpack(tar, tmp_path, for_consoles=for_consoles)
    finally:
        os.umask(before)
    found = [(tmp_path / name).stat().st_mode & 0o777 for name in ("app", "app/x")]
    assert found == list(modes)
