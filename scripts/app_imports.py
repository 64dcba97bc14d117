"""Find what an app imports when its ServerApp or ClientApp is imported, by reading its code, not running
it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scripts.app import App


def of_app(pyproject: Mapping[str, Any], files: Mapping[str, bytes]) -> list[str]:
    """Return the modules that are not the app's own, in order.

    Imports inside a function, a `try` or an `if` do not count: the app may do without them. Neither does a
    file that neither ServerApp nor ClientApp imports.

    Args:
        pyproject: the content of the app's pyproject.toml.
        files: the app's files, by path.
    """
    components = pyproject["tool"]["flwr"]["app"]["components"]
    waiting = [components[name].split(":")[0].strip() for name in ("serverapp", "clientapp")]
    seen: set[str] = set()
    found: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        # Importing a module imports its packages first.
        waiting += [module.rpartition(".")[0]] if "." in module else []
        path = _path(module, files)
        for imported in _imports(files[path], _package(module, path)) if path else ():
            if _is_own(imported, files):
                waiting.append(imported)
            elif imported not in seen and not _is_own(imported.rpartition(".")[0], files):
                found.add(imported)
    return sorted(found)


MODULES_OF = {
    "beautifulsoup4": "bs4",
    "flwr-nightly": "flwr",
    "future": "past builtins",
    "gdal": "osgeo",
    "imbalanced-learn": "imblearn",
    "matplotlib": "mpl_toolkits pylab",
    "mysqlclient": "MySQLdb",
    "opencv": "cv2",
    "pillow": "PIL",
    "protobuf": "google",
    "grpcio": "grpc",
    "pycryptodome": "Crypto",
    "pymupdf": "fitz",
    "pywavelets": "pywt",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "scikit-survival": "sksurv",
    "setuptools": "pkg_resources",
}
"""The modules of distributions with other names."""


def not_brought(app: App, packages: Iterable[str]) -> list[str]:
    """Return a sentence for each import that none of these distributions seems to bring.

    It goes by names, and so may be wrong: an index does not tell which modules a distribution has.
    """
    names = [re.sub(r"[-_.]+", "-", name).lower() for name in packages]
    modules = {part.lower() for name in names for part in _modules(name)}
    tops = {module.partition(".")[0] for module in of_app(app.pyproject, app.files)}
    return [
        f"the app imports {top}, and no package here seems to bring it. Add what does to dependencies in "
        f"{app.folder}/pyproject.toml, unless one of them does"
        for top in sorted(tops - sys.stdlib_module_names)
        if top.lower() not in modules
    ]


def _modules(name: str) -> Iterator[str]:
    """Yield the possible names of a distribution's modules: its name, or a part of it.

    `pyyaml` has yaml, `python-dateutil` dateutil, `attrs` attr, and `opencv-python-headless` has opencv's
    modules.
    """
    yield from (name.replace("-", "_"), name.removeprefix("py"), name.removesuffix("s"))
    yield from (part for part in name.split("-"))
    yield name.removesuffix("-python").removesuffix("python")
    for known in (name, name.split("-")[0]):
        yield from MODULES_OF.get(known, "").split()


def _path(module: str, files: Mapping[str, bytes]) -> str:
    stem = module.replace(".", "/")
    return next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if path in files), "")


def _package(module: str, path: str) -> Sequence[str]:
    parts = module.split(".")
    return parts if path.endswith("__init__.py") else parts[:-1]


def _is_own(module: str, files: Mapping[str, bytes]) -> bool:
    return bool(_path(module, files)) or any(path.startswith(f"{module.split('.')[0]}/") for path in files)


def _imports(source: bytes, package: Sequence[str]) -> Iterator[str]:
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # The check of the app's code reports it.
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level <= len(package):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            if node.level or module.split(".")[0] == (package[0] if package else ""):
                # A name imported from one of the app's packages may be a module of it.
                yield from (f"{module}.{alias.name}" for alias in node.names)
