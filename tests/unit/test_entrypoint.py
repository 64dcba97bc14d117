"""Run the containers' entrypoint on a volume, without a container."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from bridge.common import site_service

ENTRYPOINT = Path(__file__).parents[2] / "images" / "entrypoint"


def test_it_looks_after_all_folders_that_flare_writes() -> None:
    lines = ENTRYPOINT.read_text()
    mounts = [
        mount for mount in site_service.own_mounts("x") if isinstance(mount, str) or not mount["read_only"]
    ]
    targets = [mount.partition(":")[2] if isinstance(mount, str) else mount["target"] for mount in mounts]
    assert targets == ["/workspace", "/spool"] and all(f"mend {target}\n" in lines for target in targets[1:])


def test_it_gives_flare_its_rights_again(tmp_path: Path) -> None:
    (function,) = re.findall(r"^mend\(\) \{\n.*?^\}\n", ENTRYPOINT.read_text(), re.MULTILINE | re.DOTALL)
    volume, kit = tmp_path / "workspace", tmp_path / "kit"
    for folder in (volume / "store" / "jobs", kit):
        folder.mkdir(parents=True)
    whole = [volume / "log.txt", volume / "store" / "jobs" / "bad\x1b[name", kit / "key"]
    for path in whole:
        path.write_text("content")
    (volume / "startup").symlink_to(kit)
    (volume / "store" / "key").symlink_to(kit / "key")
    kit.chmod(0o500)
    taken = [*whole, volume / "store" / "jobs", volume / "store"]
    for path in taken:
        path.chmod(0o400 if path == kit / "key" else 0)
    script = f"set -eu\nverb=site\n{function}\nmend {volume} -mindepth 1 -maxdepth 1\nmend {volume}/store\n"
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stderr
    modes = [oct(path.stat().st_mode & 0o777) for path in (kit, *taken)]
    assert modes == ["0o500", "0o600", "0o600", "0o400", "0o700", "0o700"]
    assert len(said.splitlines()) == 4 and f"{volume}/log.txt" in said
    assert "bad?[name" in said and "\x1b" not in said
