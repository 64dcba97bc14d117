"""Make `import torchvision` work where an index had only its CUDA build beside a CPU build of torch.

python mend_torchvision.py SITE_PACKAGES

With --untried, none of the packages' code runs. The build of an app's environment calls it like this, in a
container that may write to the environment (scripts/environments.py):
python -I -S mend_torchvision.py --untried SITE_PACKAGES
"""

from __future__ import annotations

import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

TORCHVISION_WITHOUT_OPS = """\
# Added by Flowerbed's build: this torchvision's compiled operators are for CUDA and do not load beside the
# CPU build of torch. With their schemas defined, everything that is written in Python works (transforms,
# datasets, models); the operators themselves and image files' decoding do not.
import torch as _torch

_flowerbed_schemas = _torch.library.Library("torchvision", "DEF")
_flowerbed_schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_flowerbed_schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def mend(packages: Path) -> None:
    """Make torchvision work, or exit with the reason why it does not (tried with 0.28.0)."""

    def attempt() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "import torchvision"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    first = attempt()
    if first.returncode == 0:
        return
    if "operator torchvision::nms does not exist" not in first.stderr:
        sys.exit(f"torchvision does not import beside this torch:\n{first.stderr}")
    edit(packages)
    second = attempt()
    if second.returncode != 0:
        sys.exit(f"torchvision does not import, with its operators' schemas defined either:\n{second.stderr}")


def edit(packages: Path) -> None:
    """Remove the compiled operators, and define their schemas."""
    package = packages / "torchvision"
    for library in package.glob("*.so"):
        library.unlink()
    shutil.rmtree(packages / "torchvision.libs", ignore_errors=True)
    init = package / "__init__.py"
    source = TORCHVISION_WITHOUT_OPS + init.read_text()
    # Write a new file: the old one may be a link to uv's cache, and so to other environments.
    init.unlink()
    init.write_text(source)
    py_compile.compile(str(init))


if __name__ == "__main__":
    if sys.argv[1] == "--untried":
        edit(Path(sys.argv[2]))
    else:
        mend(Path(sys.argv[1]))
