"""Folders import only what they may: a file's folder in `bridge/` says in which process it runs."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BOTH_ENDS = {"relay", "fleet", "launch", "common"}
MAY_IMPORT = {
    "common": set(),
    "relay": {"common"},
    "fleet": {"relay", "common"},
    "launch": {"common"},
    "preflight": {"launch", "common"},
    "keeper": {"common"},
    "gate": {"common"},
    "flower": BOTH_ENDS,
    "job": BOTH_ENDS,
    "site": {*BOTH_ENDS, "job", "flower"},
    "server": {*BOTH_ENDS, "job"},
    "flare": {*BOTH_ENDS, "job", "site", "server"},
}
"""Other parts of the bridge that a folder may import. A site may import `flower`: its SuperNode may be
inside."""

WITHOUT = {
    "common": {"nvflare", "flwr"},
    "relay": {"nvflare", "flwr"},
    "launch": {"nvflare", "flwr"},
    "preflight": {"nvflare", "flwr"},
    "keeper": {"nvflare", "flwr"},
    "gate": {"nvflare", "flwr"},
    "fleet": {"nvflare"},
    "flower": {"nvflare"},
}
ALONE = {
    "bridge.flare.console.client",
    "bridge.flare.control_api.access",
    "bridge.flare.control_api.waiter",
}
"""Programs that import nothing of ours: each call of a verb would pay for it."""

PRODUCT = ("bridge", "scripts", "provisioning")
ALIKE = 80
"""Characters of a function, without its name and docstring, that may occur twice."""

OURS = {*PRODUCT, "dev", "tests", "images"}
MAY_USE = {
    "provisioning": {"bridge"},
    "images": {"bridge"},
    "scripts": {"bridge", "provisioning"},
    "dev": {"bridge", "provisioning", "scripts"},
    "tests": OURS,
}
"""Our folders that a folder beside the bridge may import. The command line imports verbs of `dev` by name."""


def modules(*folders: str) -> dict[str, Path]:
    """All modules below these folders, by name."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules(*PRODUCT)
EVERYWHERE = MODULES | modules("dev", "tests")


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Return a file's code, read once."""
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path, *, at_import: bool = False) -> tuple[str, ...]:
    """The modules that a file imports, in functions too unless only those `at_import` are asked for."""
    return tuple(_imports(path, at_import))


def _imports(path: Path, at_import: bool) -> Iterator[str]:
    """Look at statements alone, which is fast: there are no imports in expressions."""
    waiting: list[ast.AST] = [parsed(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in EVERYWHERE else node.module
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if at_import and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting += getattr(node, field, ())


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_bridge_folders_import_only_what_they_may(folder: str) -> None:
    allowed = {f"bridge.{other}" for other in (folder, *MAY_IMPORT[folder])}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(f"bridge/{folder}").values()
        for name in imports(path)
        if (name.startswith("bridge.") and ".".join(name.split(".")[:2]) not in allowed)
        or name.split(".")[0] in {*WITHOUT.get(folder, ()), "scripts", "provisioning", "dev"}
    ]
    assert not wrong


def test_every_folder_of_the_bridge_has_a_rule() -> None:
    folders = {path.parent.name for path in (ROOT / "bridge").glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT)
    assert [path.name for path in (ROOT / "bridge").glob("*.py")] == ["__init__.py"]


def test_verbs_and_builders_import_only_common_parts_of_the_bridge() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("scripts", "provisioning").values()
        for name in imports(path)
        if name.split(".")[0] == "bridge" and not name.startswith("bridge.common")
    ]
    assert not wrong
    assert not [
        name
        for path in modules("provisioning").values()
        for name in imports(path)
        if name.startswith("scripts")
    ]


@pytest.mark.parametrize("folder", MAY_USE)
def test_other_folders_import_only_what_they_may(folder: str) -> None:
    """A test may import everything, and an app (a test's, a benchmark's) nothing of ours."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(folder).values()
        for name in imports(path)
        if (room := name.split(".")[0]) in OURS
        and room not in ({folder, *MAY_USE[folder]} if "apps" not in path.parts else ())
    ]
    assert not wrong


def test_shared_test_helpers_import_no_test() -> None:
    shared = {name: path for name, path in modules("tests").items() if not path.name.startswith("test_")}
    assert not [
        f"{module} imports {name}"
        for module, path in shared.items()
        for name in imports(path)
        if name.startswith("tests.") and name.split(".")[-1].startswith("test_")
    ]


def test_no_imports_are_circular() -> None:
    graph = {
        name: {other for other in imports(path, at_import=True) if other in EVERYWHERE and other != name}
        for name, path in EVERYWHERE.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' > '.join(error.args[1])}") from None


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module)
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_no_function_is_a_copy_of_another() -> None:
    """Code that two sides of a wall need is shared, not copied. (A line or two may be.)"""
    places: dict[str, list[str]] = {}
    for module, path in modules(*PRODUCT, "dev").items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                told = ast.get_docstring(node) is not None
                body = "\n".join(ast.unparse(statement) for statement in node.body[told:])
                if len(body) > ALIKE:
                    places.setdefault(body, []).append(f"{module}.{node.name}")
    assert not [found for found in places.values() if len(found) > 1]


def test_our_errors_have_one_base_class() -> None:
    wrong = [
        f"{module}.{node.name}"
        for module, path in MODULES.items()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef)
        and any(
            ast.unparse(base) in ("Exception", "ValueError", "RuntimeError", "OSError") for base in node.bases
        )
        and not any("FlowerbedError" in ast.unparse(base) for base in node.bases)
        and node.name != "FlowerbedError"
        and module not in ALONE
    ]
    assert not wrong
