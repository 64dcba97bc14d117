"""The code blocks of the tutorial and the how-to pages: each is run, or says why not (`tests/pages.py`)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from scripts.__main__ import VERBS as NAMES
from scripts.__main__ import verb
from scripts.core import ROOT
from tests import pages

OURS = ("bridge", "images", "provisioning", "scripts")
"""Folders with the programs that print messages."""

BLOCKS = [block for page in pages.pages() for block in pages.blocks(page)]


def test_every_block_is_run_or_says_why_not() -> None:
    assert not [block.place for block in BLOCKS if block.sort == "unknown"]
    print(pages.table())


def test_code_is_in_fenced_blocks() -> None:
    """An indented one has no language, and nothing would run it."""
    for page in pages.pages():
        text = re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text())
        assert not re.findall(r"(?m)^ {4,}(?:\$|\./flowerbed|docker|pip|export|- name:).*$", text), page


def test_other_tests_that_run_a_block_exist() -> None:
    named = {name for block in BLOCKS for name in re.findall(r"[\w/]+\.py", block.run_by)}
    assert named
    assert not sorted(name for name in named if not (ROOT / "tests" / name).is_file())


def test_other_tests_run_the_same_verbs_with_the_same_options() -> None:
    in_pages = "".join(f'"{word}"' for block in BLOCKS if block.sort == "run" for word in block.text.split())
    for block in BLOCKS:
        if block.sort != "run by another test" or block.language != "console":
            continue
        named = re.findall(r"[\w/]+\.py", block.run_by)
        code = "".join((ROOT / "tests" / name).read_text() for name in named)
        # That test runs the pages' own commands.
        code += in_pages if "integration/test_6_pages.py" in named else ""
        # Tests wait by the verb, so as to submit several jobs.
        code += '"--wait"' if '"wait"' in code else ""
        for words in re.findall(r"\./flowerbed ([^|>&;)\n]+)", block.text):
            verb_name, *others = shlex.split(words)
            wanted = [verb_name, *(word for word in others if word.startswith("-"))]
            lacking = [word for word in wanted if f'"{word}"' not in code]
            assert not lacking, (block.place, words, lacking)


def in_verbs(words: list[str]) -> list[str]:
    """Return a command line with a verb of two words as one."""
    return [" ".join(words[:2]), *words[2:]] if " ".join(words[:2]) in NAMES else words


VERBS = [
    (block.place, line)
    for block in BLOCKS
    if block.sort != "text"
    for line in block.text.splitlines()
    if "./flowerbed " in line
]


@pytest.mark.parametrize(("place", "line"), VERBS, ids=[place for place, _ in VERBS])
def test_verbs_and_options_exist(place: str, line: str) -> None:
    """Of blocks, too, that nothing runs here."""
    for words in re.findall(r"\./flowerbed ([^|>&;)]+)", line):
        name, *others = in_verbs(shlex.split(words, comments=True))
        if name != "--version":
            known = {option for parameter in verb(name).params for option in parameter.opts}
            options = {word.partition("=")[0] for word in others if word.startswith("-") and word != "--"}
            assert options <= known | {"--help"}, place


OF_OTHERS = (
    "Pool overlaps with other one on this address space",
    "could not find an available ... address pool",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "No route to host",
    "Connection to the SuperLink is unavailable",
    "memory.max ...: No such file or directory",
)
"""Messages on the page on trouble that are Docker's, Podman's, the kernel's or Flower's."""

VARYING = re.compile(r"\.\.\.|'[^']*'|\S*\d\S*|\b(?:server|site|JOB|N)\b|[():,/]|\. ")


def test_the_messages_on_the_page_on_trouble_are_ours() -> None:
    """Of each, some words that do not vary stand in a program's text."""
    texts = [ROOT / "flowerbed", *(file for name in OURS for file in (ROOT / name).rglob("*.py"))]
    texts += [file for file in (ROOT / "images").iterdir() if file.is_file()]
    code = "\n".join(file.read_text() for file in texts)
    # A long text is several, one after the other.
    code = re.sub(r"\s+", " ", re.sub(r'"\s*\n\s*f?"', "", code))
    page = (ROOT / "docs" / "how-to" / "trouble.md").read_text()
    rows = re.findall(r"(?m)^\| (.*?) \|", page)
    messages = [text for row in rows for text in re.findall(r"`([^`]+)`", row) if text not in OF_OTHERS]
    assert len(messages) > 50
    wrong = []
    for message in messages:
        parts = [part.strip() for part in VARYING.split(message)]
        longest = max(parts, key=lambda part: len(part.split()))
        if not any(part in code for part in parts if len(part.split()) >= min(2, len(longest.split()))):
            wrong.append(message)
    assert not wrong


SESSION = """\
# A page

<!-- not run: no second machine -->

```console
$ docker load -i image.tar
```

1.  A step:

    ```console
    $ one \\
    >   two
    printed
    $ three
    ...
    ```

```yaml title="project.yml"
- name: site-3
```
"""


def test_a_page_s_blocks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(SESSION)
    first, second, third = pages.blocks(page)
    assert (first.sort, first.not_run, first.line) == ("not run", "no second machine", 5)
    assert second.sort == "run"
    assert pages.commands(second) == [
        pages.Command("one \\\n  two", ["printed"]),
        pages.Command("three", ["..."]),
    ]
    assert (third.sort, third.title, third.text) == ("file", "project.yml", "- name: site-3\n")


@pytest.mark.parametrize(
    ("shown", "printed", "lacking"),
    [
        (
            ["job 7b64afe1-0b08-4e2f-9826-11700d35cc2a in 3 s"],
            "job 00000000-0000-4000-8000-000000000000 in 41 s",
            [],
        ),
        (["a", "...", "c"], "a\nb\nc", []),
        (["c", "a"], "a\nb\nc", []),
        (["a", "a"], "a\nb\nc", ["a"]),
        (["done ..."], "done, with 3 of 4", []),
        (["error 0.8137"], "error 0.8138", ["error 0.8137"]),
        (["flowerbed is up"], "mine is up", []),
    ],
)
def test_a_pages_output_is_compared(shown: list[str], printed: str, lacking: list[str]) -> None:
    assert pages.missing(shown, printed, "mine") == lacking


def test_a_part_of_project_yml_is_merged() -> None:
    project = {"name": "x", "participants": [{"name": "site-1", "type": "client"}]}
    pages.merge(project, [{"name": "site-1", "egress": "any"}, {"name": "site-2", "type": "client"}])
    pages.merge(project, {"revoked": ["site-9"]})
    assert project == {
        "name": "x",
        "participants": [
            {"name": "site-1", "type": "client", "egress": "any"},
            {"name": "site-2", "type": "client"},
        ],
        "revoked": ["site-9"],
    }


def test_a_command_that_fails_or_prints_something_else_fails_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    runner = pages.Runner(tmp_path, "mine")
    page.write_text('```text title="a.txt"\nhere\n```\n\n```console\n$ cat a.txt\nhere\n```\n')
    runner.run(page)
    assert runner.counts == {"file": 1, "run": 1}
    page.write_text("```console\n$ cat a.txt\nthere\n```\n")
    with pytest.raises(
        AssertionError, match=r"page.md:1: \$ cat a.txt\ndid not print \['there'\] but:\nhere"
    ):
        runner.run(page)
    page.write_text("```console\n$ cat b.txt\n```\n")
    with pytest.raises(AssertionError, match="No such file"):
        runner.run(page)
