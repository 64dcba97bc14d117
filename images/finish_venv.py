"""Runs in the image's build on FLARE's new environment: prune it, compile it to bytecode.

Called as: python finish_venv.py /opt/venv
"""

from __future__ import annotations

import compileall
import re
import shutil
import sys
from pathlib import Path

# Patterns below site-packages. Sizes in MB, as of nvflare 2.9.0 and flwr 1.42.0.
DEAD = (
    "*/**/tests",  # 65
    "Crypto/SelfTest",  # 4
    "pip",  # 10: the image installs nothing
    "pip-*",
    "../../../bin/pip*",
    "../../../bin/uv*",  # 50: flwr's installer of an app's dependencies at run time, which is off
)

UNCOMPILED = re.compile(r"/site-packages/setuptools/")
"""The source stays, bytecode is left out: neither FLARE nor Flower imports it."""


def prune(packages: Path) -> None:
    """Remove what nobody imports or starts."""
    for pattern in DEAD:
        for path in list(packages.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def compile_all(packages: Path) -> None:
    """Write the bytecode, which the read-only root will not let Python write later.

    A file that this Python cannot compile is nobody's import here.
    """
    compileall.compile_dir(packages, quiet=2, workers=0, rx=UNCOMPILED)


if __name__ == "__main__":
    (site_packages,) = Path(sys.argv[1]).glob("lib/python3*/site-packages")
    prune(site_packages)
    compile_all(site_packages)
