"""The server lets a join file be used once: by its id, its last day, and the number of the first machine."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.fl_context_utils import gen_new_peer_ctx
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply, new_cell_message
from nvflare.private.defs import CellMessageHeaderKeys, ClientType

from bridge.flare import joins, site_messages
from bridge.flare.joins import Joins, JoinTeller
from bridge.launch import environment
from provisioning import join

TODAY = datetime.datetime.now(datetime.UTC).date()
SITE = "hospital-c"


def told(file: str, machine: str) -> dict[str, str]:
    return {"join": file, "instance": machine}


class Server:
    """A server's join files, and the registrations that it let through."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.registered = folder, 0

    def made(self, file: str, days: int = 14) -> None:
        join.record(self.folder / "policy", SITE, file, TODAY + datetime.timedelta(days=days))

    def refuses(self, words: object, site: str = SITE, works: bool = True) -> str | None:
        """Let a site register at a server that has just been started."""

        def register() -> bool:
            self.registered += works
            return works

        return Joins(self.folder / "policy", self.folder / "store/joined.json").register(
            site, words, register
        )


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def test_a_site_without_a_join_file_registers_as_before(server: Server) -> None:
    assert server.refuses(None) is None
    server.made("one")
    assert server.refuses(None, site="site-1") is None
    assert server.registered == 2


def test_a_file_is_for_one_machine_also_after_a_restart_of_the_server(server: Server) -> None:
    server.made("one")
    assert server.refuses(told("one", "a")) is None
    assert server.refuses(told("one", "a")) is None
    assert server.registered == 2
    assert "used before, on another machine" in str(server.refuses(told("one", "b")))
    assert "./flowerbed site add hospital-c" in str(server.refuses(told("one", "b")))
    assert server.registered == 2
    assert Joins(server.folder, server.folder / "store/joined.json").used() == [SITE]


def test_a_registration_that_fails_binds_no_machine(server: Server) -> None:
    server.made("one")
    assert server.refuses(told("one", "b"), works=False) is None
    assert server.refuses(told("one", "a")) is None


def test_a_newer_file_takes_the_place_of_an_older_one(server: Server) -> None:
    server.made("one")
    server.made("two")
    assert server.refuses(told("one", "a")) is None
    assert server.refuses(told("two", "b")) is None, "the site has moved to another machine"
    assert "a newer join file of hospital-c was used" in str(server.refuses(told("one", "a")))


def test_a_file_cannot_be_used_after_its_last_day(server: Server) -> None:
    server.made("one", days=0)
    server.made("old", days=-1)
    assert f"was {TODAY - datetime.timedelta(days=1)}" in str(server.refuses(told("old", "a")))
    assert server.refuses(told("one", "a")) is None


def test_a_site_that_has_joined_stays_after_the_last_day_of_its_file(server: Server) -> None:
    server.made("one", days=-1)
    file = server.folder / "store/joined.json"
    file.parent.mkdir()
    file.write_text(json.dumps({SITE: {"join": "one", "instance": "a", "made": ""}}))
    assert server.refuses(told("one", "a")) is None
    server.made("two")
    assert "one" not in (server.folder / "policy/joins.json").read_text(), "old ones are forgotten"
    assert server.refuses(told("one", "a")) is None


@pytest.mark.parametrize(
    "words",
    [None, "one", {}, told("", "a"), told("one", ""), told("one", "x" * 65), {"join": 1, "instance": "a"}],
)
def test_a_kit_without_its_join_file_is_refused(server: Server, words: object) -> None:
    server.made("one")
    assert "joins with a join file" in str(server.refuses(words))
    assert server.registered == 0


def test_an_unknown_file_is_refused(server: Server) -> None:
    server.made("one")
    assert "knows no such join file" in str(server.refuses(told("another", "a")))


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_list_that_cannot_be_read_lets_nobody_in(server: Server, content: str) -> None:
    server.made("one")
    (server.folder / "policy/joins.json").write_text(content)
    assert "cannot read which join files were made" in str(server.refuses(told("one", "a")))


def test_a_site_tells_its_file_and_machine_when_it_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(joins.JOIN, "one")
    monkeypatch.setenv(joins.INSTANCE, "a")
    context = FLContext()
    JoinTeller().handle_event(EventType.BEFORE_CLIENT_REGISTER, context)
    shareable = Shareable()
    shareable.set_peer_context(gen_new_peer_ctx(context))
    request = new_cell_message({}, shareable)
    assert site_messages._told(request) == told("one", "a")


def test_the_server_asks_before_flare_registers(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.made("one")
    known = Joins(server.folder / "policy", server.folder / "store/joined.json")
    monkeypatch.setattr(site_messages, "JOINS", known)

    def registers(_: Any) -> Any:
        server.registered += 1
        return make_reply(ReturnCode.OK, "", {"token": "t"})

    flare: Any = SimpleNamespace(
        register_client=registers, client_manager=SimpleNamespace(name_to_clients={})
    )
    messages = site_messages.SiteMessages(
        None,  # type: ignore[arg-type]
        flare,
        None,
        lambda *_: None,
        lambda *_: None,
    )

    def answer(machine: str) -> Any:
        context = FLContext()
        context.set_prop(joins.PROPERTY, told("one", machine), private=False, sticky=False)
        shareable = Shareable()
        shareable.set_peer_context(gen_new_peer_ctx(context))
        headers = {
            CellMessageHeaderKeys.CLIENT_NAME: SITE,
            CellMessageHeaderKeys.CLIENT_TYPE: ClientType.REGULAR,
        }
        return messages.register(new_cell_message(headers, shareable))

    assert answer("a").payload == {"token": "t"}
    refused = answer("b")
    assert refused.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.UNAUTHENTICATED
    assert "used before" in refused.get_header(MessageHeaderKey.ERROR) and server.registered == 1


def test_no_app_gets_the_numbers_of_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (joins.JOIN, joins.INSTANCE):
        monkeypatch.setenv(name, "0123")
    given = environment.variables(tmp_path)
    assert [given[name] for name in (joins.JOIN, joins.INSTANCE)] == ["", ""]
