"""A key that is locked with a passphrase opens with that one alone."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from bridge.common import locked
from bridge.common.locked import CannotUnlock

SECRET = b"-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\n"
WORDS = b"open sesame, please"


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real" not in request.node.name:
        monkeypatch.setattr(locked, "COST", 2)


def test_it_opens_with_its_passphrase() -> None:
    text = locked.lock(SECRET, WORDS)
    assert locked.is_locked(text) and max(map(len, text.splitlines())) <= 64
    assert locked.unlock(text, WORDS) == SECRET
    assert b"PRIVATE" not in text.encode() and locked.lock(SECRET, WORDS) != text


def test_the_real_work_of_a_guess() -> None:
    assert locked.COST >= 2**17
    assert locked.unlock(locked.lock(SECRET, WORDS), WORDS) == SECRET


def test_it_does_not_open_otherwise() -> None:
    text = locked.lock(SECRET, WORDS)
    lines = text.splitlines(keepends=True)
    altered = [
        text[:60] + ("A" if text[60] != "A" else "B") + text[61:],
        text.replace("\n", "", 1),
        "".join(lines[:-2] + lines[-1:]),
        "",
        SECRET.decode(),
    ]
    for wrong in altered:
        with pytest.raises(CannotUnlock, match="the key was altered"):
            locked.unlock(wrong, WORDS)
    for guess in (b"", WORDS + b" ", WORDS.upper()):
        with pytest.raises(CannotUnlock, match="not the passphrase"):
            locked.unlock(text, guess)


def unlocked(
    key: Path, words: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr(locked, "KEY", key)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(words)))
    try:
        locked.main()
    except SystemExit as end:
        assert end.code == 1
    return capsys.readouterr().err


def test_a_kits_key_is_unlocked_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "client.key"
    text = locked.lock(SECRET, WORDS)
    key.write_text(text)
    assert "not the passphrase" in unlocked(key, b"guess\n", monkeypatch, capsys)
    assert key.read_text() == text
    assert unlocked(key, WORDS + b"\r\n", monkeypatch, capsys) == ""
    assert key.read_bytes() == SECRET and key.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["client.key"]
    # Once it is open, no passphrase is needed.
    assert unlocked(key, b"", monkeypatch, capsys) == "" and key.read_bytes() == SECRET
    assert "No such file" in unlocked(tmp_path / "none", WORDS, monkeypatch, capsys)
