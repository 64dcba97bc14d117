"""Shell scripts: shellcheck finds nothing, and what runs on the host runs on macOS and WSL too.

macOS has bash 3.2 and BSD's tools. There is no Mac here, so a list of constructs stands in for it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import environments, source_builds

ROOT = Path(__file__).resolve().parents[2]

AT_SITES = {f"provisioning/join/{name}.sh" for name in ("join", "runtime", "site")}
"""Scripts for the machine of a site, in the shell that it has."""

IN_CONTAINERS = {"images/entrypoint", "images/healthcheck"}
"""Scripts that run in containers only. They may use what Linux has."""

SHEBANG = re.compile(r"#!.*\b(?:ba)?sh\b")
GENERATED = {".git", ".flowerbed", "workspace", "results", "data", "jobs", "deployed", "node_modules"}

TOOLS = (
    "chown|chmod|cp|mv|rm|ln|mkdir|mktemp|sed|stat|date|sort|grep|head|tail|cut|tr|wc|find|xargs|touch|du|df"
    "|base64|seq|readlink|cmp"
)
LINUX_ONLY = (
    "flock|setsid|timeout|realpath|tac|nproc|getent|systemctl|ss|shuf|numfmt|truncate|sha256sum|md5sum|pidof"
    "|free|ldd|unshare|setpriv"
)
START = r"(?:^|[;|&({`]|\b(?:if|then|else|do|while|until|exec|!)) *(?:\w+=\S* )*"
"""The place of a command's name."""

NOT_ON_MACOS = {
    "bash 4": r"\b(mapfile|readarray|coproc)\b|\b(declare|local|typeset) -[a-zA-Z]*[Ang]|\bwait -n\b|\|&|&>>"
    r"|;;?&(?!&)|\bexec \{\w+\}|\[\[? -v |shopt -s (globstar|lastpipe)|read [^|;]*-t 0?\.",
    "bash 4 in an expansion": r"\$\{\w+(,,?|\^\^?)[^}]*\}|\$\{\w+@\w\}|\$\{\w+\[-\d+\]\}"
    r"|\$\{\w+:[^}]*:\s*-\d+\}",
    "bash 4 in printf": r"printf [^|;]*%\([^)]*\)T",
    "variables of bash 4 and 5": r"\$\{?(EPOCH(SECONDS|REALTIME)|BASHPID|BASH_ARGV0|SRANDOM)\b",
    "an array that may be empty, under set -u": r"\$\{\w+\[[@*]\]",
    "a command": rf"{START}({LINUX_ONLY})(?= |$)",
    "a file": r"/proc\b|/sys/|/dev/shm|/run/|/etc/os-release",
    "a long option": rf"{START}({TOOLS}) ([^|;&]* )?--[a-z]",
    "an option": r"\breadlink -[a-z]*[femq]|\bstat -[a-z]*c|\bdate [^|;]*(-d |%N)|\bcp -[a-zA-Z]*[alTtu]\b"
    r"|\bsed -[a-z]*[irz]|\bgrep -[a-zA-Z]*P|\bxargs -[a-z]*[rd]\b|\bsort -[a-z]*V|\bmv -[a-z]*[tT]\b"
    r"|\bfind [^|;]*-(printf|mindepth|regextype|executable|quit)|\b(head|tail) -n -|\bmktemp -[a-z]*p"
    r"|\bln -[a-z]*[rtT]\b|\becho -[ne]\b|\bdf -[a-zA-Z]*B|\bdu -[a-z]*b",
}
"""What macOS lacks, as regular expressions by kind."""


def scripts() -> Iterator[Path]:
    """Yield the shell scripts of the checkout."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if GENERATED.intersection(parts) or path.suffix not in ("", ".sh") or not path.is_file():
            continue
        with path.open("rb") as file:
            if SHEBANG.match(file.readline(80).decode(errors="replace")):
                yield path


def missing_on_macos(text: str) -> list[str]:
    """Return the lines of a script that use what macOS lacks, each with the reason."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()[:1] != "#"]
    return [
        f"line {number}: {kind}: {line.strip()}"
        for number, line in lines
        for kind, pattern in NOT_ON_MACOS.items()
        if re.search(pattern, line)
    ]


def shellcheck(*words: str, text: str = "") -> str:
    """Return what shellcheck finds."""
    program = Path(sys.executable).with_name("shellcheck")
    return subprocess.run([program, *words], input=text, capture_output=True, text=True, check=False).stdout


def test_shellcheck_finds_nothing() -> None:
    found = list(scripts())
    names = {path.relative_to(ROOT).as_posix() for path in found}
    assert names >= {"flowerbed", ".ci/run", *IN_CONTAINERS, *AT_SITES}
    assert not shellcheck(*map(str, found))
    for text in (environments.APT, source_builds.COLLECT):
        assert not shellcheck("--shell=sh", "-", text=f"set -eu\n{text}")


def test_shellcheck_would_find_something() -> None:
    assert "SC2086" in shellcheck("-", text="#!/bin/sh\nrm $1\n")


@pytest.mark.parametrize("name", ["flowerbed", ".ci/run", *sorted(AT_SITES)])
def test_scripts_of_the_host_use_nothing_that_macos_lacks(name: str) -> None:
    assert not missing_on_macos((ROOT / name).read_text())


def test_every_other_script_runs_in_containers() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in scripts()}
    assert names == {"flowerbed", ".ci/run", *IN_CONTAINERS, *AT_SITES}, "look at it here too"


@pytest.mark.parametrize(
    "line",
    [
        "flock 9",
        'root=$(readlink -f "$0")',
        'chown -R --reference="$root" .flowerbed',
        'setsid ./flowerbed test "$@" &',
        '[ -d "/proc/$pid" ] || break',
        'case " ${arguments[*]} " in',
        'run "${words[@]}"',
        "mapfile -t lines <file",
        "declare -A by_name",
        'echo "${name,,}"',
        "printf '%(%s)T' -1",
        "start=$EPOCHSECONDS",
        'echo "${name@Q}"',
        "make |& tee log",
        "wait -n",
        "exec {lock}>file",
        "sed -i s/a/b/ file",
        "date -d tomorrow",
        "date +%s.%N",
        'stat -c %u "$file"',
        "cp -a one two",
        "find . -printf '%f'",
        "grep -P '\\d' file",
        "timeout 5 make",
        "echo -n text",
        "mkdir --parents a/b",
    ],
)
def test_what_macos_lacks_is_found(line: str) -> None:
    assert missing_on_macos(f"#!/usr/bin/env bash\n{line}\n")


@pytest.mark.parametrize(
    "line",
    [
        "# flock is missing on macOS",
        'exec "$python" -m venv --clear "$venv"',
        'ls -dn "$root/"',
        'chown -hR "$user:$group" .flowerbed',
        'find "$folder" -type f -exec rm {} +',
        'kill -0 "$pid" 2>/dev/null || break',
        "text=${text//$old/$new}",
        "docker compose down --volumes",
    ],
)
def test_what_macos_has_is_not_found(line: str) -> None:
    assert not missing_on_macos(f"#!/usr/bin/env bash\n{line}\n")
