"""Bound FLARE's audit log, and write a repeated question only once an hour.

A console that waits for a job asks the server the same question over and over. The first time is a line, and
then one an hour. A login, and each command that changes something, is always a line. The older half of the
log is one other file.

For nvflare 2.9.0 `fuel/sec/audit.py`. FLARE opens the file once and keeps it. Several of its parts hold the
`Auditor`, so the auditor stays, and its open file is replaced. Each line is written under the auditor's lock,
so none is lost or torn.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TextIO

from nvflare.fuel.sec.audit import AuditService

from bridge.job import replaced

OLDER = ".1"
"""The suffix of the older file."""


QUESTION = re.compile(
    r"\[E:[0-9a-f-]+\]\[T:[0-9 :.-]+\]"
    r"(\[U:[\w.@ -]+\]\[A:(?:"
    r"list_jobs(?: -d)?(?: [\w-]+)?|get_job_meta [\w-]+|get_job_log [\w-]+ [\w.-]+|check_status server"
    r"|site_reports|app_command [\w-]+ flowerbed\.events)\])\n"
)
"""The line of a command that only asks for progress, with its person and its question."""

WRITTEN_AGAIN = 3600.0
"""Seconds after which the same question of the same person is a line again."""

REMEMBERED = 10_000
"""Questions that are remembered. Beyond this all are forgotten, and written once more."""


class RotatingFile:
    """A text file to append to. Above half of the limit it becomes the older one."""

    def __init__(self, file: Path, limit: int) -> None:
        self._file = file
        self._half = max(1, limit // 2)
        self._open: TextIO = file.open("a", encoding="utf-8", errors="backslashreplace")
        self._size = file.stat().st_size
        self._asked: dict[str, float] = {}

    def write(self, text: str) -> int:
        """Append, unless it is a question that was written lately. Called under the auditor's lock."""
        if (question := QUESTION.fullmatch(text)) and self._was_written(question[1]):
            return len(text)
        if self._size and self._size + len(text) > self._half:
            self._rotate()
        self._size += len(text.encode(errors="backslashreplace"))
        return self._open.write(text)

    def _was_written(self, question: str) -> bool:
        now = time.monotonic()
        if now - self._asked.get(question, float("-inf")) < WRITTEN_AGAIN:
            return True
        if len(self._asked) >= REMEMBERED:
            self._asked.clear()
        self._asked[question] = now
        return False

    def flush(self) -> None:
        """Flush to the system."""
        self._open.flush()

    def close(self) -> None:
        """Close the file."""
        self._open.close()

    def _rotate(self) -> None:
        self._open.close()
        try:
            self._file.replace(f"{self._file}{OLDER}")
        finally:
            # On a full disk, for example. An audit that continues in the same file is better than none.
            self._open = self._file.open("a", encoding="utf-8", errors="backslashreplace")
            self._size = self._file.stat().st_size


def bound(limit: int) -> bool:
    """Bound this process's audit log, in bytes. Returns whether there is such a log."""
    auditor = AuditService.get_auditor()
    if auditor is None:
        return False
    with auditor._lock:
        if auditor.audit_file is None or isinstance(auditor.audit_file, RotatingFile):
            return auditor.audit_file is not None
        auditor.audit_file.close()
        replaced.replace(replaced.AUDIT_FILE, lambda file: RotatingFile(Path(file.name), limit), of=auditor)
    return True
