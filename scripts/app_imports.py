"""What an app imports as soon as its ServerApp or ClientApp is imported: read in its code, which is not
run."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def of_app(pyproject: Mapping[str, Any], files: Mapping[str, bytes]) -> list[str]:
    """The modules that are not the app's own, in order.

    An import inside a function, a `try` or an `if` counts for nothing: the app may do without it. Neither
    does a file that neither ServerApp nor ClientApp imports.

    Args:
        pyproject: what the app's pyproject.toml says.
        files: the app's, by path.
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
        return  # Whoever checks the app's code says so.
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level <= len(package):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            if node.level or module.split(".")[0] == (package[0] if package else ""):
                # What is imported from a package of the app's may be a module of it.
                yield from (f"{module}.{alias.name}" for alias in node.names)
