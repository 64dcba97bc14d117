"""Finish FLARE's new environment in the image's build: prune it, compile it to bytecode.

Called as: python finish_venv.py /opt/venv
"""

from __future__ import annotations

import compileall
import re
import shutil
import sys
from pathlib import Path

# Patterns below site-packages. Sizes in MB, with nvflare 2.9.0 and flwr 1.42.0.
DEAD = (
    "*/**/tests",  # 65
    "Crypto/SelfTest",  # 4
    "pip",  # 10: the image installs nothing
    "pip-*",
    "../../../bin/pip*",
    "../../../bin/uv*",  # 50: flwr's run-time installer of an app's dependencies, which is off
)

UNCOMPILED = re.compile(r"/site-packages/setuptools/")
"""Keep the source and leave out the bytecode: neither FLARE nor Flower imports these files."""


def prune(packages: Path) -> None:
    """Remove what nothing imports or starts."""
    for pattern in DEAD:
        for path in list(packages.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def compile_all(packages: Path) -> None:
    """Write the bytecode, since Python cannot write it later on the read-only root.

    Nothing here imports a file that this Python cannot compile.
    """
    compileall.compile_dir(packages, quiet=2, workers=0, rx=UNCOMPILED)


if __name__ == "__main__":
    (site_packages,) = Path(sys.argv[1]).glob("lib/python3*/site-packages")
    prune(site_packages)
    compile_all(site_packages)
