"""`./site`, the script that looks after a site elsewhere. A program in the place of docker answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_site_doctor import Site

SINCE = "2026-11-28T11:13:42.123456789Z\n"
STATE, STARTED, HEALTH = (
    f"inspect --format {{{{{words}" for words in (".State.Status", ".State.StartedAt", "with .State.Health")
)
"""The beginnings of calls that ask for a container's state, its start and its health checks."""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.docker.answer("compose ps", out="c0ffee\n")
    site.docker.answer("compose logs", out="")
    site.docker.answer(STATE, out="running healthy\n")
    site.docker.answer(STARTED, out=SINCE)
    site.docker.answer(HEALTH, out="")
    return site


def test_the_start_is_told_in_whole_seconds(site: Site) -> None:
    site.docker.answer("run --rm --network none", out="")
    told = "hospital-c runs since 2026-11-28T11:13:42Z and is registered with fl.example.org:8002.\n"
    assert site.verb("status") == (0, told, "")


def test_a_site_that_is_not_registered_says_why_and_what_to_do(site: Site) -> None:
    site.docker.answer(STATE, out="running unhealthy\n")
    site.docker.answer(HEALTH, out="not registered with the server\n\nno connection to the server\n\n")
    code, told, why = site.verb("status")
    assert code == 1 and "is not registered with fl.example.org:8002." in told
    assert why.splitlines() == [
        "  health check: no connection to the server",
        "  To find the reason, run ./site doctor.",
    ]


def test_what_the_server_or_a_container_says_does_not_act_on_the_terminal(site: Site) -> None:
    site.docker.answer(STATE, out="running unhealthy\n")
    site.docker.answer("compose logs", out="registration rejected: \033[2Jrevoked\rgood\n")
    site.docker.answer(HEALTH, out="no \033]52;c;AA\007 connection\n")
    _, _, why = site.verb("status")
    assert why.splitlines()[:2] == [
        "  the server refuses the site: [2Jrevokedgood",
        "  health check: no ]52;c;AA connection",
    ]


def test_what_an_answer_holds_does_not_act_on_the_terminal(site: Site) -> None:
    (site.folder / ".env").open("a").write("SITE_OWN_KEY=1\n")
    (site.folder / "answer").write_text("an answer\n")
    site.docker.answer("run --rm --network none", code=1, err="found one for \033[2Jsite-2\n")
    code, _, said = site.verb("join", "answer")
    assert code == 1
    assert "the answer was not taken: found one for [2Jsite-2\nNothing was changed." in said
