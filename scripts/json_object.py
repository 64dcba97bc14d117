"""The object that a verb prints with `--format json`: its keys, and what they mean.

Each verb states its own in a constant `JSON`. The reference page and the tests read it. A key is a path:

    jobs            a key of the object
    jobs[].name     a key of each item in a list
    sites{}.train   a key of each value in an object that has names for keys
    missing_sites?  a key that is not always there
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Keys = Mapping[str, str]
"""The meaning of each key. An object or a list for which no inner key is stated may hold anything."""

AS = "as"
"""The key that any object may have: the FLARE identity that was used."""

ON_ERROR: Keys = {
    "error": "what was expected, what was found, and what to do",
    "as?": "the FLARE identity that was used, with `name` and `role`",
    "denied?": "true if the server refused this identity",
    "no_job?": "true if there is no such job",
    "jobs?": "the ids of the jobs that stand in the way, or that fit the id given",
    "registered?": "the sites that are registered, if a job asks for more",
    "folder?": "a folder that belongs to another user or checkout",
    "port?": "a port that another program has",
    "wheels?": "the wheels that no index has",
    "free_gb?": "the disk space that is left",
    "needed_gb?": "the disk space that is needed",
}
"""The keys of the object of a verb that fails, whichever verb it is."""


@dataclass(frozen=True)
class JsonObject:
    """The keys of a verb's object.

    Attributes:
        keys: those of the usual object.
        others: those of the object in another case. The name of the case is Markdown, such as "With `--app`".
        on_error: further keys beside `error`. The usual ones may be there too.
        like: by case (empty: the usual object), the verb or file with the same meanings, where the page tells
            them: `wait`, `build` or `summary.json`.
    """

    keys: Keys
    others: Mapping[str, Keys] = field(default_factory=dict)
    on_error: Keys = field(default_factory=dict)
    like: Mapping[str, str] = field(default_factory=dict)

    def problems(self, found: Mapping[str, Any]) -> list[str]:
        """Return how an object differs from what is stated, or an empty string."""
        if "error" in found:
            more = {
                p: text for keys in (*self._forms, self.on_error) for p, text in keys.items() if "." not in p
            }
            optional = {f"{path.rstrip('?')}?": text for path, text in more.items()}
            return sorted(_problems(_tree({**optional, **ON_ERROR}), found))
        rest = {key: value for key, value in found.items() if key != AS}
        each = [sorted({*_problems(_tree(keys), rest)}) for keys in self._forms]
        return min(each, key=len)

    @property
    def _forms(self) -> tuple[Keys, ...]:
        return (self.keys, *self.others.values())


def below(path: str, keys: Keys) -> Keys:
    """Return keys as those below another one, such as `jobs[]`."""
    return {f"{path}.{key}": text for key, text in keys.items()}


@dataclass
class _Stated:
    """One key, with those below it."""

    many: str = ""
    """`[]` or `{}`, if the keys below are those of each item or of each value."""
    optional: bool = False
    below: dict[str, _Stated] = field(default_factory=dict)


def _tree(keys: Keys) -> _Stated:
    root = _Stated()
    for path in keys:
        node = root
        for part in path.split("."):
            read = re.fullmatch(r"([\w-]+)(\[\]|\{\})?(\?)?", part)
            assert read is not None, f"{path}: expected a path such as jobs[].name"
            node = node.below.setdefault(read[1], _Stated())
            node.many = node.many or read[2] or ""
            node.optional = node.optional or bool(read[3])
    return root


def _problems(node: _Stated, found: Any, where: str = "") -> Iterator[str]:
    """How a value differs from what is stated."""
    if not node.below or found is None:
        return
    if node.many:
        values = found if node.many == "[]" else list(found.values()) if isinstance(found, Mapping) else None
        if not isinstance(values, list):
            yield f"{where}: expected {'a list' if node.many == '[]' else 'an object'}"
            return
        one = _Stated(below=node.below)
        for value in values:
            yield from _problems(one, value, f"{where}{node.many}")
        return
    if not isinstance(found, Mapping):
        yield f"{where}: expected an object"
        return
    prefix = f"{where}." if where else ""
    yield from (
        f"{prefix}{n} is missing" for n, one in node.below.items() if n not in found and not one.optional
    )
    for name, value in found.items():
        if name not in node.below:
            yield f"{prefix}{name} is not stated"
        else:
            yield from _problems(node.below[name], value, f"{prefix}{name}")
