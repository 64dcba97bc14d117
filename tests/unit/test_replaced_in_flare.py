"""Names inside FLARE that are replaced: fifteen, in one place. Each constant says which test shows it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from bridge.common.replaced import Name, replace
from bridge.job import replaced

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    path
    for folder in ("bridge", "images", "provisioning")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.parent.name != "flower"  # It has no FLARE (`test_rooms.py`), and another table.
]
REPLACE = "bridge/common/replaced.py"

NOT_FLARES = {
    ("bridge/flare/console/__main__.py", "stdout"),
    *(("bridge/common/archive.py", name) for name in ("mtime", "mode", "linkname", "size")),  # a tar's entry
    *(("bridge/preflight/secure.py", name) for name in ("check_hostname", "verify_mode")),  # a TLS context
    ("provisioning/certificates.py", "root_private_key"),  # FLARE's project, and put back
    ("provisioning/certificates.py", "serialized_root_cert"),
    ("bridge/flare/certificates.py", "minimum_version"),  # a TLS context
    ("bridge/flare/certificates.py", "verify_mode"),
    ("bridge/flare/certificates.py", "context"),  # a TLS connection
    ("bridge/flare/drivers/flowerbed_drivers.py", "SSL_HANDSHAKE_TIMEOUT"),  # asyncio's
    ("bridge/flare/drivers/flowerbed_drivers.py", "do_handshake_on_connect"),  # a TLS socket
    ("bridge/site/gateway.py", "should_exit"),  # uvicorn's server
    ("bridge/site/gateway.py", "force_exit"),
    ("bridge/server/trackers.py", "daemon"),  # a thread
    ("images/tls_answer.py", "check_hostname"),
    ("bridge/common/job_options.py", "__signature__"),
    ("bridge/server/upstream.py", "stream"),  # httpx's answer
    ("bridge/server/heartbeat.py", "heartbeat_interval"),  # Flower's message
    ("bridge/common/log_lines.py", "msecs"),  # a log's record
    ("bridge/flare/control_api/daemon.py", "size"),  # a tar's entry
    ("bridge/flare/control_api/downloads.py", "compress_type"),  # a zip's entry
}
DATA = {
    # FLARE's copy of a sent message is released.
    ("bridge/job/channel.py", "task_handle"),
    ("bridge/job/channel.py", "done_callbacks"),
    ("bridge/job/channel.py", "value"),
    # Where a receiver that we have made puts its files.
    ("bridge/server/trackers.py", "root_log_dir"),
    # The memory of a GPU that jobs have left free.
    ("bridge/flare/gpus.py", "memory"),
}
"""Attributes of one object that FLARE has handed out. None is a function or a class."""


def test_there_are_fifteen_and_each_says_why() -> None:
    assert len(replaced.ALL) == len(set(replaced.ALL)) == 15
    assert {value for value in vars(replaced).values() if isinstance(value, Name)} == set(replaced.ALL)
    assert all(name.why and name.read_in == "2.9.0" for name in replaced.ALL)


def test_a_flare_that_lacks_one_is_an_error() -> None:
    for name in (Name("nvflare.nowhere", "x", "", ""), Name("nvflare.fuel.f3.mpm", "Gone.x", "", "")):
        with pytest.raises((ImportError, AttributeError)):
            replace(name, lambda _: None)


@pytest.mark.parametrize("name", replaced.ALL, ids=lambda name: name.name)
def test_a_test_shows_what_each_does(name: Name) -> None:
    constant = next(key for key, value in vars(replaced).items() if value is name)
    source = (ROOT / "bridge" / "job" / "replaced.py").read_text()
    said = re.search(rf'^{constant} = (?:.|\n)*?^"""(.*)"""$', source, re.MULTILINE)
    assert said
    assert all((ROOT / "tests/unit" / file).is_file() for file in re.findall(r"`(\w+\.py)`", said[1]))
    uses = [path for path in FILES if f"replaced.{constant}" in path.read_text()]
    assert len(uses) == 1, "in the one process that needs it"
    import_module(name.module)


def assigned(tree: ast.AST) -> Iterator[ast.Attribute]:
    """The attributes of something else than `self` to which a module assigns."""
    for node in ast.walk(tree):
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign | ast.AugAssign)
            else []
        )
        for target in targets:
            for each in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(each, ast.Attribute) and ast.unparse(each.value) not in ("self", "cls"):
                    yield each


def own_attributes() -> set[str]:
    """The attributes that classes of the bridge have."""
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                for part in ast.walk(node):
                    target = part.target if isinstance(part, ast.AnnAssign) else None
                    if isinstance(target, ast.Name):
                        found.add(target.id)
                    for each in [target] if target else getattr(part, "targets", []):
                        if isinstance(each, ast.Attribute) and ast.unparse(each.value) == "self":
                            found.add(each.attr)
    return found


def test_nothing_of_flares_is_replaced_elsewhere() -> None:
    """Code that assigns to an attribute which none of our classes has assigns to somebody else's."""
    own = own_attributes()
    wrong = []
    for path in FILES:
        name, source = str(path.relative_to(ROOT)), path.read_text()
        if name != REPLACE and re.search(r"\b(setattr|delattr|__setattr__)\(", source):
            wrong.append(f"{name}: setattr")
        for attribute in assigned(ast.parse(source)):
            if attribute.attr not in own and (name, attribute.attr) not in NOT_FLARES | DATA:
                wrong.append(f"{name}:{attribute.lineno}: {ast.unparse(attribute)}")
    assert not wrong


def test_every_exception_exists() -> None:
    found = {
        (str(path.relative_to(ROOT)), attribute.attr)
        for path in FILES
        for attribute in assigned(ast.parse(path.read_text()))
    }
    assert found >= NOT_FLARES | DATA
