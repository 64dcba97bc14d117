"""Read an app's immediate imports in its code, and the failed ones in the container's answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import app_imports
from scripts.app import App
from scripts.core import ROOT


def imports(
    serverapp: str = "mine.server:app", clientapp: str = "mine.client:app", **files: str
) -> list[str]:
    """Return the imports of an app with these files. `__` in a name is `/`, and `Init` is `__init__`."""
    content = {
        f"{name.replace('__', '/').replace('Init', '__init__')}.py": text.encode()
        for name, text in files.items()
    }
    components = {"serverapp": serverapp, "clientapp": clientapp}
    return app_imports.of_app({"tool": {"flwr": {"app": {"components": components}}}}, content)


def seen(code: str, *packages: str) -> list[str]:
    """The modules that none of these distributions seems to bring."""
    components = {"serverapp": "mine.app:app", "clientapp": "mine.app:client"}
    pyproject = {"tool": {"flwr": {"app": {"components": components}}}}
    files = {"mine/app.py": code.encode()}
    app = App(Path("an-app"), "mine", "1.0", pyproject, files)
    return [note.split()[3].rstrip(",") for note in app_imports.not_brought(app, packages)]


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("numpy.linalg", "numpy"),
        ("sklearn.svm", "scikit-learn"),
        ("PIL.Image", "pillow"),
        ("cv2", "opencv-python-headless"),
        ("yaml", "PyYAML"),
        ("bs4", "beautifulsoup4"),
        ("dateutil", "python-dateutil"),
        ("google.protobuf", "protobuf"),
        ("flwr_datasets", "flwr-datasets"),
        ("ruamel.yaml", "ruamel.yaml"),
        ("faiss", "faiss-cpu"),
        ("attr", "attrs"),
        ("git", "GitPython"),
        ("json", "numpy"),
        ("mine.app", "numpy"),
    ],
)
def test_a_module_is_named_by_the_package_that_provides_it(module: str, package: str) -> None:
    assert seen(f"import {module}\n", "flwr", package) == []


def test_a_module_that_no_package_seems_to_bring_is_named_once() -> None:
    assert seen("import pandas.io, pandas.core\nfrom sklearn import svm\n", "flwr", "numpy") == [
        "pandas",
        "sklearn",
    ]


def test_imports_of_both_apps_and_their_own_modules_count() -> None:
    found = imports(
        mine__server="import numpy as np, os.path\nfrom flwr.server import A\nfrom mine import task\n",
        mine__client="from mine.task import load\nimport sklearn.linear_model\n",
        mine__task="import pandas\n",
    )
    assert found == ["flwr.server", "numpy", "os.path", "pandas", "sklearn.linear_model"]


def test_relative_imports_are_followed() -> None:
    found = imports(
        serverapp="mine.deep.server:app",
        mine__deep__server="from . import near\nfrom ..far import x\nfrom .. import other, nothing\n",
        mine__deep__near="import near_needs\n",
        mine__far="import far_needs\n",
        mine__other="import other_needs\n",
        mine__client="from .sub import deeper\n",
        mine__sub__Init="from .deeper import x\n",
        mine__sub__deeper="import deeper_needs\n",
    )
    assert found == ["deeper_needs", "far_needs", "near_needs", "other_needs"]


def test_a_package_is_imported_before_its_modules() -> None:
    assert imports(mine__Init="import early\n", mine__server="", mine__client="") == ["early"]


def test_optional_imports_are_not_counted() -> None:
    code = """
try:
    import fast
except ImportError:
    fast = None
if TYPE_CHECKING:
    import types_only
with suppress(ImportError):
    import maybe
def late():
    import later
class Thing:
    import inside
import always
"""
    assert imports(mine__server=code, mine__client="") == ["always"]


def test_unimported_files_are_not_read() -> None:
    found = imports(
        mine__server="import needed\n", mine__client="", mine__plot="import matplotlib\n", setup="import x\n"
    )
    assert found == ["needed"]


def test_modules_that_import_each_other_come_to_an_end() -> None:
    found = imports(
        mine__server="from mine import client\nimport a\n", mine__client="import mine.server\nimport b\n"
    )
    assert found == ["a", "b"]


def test_code_that_does_not_parse_or_goes_above_the_top_says_nothing() -> None:
    assert imports(mine__server="import (\n", mine__client="from ..... import x\nimport \x00y\n") == []
    assert imports(mine__server="from .... import x\nimport y\n", mine__client="-" * 100_000 + "1") == ["y"]


def attempts(*modules: str, folder: Path) -> list[list[str]]:
    done = subprocess.run(
        [sys.executable, "-P", str(ROOT / "images" / "try_imports.py"), *modules],
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        check=True,
        timeout=60,
    )
    found: list[list[str]] = json.loads(done.stdout)
    return found


def test_failed_imports_are_reported_and_module_output_is_not(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("import os; print('hello'); os.write(1, b'from C')\n")
    (tmp_path / "ends.py").write_text("raise SystemExit('over')\n")
    (tmp_path / "long.py").write_text("raise ValueError('x' * 1_000_000)\n")
    (tmp_path / "threads.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
    )
    found = attempts("loud", "json", "ends", "nowhere.deep", "long", "threads", folder=tmp_path)
    assert [failed[:2] for failed in found] == [
        ["ends", "SystemExit"],
        ["nowhere.deep", "ModuleNotFoundError"],
        ["long", "ValueError"],
    ]
    assert found[1][2] == "No module named 'nowhere'" and len(found[2][2]) == 2000
