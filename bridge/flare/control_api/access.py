"""Who may ask Flower's Control API: everyone who has a token from this person.

    python -I -S access.py '{"do": "connection"}'  what a client needs to connect
    python -I -S access.py '{"do": "token"}'       the same, and a new token
    python -I -S access.py '{"do": "approve", "code": "BCDF-GHJK"}'
    python -I -S access.py '{"do": "revoke"}'      end all tokens

Who can run this program in the console's container acts under this person's identity anyway. Only the
standard library is imported, so that it starts fast.

A token is 256 random bits. What is kept is its SHA-256, with the person's name: a kit of somebody else ends
all tokens. `flwr login` works by the device flow of OAuth (RFC 8628): the machine shows a code, and this
person approves it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORKSPACE = Path(os.environ.get("FLOWERBED_WORKSPACE", "/workspace"))
FOLDER = Path(os.environ.get("FLOWERBED_CONTROL_API") or WORKSPACE / "control-api")
"""What must survive a restart: tokens and the certificate. Only this user may enter."""

TOKENS, LOGINS, LOCK = "tokens.json", "logins", "lock"
CA, CERTIFICATE, KEY = "ca.pem", "server.pem", "server.key"

TOKEN_LIFE = 90 * 86400.0
"""Seconds for which a token is good."""

TOKENS_KEPT = 100
"""Tokens at a time. The oldest goes when there are more."""

LOGIN_WITHIN = 600.0
"""Seconds for which a code can be approved."""

LOGINS_KEPT = 16
"""Logins that wait for approval at a time. Anybody who reaches the port can begin one."""

CODE_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""Those of a code: no vowels, so no words."""

CODE = re.compile(rf"[{CODE_LETTERS}]{{4}}-[{CODE_LETTERS}]{{4}}")


class AccessDenied(Exception):
    """The text is for users."""


def user() -> str:
    """Return the person's name in FLARE, an e-mail address."""
    return str(_kit()["username"])


def project() -> str:
    """Return the federation's name."""
    return str(_kit()["project_name"])


def _kit() -> dict[str, Any]:
    return dict(json.loads((WORKSPACE / "startup" / "fed_admin.json").read_text())["admin"])


def folder() -> Path:
    """Return the folder, which is made if it is not there.

    Raises:
        AccessDenied: somebody else may enter it.
    """
    for path in (FOLDER, FOLDER / LOGINS):
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if not path.is_dir() or path.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise AccessDenied(f"expected {path} to be a folder that only user {os.geteuid()} can enter")
    return FOLDER


def new_token() -> str:
    """Return a new token of this person's."""
    with _locked():
        return _new_token()


def _new_token() -> str:
    """Make a token, under the lock."""
    token = secrets.token_urlsafe(32)
    tokens = _tokens()
    tokens[_hash(token)] = time.time() + TOKEN_LIFE
    newest = sorted(tokens, key=lambda known: tokens[known])[-TOKENS_KEPT:]
    _write(TOKENS, {"user": user(), "tokens": {known: tokens[known] for known in newest}})
    return token


def is_token(token: str) -> bool:
    """Whether a token is good now."""
    return _hash(token) in _tokens()


def revoke() -> int:
    """End all tokens, and what waits for approval. Returns how many tokens there were."""
    with _locked():
        count = len(_tokens())
        (folder() / TOKENS).unlink(missing_ok=True)
        for login in (folder() / LOGINS).iterdir():
            login.unlink(missing_ok=True)
    return count


def begin_login() -> tuple[str, str]:
    """Return a device code, which is secret, and the code that a person sees.

    Raises:
        AccessDenied: too many wait already.
    """
    code = "".join(secrets.choice(CODE_LETTERS) for _ in range(8))
    code, secret = f"{code[:4]}-{code[4:]}", secrets.token_urlsafe(32)
    with _locked():
        if len(_waiting()) >= LOGINS_KEPT:
            raise AccessDenied(f"{LOGINS_KEPT} logins wait for approval: try again in a few minutes")
        _write(f"{LOGINS}/{code}", {"secret": _hash(secret), "approved": False})
    return f"{code}.{secret}", code


def approve(code: str) -> None:
    """Let in the machine that shows a code.

    Raises:
        AccessDenied: no login waits under this code.
    """
    code = code.strip().upper()
    with _locked():
        login = _waiting().get(code)
        if login is None:
            raise AccessDenied(
                f"no login waits for the code {code[:20]!r}. A code looks like BCDF-GHJK and is valid for "
                f"{LOGIN_WITHIN / 60:.0f} minutes: run flwr login again"
            )
        _write(f"{LOGINS}/{code}", {**login, "approved": True})


def finish_login(device_code: str) -> str | None:
    """Return a token once the login was approved. None: not yet.

    Raises:
        AccessDenied: no such login waits.
    """
    code, _, secret = device_code.partition(".")
    with _locked():
        login = _waiting().get(code)
        if login is None or not secrets.compare_digest(str(login["secret"]), _hash(secret)):
            raise AccessDenied("this login has ended. Run flwr login again")
        if not login["approved"]:
            return None
        (folder() / LOGINS / code).unlink()
        return _new_token()


def _waiting() -> dict[str, dict[str, Any]]:
    """The logins that wait, by code. Those that waited too long are removed."""
    found = {}
    for path in (folder() / LOGINS).iterdir():
        with contextlib.suppress(OSError, ValueError):
            if time.time() - path.stat().st_mtime > LOGIN_WITHIN:
                path.unlink(missing_ok=True)
            elif CODE.fullmatch(path.name):
                found[path.name] = dict(json.loads(path.read_text()))
    return found


def _tokens() -> dict[str, float]:
    """The good tokens: when each ends, by its hash."""
    try:
        kept = json.loads((FOLDER / TOKENS).read_text())
        if kept["user"] != user():
            return {}
        return {str(known): float(ends) for known, ends in kept["tokens"].items() if ends > time.time()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _write(name: str, content: dict[str, Any]) -> None:
    path = folder() / name
    draft = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(content, file)
    draft.replace(path)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with os.fdopen(os.open(folder() / LOCK, os.O_WRONLY | os.O_CREAT, 0o600), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(request: str) -> int:
    """Answer one request. Returns the exit code."""
    os.umask(0o077)
    try:
        asked = json.loads(request)
        answer: dict[str, Any] = {}
        match asked["do"]:
            case "token":
                answer = {"token": new_token(), "ca": (folder() / CA).read_text()}
                answer |= {"user": user(), "project": project()}
            case "connection":
                answer = {"ca": (folder() / CA).read_text(), "user": user(), "project": project()}
            case "approve":
                approve(str(asked["code"]))
            case "revoke":
                answer = {"revoked": revoke()}
            case unknown:
                raise AccessDenied(f"unknown action {str(unknown)[:40]!r}")
    except AccessDenied as denied:
        print(json.dumps({"error": str(denied)}), file=sys.stderr)
        return 2
    except FileNotFoundError as missing:
        print(json.dumps({"error": f"Flower's Control API has not started here: {missing}"}), file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
