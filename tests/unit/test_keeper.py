"""The keeper of a site on another machine: its verbs, and its place in Compose."""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.lighter.impl.cert import CertBuilder

from bridge.common import archive, own_settings, site_environments
from bridge.common.app_environment import DESCRIPTION
from bridge.common.site_environments import VARIABLE, News
from bridge.keeper import __main__ as keeper
from bridge.launch import sandbox
from tests.unit.test_offers import NAME, Signer, Stick, admin, ca

__all__ = ["admin", "ca"]


@pytest.fixture
def stick(tmp_path: Path, ca: CertBuilder, admin: Signer, monkeypatch: pytest.MonkeyPatch) -> Stick:
    """Make a stick, and a site's folders as the keeper sees them."""
    made = Stick(tmp_path / "stick", ca, admin)
    (tmp_path / "site").mkdir()
    monkeypatch.setattr(keeper, "ENVIRONMENTS", tmp_path / "site")
    monkeypatch.setattr(keeper, "RENEWED", made.folder)
    return made


def test_a_sticks_environments_are_installed(
    stick: Stick, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keeper.main(["once", str(stick.folder)]) == 0
    assert capsys.readouterr().out == f"environment {NAME} is installed\n"
    assert (tmp_path / "site" / NAME / DESCRIPTION).is_file()
    assert keeper.main(["once", str(stick.folder)]) == 0
    assert capsys.readouterr().out == ""


def test_a_stick_that_was_changed_is_refused(
    stick: Stick, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stick.archive.write_bytes(b"x" + stick.archive.read_bytes()[1:])
    assert keeper.main(["once", str(stick.folder)]) == 1
    assert f"environment {NAME} is refused: " in capsys.readouterr().out
    # Only a project_admin's packages, where no code of a lead's is taken.
    stick.sign()
    monkeypatch.setenv("FLOWERBED_SIGNERS", "org_admin")
    assert keeper.main(["once", str(stick.folder)]) == 1
    assert "This site takes no code from that role" in capsys.readouterr().out


def test_an_approval_lets_it_in(
    stick: Stick, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "approve")
    assert keeper.main(["once", str(stick.folder)]) == 0
    shown = capsys.readouterr().out
    assert f"  Let it in: ./site approve {stick.packed.sha256}\n" in shown
    assert "run ./site take again" in shown
    assert "MB, signed by project_admin@hospital.example (project_admin), for " in shown
    assert keeper.main(["approve", stick.packed.sha256]) == 0
    assert keeper.main(["once", str(stick.folder)]) == 0
    assert "is installed" in capsys.readouterr().out


def test_the_news_say_what_was_not_installed(
    stick: Stick, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keeper.main(["news"]) == 0
    about = {NAME: "for app 1.0.0\x1b]"}
    News({NAME: "0" * 64}, {"ba9876543210": "\x1b]bad"}, about).write(tmp_path / "site")
    assert keeper.main(["news"]) == 0
    shown = capsys.readouterr().out
    assert f"environment {NAME} waits for your approval: for app 1.0.0\\x1b]\n" in shown
    assert f"  Let it in: ./site approve {'0' * 64}\n" in shown
    assert r"environment ba9876543210 is refused: \x1b]bad" in shown


@pytest.mark.parametrize(("words", "said"), [(["approve", "x"], "64 characters"), (["leave"], "expected")])
def test_other_words_are_refused(
    stick: Stick, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert keeper.main(words) == 2
    found = capsys.readouterr()
    assert said in found.out + found.err


def test_no_error_of_a_step_ends_the_keeper(
    stick: Stick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def fails(spool: Path, renewed: Path) -> None:
        raise RecursionError

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(keeper, "STEPS", (fails,))
    # The module's alone: a thread that another test has left sleeps, too.
    monkeypatch.setattr(keeper, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr("bridge.keeper.__main__.spool.FOLDER", stick.folder)
    with pytest.raises(KeyboardInterrupt):
        keeper.keep()
    assert (tmp_path / "site" / NAME / DESCRIPTION).is_file()


def test_a_process_that_locks_what_it_reads_does_not_stop_the_keeper(
    stick: Stick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bridge.keeper.__main__.spool.FOLDER", stick.folder)
    steps: list[int] = []
    held = stick.folder / ".lock"
    held.touch()

    def sleep(seconds: float) -> None:
        if len(steps) == 1:
            fcntl.flock(reader, fcntl.LOCK_UN)
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(keeper, "STEPS", (lambda *_: steps.append(1),))
    monkeypatch.setattr("bridge.keeper.__main__.time.sleep", sleep)
    with held.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_EX)
        with pytest.raises(KeyboardInterrupt):
            keeper.keep()
    assert len(steps) == 2 and "another process installs packages" in caplog.text
    assert (tmp_path / "site" / NAME / DESCRIPTION).is_file()
    # Apps read the folder of the environments, and nothing else that the keeper has.
    assert not (tmp_path / "site" / ".lock").exists() and "renewed" in sandbox.HIDDEN


def test_an_archive_that_no_library_reads_is_refused(
    stick: Stick, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OverflowError("timestamp out of range")

    monkeypatch.setattr(archive, "unpack", fails)
    assert keeper.main(["once", str(stick.folder)]) == 1
    assert f"environment {NAME} is refused: it cannot be read: timestamp" in capsys.readouterr().out


def test_the_sites_file_says_the_policy() -> None:
    text = own_settings.render("site-1", {"environments": "approve"}, [])
    assert text.count(f"{VARIABLE}: approve") == 2
    assert "keeper" not in own_settings.render("site-1", {"cpus": 2}, [])
    (problem,) = own_settings.problems({"environments": "aprove"})
    assert problem == "expected environments to be accept, approve, refuse, found 'aprove'"
    assert site_environments.policy() == "accept"
