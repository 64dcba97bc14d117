"""The reference pages have what the code says: verbs, project.yml's keys, settings, and a job's options."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.common import site_settings
from bridge.job.settings import Limits
from dev import reference
from dev.reference import markdown
from provisioning import checks, keys
from provisioning.harden import HardenBuilder
from scripts import core, settings, uv
from scripts.__main__ import VERBS, main, verb
from scripts.core import ROOT
from scripts.json_object import ON_ERROR, JsonObject, below


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_is_what_the_code_says(name: str) -> None:
    page = (ROOT / name).read_text()
    assert reference.filled(page) == page, "run: python -m dev.reference"


def test_every_verb_has_a_section_in_the_order_of_the_help() -> None:
    assert reference.places("verb") == list(VERBS)
    page = (ROOT / "docs/reference/verbs.md").read_text()
    assert re.findall(r"^### (.+)\n\n<!-- verb: (.+) -->$", page, re.MULTILINE) == [(n, n) for n in VERBS]


@pytest.mark.parametrize("name", VERBS)
def test_a_section_names_every_option(name: str) -> None:
    section = reference.KINDS["verb"](name)
    ours = {word for param in verb(name).params for word in param.opts if word.startswith("--")}
    assert ours - {"--format"} <= set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", section))


def test_every_table_of_the_keys_and_of_the_settings_is_on_a_page() -> None:
    assert sorted(reference.places("keys")) == ["builders", "limits", "participant", "project", "site"]
    assert sorted(reference.places("settings")) == ["environment", "written", "yours"]
    assert sorted(reference.places("options")) == ["recipe", "server", "site"]
    assert sorted(reference.places("json")) == ["error", "summary"]
    assert reference.places("recipe") == ["arguments"] and reference.places("container") == ["all"]


# The object of --format json.

STATED = JsonObject(
    {"jobs": "", "jobs[].name": "", "jobs[].why?": "", "by{}.site": "", "late?": ""},
    {"With `--remove`": {"removed": ""}},
    {"apt": ""},
)
GOOD = {"jobs": [{"name": "a"}, {"name": "b", "why": ""}], "by": {"x": {"site": 1}}}


@pytest.mark.parametrize(
    ("found", "problems"),
    [
        (GOOD, []),
        ({**GOOD, "late": 1, "as": {"name": "lead"}}, []),
        ({"removed": []}, []),
        ({**GOOD, "by": None}, []),
        ({"jobs": [{}], "by": {}}, ["jobs[].name is missing"]),
        ({"jobs": [{"name": "", "id": 1}], "by": {}}, ["jobs[].id is not stated"]),
        ({"jobs": {}, "by": {"x": {}}}, ["by{}.site is missing", "jobs: expected a list"]),
        ({"jobs": []}, ["by is missing"]),
        ({"error": "no", "apt": [], "jobs": [1], "denied": True}, []),
        ({"error": "no", "other": 1}, ["other is not stated"]),
    ],
)
def test_an_object_is_compared_with_what_is_stated(found: dict[str, Any], problems: list[str]) -> None:
    assert STATED.problems(found) == problems


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_states_its_object(name: str) -> None:
    answer = importlib.import_module(VERBS[name]).JSON
    assert isinstance(answer, JsonObject)
    for stated in (answer.keys, *answer.others.values(), answer.on_error):
        assert stated is answer.on_error or stated
        assert all(text and text[-1] not in ".;" for text in stated.values())
        tops = {path.split(".")[0].rstrip("[]{}?") for path in stated}
        # Each key that has inner ones is told of too.
        assert tops == {path.rstrip("?") for path in stated if "." not in path} | (
            tops & {"first_difference"}
        )


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["down"],
        ["apps"],
        ["jobs"],
        ["hash", "apps/pytorch-quickstart"],
        ["submit", "apps/pytorch-quickstart"],
        ["apps", "--force"],
    ],
    ids=" ".join,
)
def test_a_verb_gives_the_stated_keys_without_provisioning(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(core, "ROOT", tmp_path)
    monkeypatch.setattr(uv, "ENVIRONMENTS", tmp_path)
    main([*words, "--format", "json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert importlib.import_module(VERBS[words[0]]).JSON.problems(found) == []


RAISES = ("Failure", "UsageError", "ConsoleError")


def test_every_fact_of_a_failure_is_stated() -> None:
    stated = {path.rstrip("?") for path in ON_ERROR}
    for name in VERBS:
        answer = importlib.import_module(VERBS[name]).JSON
        stated |= {
            path for keys_ in (answer.keys, answer.on_error, *answer.others.values()) for path in keys_
        }
    given = set()
    for path in [
        p for folder in ("scripts", "dev", "bridge/flare/console") for p in (ROOT / folder).glob("*.py")
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in RAISES:
                given |= {keyword.arg for keyword in node.keywords if keyword.arg}
    assert {"denied", "needed_gb", "jobs"} <= given
    assert not sorted(given - stated - {"code"})


def test_keys_below_another_one() -> None:
    assert below("jobs[]", {"name": "its name"}) == {"jobs[].name": "its name"}


# project.yml.

READ = re.compile(
    r"""(?:get_prop|prop(?:ertie)?s\.get|(?:item|entry|participant|content|project|listening)(?:\.props)?\.get)"""
    r"""\(\s*(?:"(?P<text>\w+)"|(?P<name>(?:\w+\.)?[A-Z_]{3,}))"""
)
ALSO_READ = {"host", "port", "scheme", "path", "args"}
"""Inner keys of `connect_to`, of `listening_host` and of a builder."""
BETWEEN_BUILDERS = {"NAMES_HERE"}
"""Properties that one builder leaves for another, as the code names them."""


def read_keys() -> set[str]:
    """The keys of project.yml that provisioning reads."""
    found = set()
    for path in sorted(ROOT.glob("provisioning/*.py")):
        for match in READ.finditer(path.read_text()):
            name = (match["name"] or "").split(".")[-1]
            module = keys if hasattr(keys, name) else site_settings
            found.add(match["text"] or str(getattr(module, name, name)))
    return found


def test_every_key_that_is_read_is_on_the_page() -> None:
    told = {key.name for key in (*keys.PROJECT, *keys.PARTICIPANT, *site_settings.TABLE.values())}
    read = read_keys()
    assert {"fed_learn_port", "revoked", "sandbox", "listening_host", "elsewhere"} <= read
    assert not sorted(read - told - ALSO_READ - BETWEEN_BUILDERS)


def test_the_defaults_of_keys_are_those_of_the_code() -> None:
    sizes = {key.name: key.default for key in keys.LIMIT}
    for field in dataclasses.fields(Limits):
        told = sizes.pop(field.name)
        assert (int(told) if field.name in keys.NUMBERS else site_settings.size(told)) == field.default
    assert not sizes
    by_name = {key.name: key for key in (*keys.PARTICIPANT, *keys.BUILDER)}
    assert by_name[keys.EGRESS].default == keys.EGRESSES[0]
    assert by_name["fed_learn_port"].default == str(keys.PORT)
    jobs = inspect.signature(HardenBuilder).parameters["max_jobs"].default
    assert by_name["max_jobs"].default.startswith(f"{jobs}.")
    assert (
        f'participant.get_prop(SANDBOX, "{by_name[keys.SANDBOX].default}")'
        in (ROOT / "provisioning/harden.py").read_text()
    )


def test_every_check_of_a_key_has_an_owner() -> None:
    assert {key.of for key in keys.OURS.values()} == set(checks.WHOSE)
    assert all(key.expected and key.meaning for key in (*keys.PROJECT, *keys.PARTICIPANT, *keys.LIMIT))


PAGES = ("docs/reference/project.md", "docs/how-to/site-settings.md")


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_keys_are_right(page: str) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        content = yaml.safe_load(block)
        if isinstance(content, dict) and "participants" in content:
            assert checks.problems_in_file(content) == []
            continue
        settings_of = content[0] if isinstance(content, list) else content
        entry = {"name": "site-1", "type": "client", "org": "a", **settings_of}
        server = {"name": "server", "type": "server", "org": "a"}
        admin = {"name": "a@b.example", "type": "admin", "org": "a", "role": "project_admin"}
        project = yaml.safe_load((ROOT / "project.yml").read_text())
        assert checks.problems_in_file({**project, "participants": [server, entry, admin]}) == []


# Settings.

COMPOSE = [
    ROOT / "compose.yaml",
    *sorted((ROOT / "compose").glob("*.yaml")),
    ROOT / "provisioning/compose.py",
]
DATA = "FLOWERBED_DATA"


def in_compose() -> dict[str, set[str | None]]:
    """The variables that Compose reads, each with the defaults that the files give it."""
    found: dict[str, set[str | None]] = {}
    for path in COMPOSE:
        for name, rest in re.findall(r"\$\{+([A-Z_]+)((?::[-?][^}]*)?)\}", path.read_text()):
            if not name.startswith("SITE_"):  # A join file writes those (`provisioning/join/join.sh`).
                found.setdefault(name, set()).add(rest[2:] if rest.startswith(":-") else None)
    return found


def test_settings_are_those_that_compose_reads_with_its_defaults() -> None:
    told = {setting.name: setting for setting in (*settings.YOURS, *settings.WRITTEN)}
    read = in_compose()
    assert {"FLOWERBED_SITE_MEMORY", "FLOWERBED_MLFLOW", "FLOWERBED_COMPOSE"} <= set(read)
    assert set(read) <= set(told)
    for name, defaults in read.items():
        shown = {None if default is None else default.replace("../", "./") for default in defaults}
        if name == settings.BIND:
            shown -= {"0.0.0.0"}  # Of a relay on another machine, which is there for others.
        assert name in (DATA, "FLOWERBED_PORT") or shown <= {
            told[name].default or None,
            "",
            told[name].default,
        }


def test_every_setting_is_read_somewhere() -> None:
    text = "".join(p.read_text() for folder in ("scripts", "provisioning", "compose") for p in code(folder))
    text += (ROOT / "compose.yaml").read_text()
    by_constant = {settings.RESULTS_LIMIT: "RESULTS_LIMIT", settings.BIND: "BIND"}
    for setting in (*settings.YOURS, *settings.ENVIRONMENT):
        name = setting.name.removesuffix("NAME")  # Of FLOWERBED_FLWR_PORT_NAME, the code makes the end.
        wanted = f"settings.{by_constant[setting.name]}" if setting.name in by_constant else name
        assert not setting.name.startswith("FLOWERBED_") or re.search(rf"\b{wanted}\b", text), setting.name
    told = {s.name for s in (*settings.YOURS, *settings.WRITTEN, *settings.ENVIRONMENT)}
    read = set(re.findall(r"environ(?:\.get\(|\[)\"(FLOWERBED_\w+)\"", text))
    assert not sorted(read - told)


def code(folder: str) -> list[Path]:
    """The files of a folder that say something, but the table of settings."""
    found = [path for path in sorted((ROOT / folder).glob("*.*")) if path.suffix in (".py", ".yaml")]
    return [path for path in found if path.name != "settings.py"]


def test_the_list_in_compose_yaml_has_the_defaults() -> None:
    listed = re.findall(
        r"^#   (FLOWERBED_\w+) .*\[([^:\]]+)", (ROOT / "compose.yaml").read_text(), re.MULTILINE
    )
    assert len(listed) > 8
    for name, default in listed:
        assert default in (settings.DEFAULTS[name], "the server's own, 8002")


@pytest.mark.parametrize("where", ["environment", "file", "nowhere"])
def test_a_setting_of_the_environment_comes_first(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "ROOT", tmp_path)
    monkeypatch.delenv(settings.BIND, raising=False)
    if where != "nowhere":
        (tmp_path / ".env").write_text(f"{settings.BIND}=10.0.0.1\n")
    if where == "environment":
        monkeypatch.setenv(settings.BIND, "10.0.0.2")
    wanted = {"environment": "10.0.0.2", "file": "10.0.0.1", "nowhere": "127.0.0.1"}
    assert settings.read(settings.BIND) == wanted[where]


# How it is written.


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("With --app: it builds", "With `--app`: it builds"),
        ("`build --app APP` makes one", "`build --app APP` makes one"),
        ("run ./flowerbed up again", "run `./flowerbed up` again"),
        ("Not with --format json.", "Not with `--format json`."),
        ("a-b --- c", "a-b --- c"),
    ],
)
def test_options_and_verbs_become_code(text: str, marked: str) -> None:
    assert markdown.marked(text) == marked


def test_help_has_no_semicolon_and_short_sentences() -> None:
    """In what is shown by `--help`, but for examples."""
    lengths = []
    for name in VERBS:
        docstring = inspect.getdoc(importlib.import_module(VERBS[name])) or ""
        prose = " ".join(line for line in docstring.splitlines() if not line.startswith(" "))
        helps = [str(getattr(param, "help", "")) for param in verb(name).params]
        for text in (prose, *helps):
            assert ";" not in text, text
            lengths += [len(sentence.split()) for sentence in re.split(r"(?<=[.:])\s", text) if sentence]
    assert sum(lengths) / len(lengths) < 16
