"""Small modules: no part of the product or of its developers' tools exceeds its size limit."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PRODUCT = ("bridge", "scripts", "provisioning", "images", "dev")
FILE, FUNCTION, CLASS = 400, 60, 250
"""Lines."""


def sizes() -> dict[str, tuple[int, int]]:
    """Lines, and how many there may be, of each file, function and class."""
    found = {}
    for path in sorted(path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py")):
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        found[name] = len(text.splitlines()), FILE
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                most = CLASS if isinstance(node, ast.ClassDef) else FUNCTION
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                found[f"{name} {node.name}"] = max((lines, most), found.get(f"{name} {node.name}", (0, most)))
    return found


def test_nothing_is_over_its_measure() -> None:
    over = {name: lines for name, (lines, most) in sizes().items() if lines > most}
    assert not over, "split it by idea, do not raise the measure"
