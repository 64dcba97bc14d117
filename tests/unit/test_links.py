"""A participant keeps its link. A newcomer takes one that is ready."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioning import links
from provisioning.links import ListenerLinks


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "READY", 3)
    monkeypatch.setattr(links, "STEP", 4)


def assigned(*names: str, before: ListenerLinks | None = None) -> ListenerLinks:
    found = before or ListenerLinks()
    found.assign(names)
    return found


def test_there_are_links_for_those_to_come() -> None:
    found = assigned("site-1", "site-2", "admin", "lead")
    assert found.taken == {"site-1": 1, "site-2": 2, "admin": 3, "lead": 4}
    assert found.number == 8
    assert assigned().number == 4


def test_a_newcomer_takes_one_that_is_ready_and_moves_nobody() -> None:
    found = assigned("site-1", "site-2", "admin", "lead")
    assigned("site-1", "site-0", "site-2", "admin", "lead", before=found)
    assert found.taken == {"site-1": 1, "site-2": 2, "admin": 3, "lead": 4, "site-0": 5}
    assert found.number == 8


def test_more_are_made_only_when_none_is_left() -> None:
    names = [f"site-{number}" for number in range(8)]
    found = assigned(*names[:4])
    for upto in (5, 6, 7, 8):
        assert assigned(*names[:upto], before=found).number == 8
    assert assigned(*names, "site-8", before=found).number == 12


def test_a_link_that_was_left_is_taken_last_since_a_container_may_still_be_there() -> None:
    found = assigned("a", "b", "c", "d")
    assigned("a", "c", before=found)
    assert found.left == {"b": 2, "d": 4}
    assigned("a", "c", "e", "f", "g", "h", before=found)
    assert found.taken == {"a": 1, "c": 3, "e": 5, "f": 6, "g": 7, "h": 8}
    assigned("a", "c", "e", "f", "g", "h", "i", before=found)
    assert found.taken["i"] == 2 and found.left == {"d": 4} and found.number == 8


def test_one_that_comes_back_has_its_link_again() -> None:
    found = assigned("a", "b", "c")
    assigned("a", before=found)
    assert assigned("a", "c", "b", before=found).taken == {"a": 1, "c": 3, "b": 2}
    assert found.left == {}


def test_listeners_with_more_links_are_named() -> None:
    few, many = (assigned(*[f"site-{n}" for n in range(number)]) for number in (4, 9))
    assert links.grown({"server": few}, {"server": many, "relay-1": few}) == ["server"]
    assert links.grown({"server": many}, {"server": few}) == links.grown({}, {"server": few}) == []


def test_they_are_remembered(tmp_path: Path) -> None:
    found = {"server": assigned("a", "b"), "relay-1": assigned("c")}
    assigned("b", before=found["server"])
    links.save(tmp_path, found)
    assert links.read(tmp_path) == found


def test_more_are_taken_when_the_listener_is_replaced_anyway(tmp_path: Path) -> None:
    compose, more = tmp_path / "compose.yaml", tmp_path / links.MORE_COMPOSE
    found = {"server": assigned("a", "b", "c", "d"), "relay-1": assigned("e")}
    assert links.with_more(found) == found
    assigned("a", "b", "c", "d", "e", "f", before=found["server"])
    grown = links.with_more(found)
    assert (grown["server"].number, grown["relay-1"].number) == (12, 4)
    assert grown["server"].taken == found["server"].taken
    compose.write_text("few")
    links.save(tmp_path, found)
    assert links.take_more(compose, set()) == []
    more.write_text("many")
    links.save(tmp_path, grown, links.MORE)
    # A server that stays keeps its container.
    assert links.take_more(compose, {"server", "relay-1"}) == []
    assert compose.read_text() == "few" and links.read(tmp_path) == found
    assert links.take_more(compose, {"relay-1", "site-1"}) == ["server"]
    assert compose.read_text() == "many" and links.read(tmp_path) == grown
    assert links.take_more(compose, set()) == [] and not more.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"server": 1}',
        '{"server": {"number": 4, "taken": {"a": 1}, "left": {"b": 1}}}',
        '{"server": {"number": 4, "taken": {"a": 5}, "left": {}}}',
    ],
)
def test_a_file_that_is_none_counts_as_absent(tmp_path: Path, text: str) -> None:
    """Two participants in one link would see each other."""
    (tmp_path / links.FILE).write_text(text)
    assert links.read(tmp_path) == {}
