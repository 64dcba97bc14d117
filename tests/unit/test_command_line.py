"""The command line itself: help, suggestions, wrong use, durations, and what is imported for it."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from scripts import compose, core, options, provision, status
from scripts.__main__ import VERBS, _wants_json, main, summary, verb
from scripts.core import ROOT


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_verb_in_its_group(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    shown = capsys.readouterr().out
    assert all(f"│ {name} " in shown for name in VERBS)
    groups = [shown.index(f"─ {name} ─") for name in ("Begin", "Jobs", "Federation", "Developers")]
    assert groups == sorted(groups)


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help_with_its_summary_and_the_format(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(VERBS[name])
    assert summary(name) == (module.__doc__ or "").splitlines()[0]
    assert main([name, "-h"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert summary(name) in shown and "--format" in shown


@pytest.mark.parametrize("name", VERBS)
def test_every_parameter_has_help(name: str) -> None:
    lacking = [param.name for param in verb(name).params if not getattr(param, "help", None)]
    assert not lacking


def test_without_a_verb_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "quickstart" in capsys.readouterr().out


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    version = capsys.readouterr().out.removeprefix("flowerbed ").strip()
    assert f'version = "{version}"\n' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["statu"], "flowerbed: No such command 'statu'. Did you mean 'status'?\n"),
        (
            ["submit", "--in-ordr", "3"],
            "flowerbed submit: No such option '--in-ordr'. Did you mean '--in-order'?\n",
        ),
        (["wait"], "flowerbed wait: Missing argument 'JOB'.\n  Help: ./flowerbed wait --help\n"),
        (["jobs", "--format", "xml"], "'xml' is not one of 'text', 'json'."),
        (["wait", "x", "--timeout", "5x"], "'5x': expected a time such as 90, 90s, 5m or 1h."),
        (["stop", "j-1"], "No such command 'stop'. Did you mean 'abort'?\n"),
        (["help"], "Did you mean '--help'?\n"),
    ],
)
def test_wrong_use_is_one_error_and_code_2(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert text in said.err and said.out == ""
    assert said.err.count("Did you mean") <= 1


@pytest.mark.parametrize(("words", "code"), [(["site", "--help"], 0), (["site", "-h"], 0), (["site"], 2)])
def test_the_first_word_of_several_verbs_lists_them(
    words: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == code
    said = capsys.readouterr().out
    assert all(f"site {verb} " in said for verb in ("add", "approve", "list", "remove"))
    assert "ca export" not in said and "Add a site on another machine" in said


def test_wrong_use_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wait", "--timeout", "x", "--format", "json"]) == 2
    [line] = capsys.readouterr().out.splitlines()
    assert "expected a time" in json.loads(line)["error"]


@pytest.mark.parametrize(
    ("words", "wants"),
    [
        (["jobs", "--format", "json"], True),
        (["jobs", "--format=json"], True),
        (["jobs", "--format", "text"], False),
        (["test", "--", "--format", "json"], False),
        (["jobs", "--format"], False),
        ([], False),
    ],
)
def test_the_nodes_that_want_an_object(words: list[str], wants: bool) -> None:
    assert _wants_json(words) is wants


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("5m", 300), ("1h", 3600), ("2d", 172800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert options.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5", "1h30", "5 minutes", "inf", "nan", "1e3"])
def test_invalid_durations_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        options.duration(text)


def test_help_imports_no_verb() -> None:
    """Help answers at once: heavy modules are imported only where they are needed."""
    program = "import sys; from scripts.__main__ import main; main(['-h']); print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {*VERBS.values(), "nvflare", "numpy", "yaml", "docker", "httpx", "matplotlib"}


@pytest.mark.parametrize("name", ["status", "jobs", "wait", "logs", "abort", "submit"])
def test_verbs_that_ask_import_little(name: str) -> None:
    program = f"import sys, {VERBS[name]}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(done.stdout.split()) & {"nvflare", "numpy", "docker", "httpx", "matplotlib"}


@pytest.mark.parametrize(("given", "kept"), [(0, 0o022), (0o077, 0o077), (0o002, 0o022)])
def test_nobody_else_may_write_what_a_verb_makes(given: int, kept: int) -> None:
    """Under umask 000 kits, .env and Compose files were for everybody to write."""
    before = os.umask(given)
    try:
        assert main(["--version"]) == 0
        assert os.umask(0o022) == kept
    finally:
        os.umask(before)


def test_completion_knows_verbs_and_options() -> None:
    for words, wanted in (("flowerbed st", "status"), ("flowerbed wait --ti", "--timeout")):
        environment = {"_FLOWERBED_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "1"}
        environment["COMP_CWORD"] = str(len(words.split()) - 1)
        done = subprocess.run(
            [sys.executable, "-m", "scripts"], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert wanted in done.stdout.split(), done.stderr


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_down_asks_before_it_removes_volumes(
    answer: str, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    stdin = io.StringIO(answer)
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", stdin)

    def is_provisioned() -> bool:
        begun.append("down")
        return False

    monkeypatch.setattr(compose, "is_provisioned", is_provisioned)
    assert main(["down", "--volumes"]) == code
    said = capsys.readouterr()
    assert "Remove the volumes? [y/N]" in said.err and said.out == ""
    assert begun == (["down"] if code == 0 else [])


def test_reading_project_yml_does_not_import_flare() -> None:
    """Every verb that asks the federation reads it. FLARE takes longer to import than they take to answer."""
    program = (
        "import sys; from scripts import provision; provision.load(provision.DEFAULT_PROJECT); "
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "nvflare" not in done.stdout.split()


def test_a_project_may_include_another_file(tmp_path: Path) -> None:
    """An included file counts as in FLARE."""
    text = (ROOT / "project.yml").read_text()
    (tmp_path / "more.yml").write_text("description: from there\n")
    (tmp_path / "project.yml").write_text(text.replace("description: ", "include: more.yml\nbefore: ", 1))
    assert provision.load(tmp_path / "project.yml")["description"] == "from there"


@pytest.mark.parametrize(("name", "looks"), [("jobs", 0), ("up", 1)])
def test_only_a_verb_that_may_write_looks_for_files_of_roots(
    name: str, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root checks every file: in a checkout of 2 GB, an answer would take seconds."""
    asked: list[str] = []
    monkeypatch.setattr(core, "give_back", lambda: asked.append(name))
    main([name, "--no-such-option"])
    assert len(asked) == looks


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_a_link_leads_to_is_not_given_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, patients = tmp_path / "root", tmp_path / "patients"
    (root / "results").mkdir(parents=True)
    patients.mkdir()
    (patients / "record").touch()
    (root / "data").symlink_to(patients)
    os.chown(root, 12345, 12345)
    monkeypatch.setattr(core, "ROOT", root)
    core.give_back()
    assert (root / "results").stat().st_uid == 12345
    assert {path.stat().st_uid for path in (patients, patients / "record")} == {0}


def test_an_unexpected_error_is_an_object_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise KeyError("build")

    monkeypatch.setattr(status, "status", broken)
    assert main(["status", "--format", "json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"error": "unexpected error: KeyError: 'build'"}
    assert "Traceback" in shown.err and "Please report it" in shown.err
