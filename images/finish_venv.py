"""Runs in the image's build on its new environment: prune it, make torchvision import, compile to bytecode.

Called as: python finish_venv.py /opt/venv
"""

from __future__ import annotations

import compileall
import re
import shutil
import subprocess
import sys
from pathlib import Path

# Patterns below site-packages. Sizes in MB, as of torch 2.13.0 and flwr 1.41.0.
DEAD = (
    "torch/test",  # 84: torch's compiled C++ tests
    "torch/include",  # 63: headers, for building extensions
    "torch/bin/[!t]*",  # 51: torch's test programs; torch_shm_manager stays, torch.multiprocessing starts it
    "torch/bin/test_*",
    "*/**/tests",  # 65
    "Crypto/SelfTest",  # 4
    "pip",  # 10: the image installs nothing
    "pip-*",
    "../../../bin/pip*",
    "../../../bin/uv*",  # 50: flwr's installer of an app's dependencies at run time, which is off
)

# 22 MB: the source stays, bytecode is left out: neither FLARE, Flower nor a training step imports these.
UNCOMPILED = re.compile(r"/site-packages/(torch/(_inductor|testing|onnx)|setuptools)/")

TORCHVISION_WITHOUT_OPS = """\
# Added by Flowerbed's build: this torchvision's compiled operators are for CUDA and do not load beside the
# CPU build of torch. With their schemas defined, everything that is written in Python works (transforms,
# datasets, models); the operators themselves and image files' decoding do not.
import torch as _torch

_flowerbed_schemas = _torch.library.Library("torchvision", "DEF")
_flowerbed_schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_flowerbed_schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def prune(packages: Path) -> None:
    """Remove what nobody imports or starts."""
    for pattern in DEAD:
        for path in list(packages.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def mend_torchvision(packages: Path) -> None:
    """Make `import torchvision` work where the registry had only its CUDA build (seen with 0.28.0)."""

    def attempt() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "import torchvision"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    first = attempt()
    if first.returncode == 0:
        return
    if "operator torchvision::nms does not exist" not in first.stderr:
        sys.exit(f"torchvision does not import beside this torch:\n{first.stderr}")
    package = packages / "torchvision"
    for library in package.glob("*.so"):
        library.unlink()
    shutil.rmtree(packages / "torchvision.libs", ignore_errors=True)
    init = package / "__init__.py"
    init.write_text(TORCHVISION_WITHOUT_OPS + init.read_text())
    second = attempt()
    if second.returncode != 0:
        sys.exit(f"torchvision does not import, with its operators' schemas defined either:\n{second.stderr}")


def compile_all(packages: Path) -> None:
    """Write the bytecode, which the read-only root will not let Python write later.

    Every ClientApp is a new process, and importing torch without bytecode takes seconds. A file that this
    Python cannot compile (torch ships some of newer syntax) is nobody's import here.
    """
    compileall.compile_dir(packages, quiet=2, workers=0, rx=UNCOMPILED)


if __name__ == "__main__":
    (site_packages,) = Path(sys.argv[1]).glob("lib/python3*/site-packages")
    prune(site_packages)
    mend_torchvision(site_packages)
    compile_all(site_packages)
