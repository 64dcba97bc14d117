"""`.env` is replaced in one step, and keeps what is a person's own: mode, owner, link, other lines."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from provisioning import dotenv


def test_mode_and_link_stay(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "settings"
    real.parent.mkdir()
    real.write_text("# mine\nA=1\n")
    real.chmod(0o640)
    link = tmp_path / ".env"
    link.symlink_to(real)
    dotenv.write(link, {"A": "2", "B": "3"})
    assert link.is_symlink() and real.read_text() == "# mine\nA=2\nB=3\n"
    assert real.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in real.parent.iterdir()] == ["settings"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write a file of somebody else's")
def test_root_leaves_it_to_its_owner(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.touch(0o600)
    os.chown(file, 4242, 4343)
    dotenv.write(file, {"A": "1"})
    assert (file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o777) == (4242, 4343, 0o600)


def test_a_new_one_goes_by_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        dotenv.write(tmp_path / ".env", {"A": "1"})
    finally:
        os.umask(old)
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o640


def test_two_that_write_at_once_both_write(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: dotenv.write(file, {f"K{n}": str(n)}), range(40)))
    assert dotenv.read(file) == {f"K{n}": str(n) for n in range(40)}


def test_it_is_read_as_compose_reads_it(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    assert dotenv.read(file) == {}
    file.write_text("# mine\nexport A='[::1]'  # an address\nB = two words\nC=\nD\n")
    assert dotenv.read(file) == {"A": "[::1]", "B": "two words", "C": ""}
