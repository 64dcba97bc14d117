"""The cells of docs/how-to/python-api.md, run unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from scripts.core import ROOT

PAGE = ROOT / "docs" / "how-to" / "python-api.md"
ENVIRONMENT = "env = "
"""The beginning of the cell that says where the job runs. The sections on other environments have another
one."""

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def cells(section: str = "") -> str:
    """Return the page's program, with the environment of another section if one is named."""
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    blocks = BLOCK.findall(sections["The cells"])
    (place,) = [number for number, block in enumerate(blocks) if ENVIRONMENT in block]
    if section:
        (block,) = BLOCK.findall(sections[section])
        # FLARE gives a login 5 or 10 s: too few on a machine that is busy with other tests.
        patient = rf"\1, {PATIENCE[section]})"
        blocks[place], number = re.subn(r"(Env\(.*)\)$", patient, block, flags=re.MULTILINE)
        assert number == 1
    return "\n".join(blocks)


PATIENCE = {
    "In proof-of-concept mode": 'extra={"login_timeout": 60.0}',
    "In the containers": "login_timeout=60.0",
}


def run(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a checkout's folder, as a script of the user's."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder / 'src'}{os.pathsep}{folder}", **environment},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def check(process: subprocess.CompletedProcess[str], status: str) -> None:
    """Check that the job ended with `status`, and that the last two cells printed what they should."""
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    printed = process.stdout.splitlines()
    assert re.search(rf"(?m)^\S+ {re.escape(status)}$", process.stdout), printed
    assert "[2. 3. 4. 5. 6.]" in printed, printed
    replies = {
        f"{number} {site} {kind} " for number in (1, 2) for site in ("site-1", "site-2") for kind in KINDS
    }
    assert {line.partition("{")[0] for line in printed if line.endswith("}")} >= replies, printed


KINDS = ("train", "evaluate")
