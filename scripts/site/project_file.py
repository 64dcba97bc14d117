"""Edit project.yml as text: add and remove participants, and keep every other line and comment.

The YAML parser says on which lines something is. Each edit is read again, and given up if it means anything
else than was wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from provisioning.keys import REVOKED
from scripts import core

PARTICIPANTS = "participants"


def relay_of(entry: Mapping[str, Any]) -> str | None:
    """Return the name in a participant's `connect_to`, if it has one."""
    target = entry.get("connect_to")
    return target.get("name") if isinstance(target, Mapping) else target


def with_participant(text: str, entry: Mapping[str, Any]) -> str:
    """Return the file with another participant, after all others."""
    content = yaml.safe_load(text)
    listed = _value(text, PARTICIPANTS)
    lines = text.splitlines()
    last = _last_line(listed.value[-1])
    indent = " " * (listed.value[-1].start_mark.column - 2)
    added = yaml.safe_dump([dict(entry)], sort_keys=False, allow_unicode=True, width=200).splitlines()
    lines[last + 1 : last + 1] = [indent + line for line in added]
    content[PARTICIPANTS].append(dict(entry))
    return _checked(lines, content, f"add {entry['name']} to {PARTICIPANTS}:")


def without_participant(text: str, name: str) -> str:
    """Return the file without a participant."""
    content = yaml.safe_load(text)
    listed = _value(text, PARTICIPANTS)
    names = [item["name"] for item in content[PARTICIPANTS]]
    node = listed.value[names.index(name)]
    lines = text.splitlines()
    del lines[node.start_mark.line : _last_line(node) + 1]
    content[PARTICIPANTS].pop(names.index(name))
    return _checked(lines, content, f"take {name} out of {PARTICIPANTS}:")


def with_revoked(text: str, name: str) -> str:
    """Return the file with a name under `revoked:`."""
    content = yaml.safe_load(text)
    if name in (content.get(REVOKED) or []):
        return text
    names = [*(content.get(REVOKED) or []), name]
    lines = text.splitlines()
    written = f"{REVOKED}: [{', '.join(names)}]"
    if REVOKED in content:
        key, value = next(pair for pair in _root(text).value if pair[0].value == REVOKED)
        lines[key.start_mark.line : _last_line(value) + 1] = [written]
    else:
        lines[_key_line(text, PARTICIPANTS) :] = [
            "# Names that stay out, whatever certificate they have.",
            written,
            "",
            *lines[_key_line(text, PARTICIPANTS) :],
        ]
    return _checked(lines, {**content, REVOKED: names}, f"write {name} under {REVOKED}:")


def _checked(lines: list[str], wanted: Mapping[str, Any], what: str) -> str:
    """Return the edited text, if it means what is wanted."""
    text = "\n".join(lines) + "\n"
    try:
        if yaml.safe_load(text) == wanted:
            return text
    except yaml.YAMLError:
        pass  # The text below says the same.
    raise core.UsageError(
        f"project.yml has a form that this verb cannot edit: expected one item of {PARTICIPANTS}: a line, as "
        f"in the file that comes with Flowerbed. Please {what} yourself, and run the verb again."
    )


def _root(text: str) -> yaml.MappingNode:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return root


def _value(text: str, key: str) -> yaml.Node:
    found: yaml.Node = next(value for name, value in _root(text).value if name.value == key)
    return found


def _key_line(text: str, key: str) -> int:
    return int(next(name.start_mark.line for name, _ in _root(text).value if name.value == key))


def _last_line(node: yaml.Node) -> int:
    """Return the last line of a node, without the comments that follow it."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        # The end of a block scalar is the beginning of the next line.
        mark = node.end_mark
        return int(mark.line - 1 if mark.column == 0 and mark.line > node.start_mark.line else mark.line)
    last = node.value[-1]
    return _last_line(last[1] if isinstance(node, yaml.MappingNode) else last)
