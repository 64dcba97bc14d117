"""submit, jobs, wait, logs, abort and results with an imitated `docker compose exec`."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from flwr.common.config import fuse_dicts, parse_config_args
from nvflare.fuel.flare_api.api_spec import AuthorizationError

from bridge.common import events
from bridge.common.app import read_app
from bridge.flare.console import follow as inside
from bridge.flare.console.jobs import downloading
from scripts import app as apps
from scripts import app_builds, build, compose, console, core, data, engine, provision, results, submit, up
from scripts.__main__ import main
from scripts.core import ROOT, Failure
from tests.unit.asking import Asked
from tests.unit.faking import environment

APP = ROOT / "tests" / "apps" / "numpy-add"

MADE = "0123456789ab"
"""Its environment."""

PROJECT = {
    "participants": [
        {"name": "server", "type": "server"},
        {"name": "site-1", "type": "client"},
        {"name": "site-2", "type": "client"},
        {"name": "lead@x.example", "type": "admin", "role": "lead"},
        {"name": "Ann.Bee@x.example", "type": "admin", "role": "project_admin"},
    ]
}

# Plays docker: notes how it was called and answers as answers.json says for the console's verb.
FAKE = (
    f"#!{sys.executable} -IS"
    + """
import json, pathlib, sys
here = pathlib.Path(__file__).parent
words = sys.argv[1:]
if words[0] == "compose":
    print((here / "config.json").read_text())
    sys.exit()
program = next(number for number, word in enumerate(words) if word.endswith("/console/client.py"))
request = json.loads(words[program + 1])
if request["verb"] == "resolve":
    print(json.dumps({"job_id": request["job"]}))
    sys.exit()
answer = json.loads((here / "answers.json").read_text())[request["verb"]]
stdin = sys.stdin.buffer.read() if answer.get("reads") else b""
number = len(list(here.glob("stdin-*")))
(here / f"stdin-{number}").write_bytes(stdin)
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(words) + "\\n")
if "file" in answer:
    sys.stdout.buffer.write(pathlib.Path(answer["file"]).read_bytes())
sys.stdout.write(answer.get("out", ""))
sys.stderr.write(answer.get("err", ""))
sys.exit(answer.get("code", 0))
"""
)


class Fake:
    """An imitation: its answers, and its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers: dict[str, dict[str, Any]] = {}
        (folder / "docker.py").write_text(FAKE)
        (folder / "docker.py").chmod(0o755)
        self.services("lead", "ann-bee")

    def services(self, *names: str) -> None:
        """Say what is in the Compose file."""
        (self.folder / "config.json").write_text(json.dumps({"services": {name: {} for name in names}}))

    def answer(self, verb: str, **answer: Any) -> None:
        self.answers[verb] = answer
        (self.folder / "answers.json").write_text(json.dumps(self.answers))

    @property
    def calls(self) -> list[list[str]]:
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def request(self, number: int) -> dict[str, Any]:
        return dict(json.loads(self.calls[number][7]))

    def stdin(self, number: int = 0) -> bytes:
        return (self.folder / f"stdin-{number}").read_bytes()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    folder = tmp_path / "fake"
    folder.mkdir()
    monkeypatch.setattr(compose, "is_provisioned", lambda: True)
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "mine")
    monkeypatch.setattr(engine, "docker", lambda: str(folder / "docker.py"))
    monkeypatch.setattr(provision, "load", lambda project: PROJECT)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(submit, "ENVIRONMENTS", tmp_path / "environments")
    environment(tmp_path / "environments", MADE, APP)
    environment(tmp_path / "environments", "aaaaaaaaaaaa", ROOT / "apps" / "pytorch-quickstart")
    return Fake(folder)


ANN: dict[str, Any] = {"as": {"name": "Ann.Bee@x.example", "role": "project_admin"}}
"""The identity, in the object of a verb that has asked the federation."""

Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def flowerbed(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb with `--format json`: exit code, the JSON object, and what it told people."""

    def call(verb: str, *words: object) -> tuple[int, dict[str, Any], str]:
        code = main([verb, "--format", "json", *map(str, words)])
        captured = capsys.readouterr()
        return code, json.loads(captured.out.splitlines()[-1]), captured.err

    return call


def lines(*events: dict[str, Any]) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


def error(text: str, **facts: Any) -> str:
    return "some warning\n" + json.dumps({"error": text, **facts}) + "\n"


# submit


def test_submit_sends_the_app_and_its_options(fake: Fake, flowerbed: Run) -> None:
    fake.answer("submit", reads=True, out='{"job_id": "j-1"}\n')
    code, outcome, told = flowerbed(
        "submit",
        APP,
        "--rounds",
        5,
        "--run-config",
        "array-size=7",
        "--name",
        "job",
        "--sites",
        "site-2",
        "--min-sites",
        1,
    )
    assert (code, outcome) == (0, {"job_id": "j-1", "app": "numpy-add", "version": "1.0.0", **ANN})
    assert "./flowerbed wait j-1" in told
    assert "Submitted numpy-add 1.0.0 under the name job as ann-bee: job j-1\n" in told
    [words] = fake.calls
    # -P: nothing is imported from the container's working directory, which is a volume.
    assert words[:7] == ["exec", "-i", "mine-ann-bee-1", "python", "-I", "-S", console.PROGRAM[-1]]
    assert words[8:] == ["payload"]
    assert json.loads(words[7]) == {
        "verb": "submit",
        "deployed": "",
        "options": {
            "name": "job",
            "rounds": 5,
            "sites": ["site-2"],
            "min_sites": 1,
            "environment": MADE,
        },
        "run_config": ["array-size=7"],
    }
    with tarfile.open(fileobj=io.BytesIO(fake.stdin())) as tar:
        assert "numpyadd/client_app.py" in tar.getnames()


def test_submit_warns_of_an_untested_flower(fake: Fake, flowerbed: Run, tmp_path: Path) -> None:
    environment(tmp_path / "environments", MADE, APP, flwr="1.44.0")
    fake.answer("submit", reads=True, out='{"job_id": "j-1"}\n')
    _, outcome, told = flowerbed("submit", APP)
    assert told.count("flwr 1.44.0 is newer") == 1 and "warning" not in outcome


def test_submit_names_missing_sites_before_the_jobs_id(
    fake: Fake, flowerbed: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer("submit", reads=True, out='{"job_id": "j-1", "sites": ["site-2"]}\n')
    code, outcome, told = flowerbed("submit", APP)
    missing = "site-1 of project.yml is not registered: the job runs with site-2\n"
    assert code == 0 and outcome["missing_sites"] == ["site-1"]
    assert told.index(missing) < told.index("job j-1")
    # A user who names the sites gets an error if one is missing.
    _, outcome, told = flowerbed("submit", APP, "--sites", "site-2")
    assert "missing_sites" not in outcome and "not registered" not in told
    fake.answer("submit", reads=True, out='{"job_id": "j-1", "sites": ["site-1", "site-2"]}\n')
    _, outcome, told = flowerbed("submit", APP)
    assert "missing_sites" not in outcome and "not registered" not in told


def test_submit_names_silent_sites(fake: Fake, flowerbed: Run) -> None:
    answer = {"job_id": "j-1", "sites": ["site-1", "site-2"], "silent": {"site-2": 96.4}}
    fake.answer("submit", reads=True, out=lines(answer))
    said = "site-2 was last heard from 96 s ago: the job may have to wait for it\n"
    assert said in flowerbed("submit", APP)[2]
    assert said in flowerbed("submit", APP, "--sites", "site-2")[2]
    assert said not in flowerbed("submit", APP, "--sites", "site-1")[2]


def test_submit_names_missing_sites_when_too_few_are_there(fake: Fake, flowerbed: Run) -> None:
    said = error("the job asks for 2 sites, but 1 are registered: site-1", registered=["site-1"])
    fake.answer("submit", reads=True, code=2, err=said)
    code, outcome, _ = flowerbed("submit", APP, "--min-sites", 2)
    assert code == 2
    assert outcome["error"].endswith("are registered: site-1. site-2 of project.yml is not registered.")


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The server's folder of apps, with two."""
    folder = tmp_path / "deployed"
    for name in ("adding", "other"):
        shutil.copytree(APP, folder / name)
    (folder / "no-app").mkdir()
    monkeypatch.setattr(apps, "DEPLOYED", folder)
    return folder


def test_submit_of_a_deployed_app_sends_its_name_and_what_the_console_checks(
    fake: Fake, flowerbed: Run, deployed: Path
) -> None:
    fake.answer("submit", reads=True, out='{"job_id": "j-1"}\n')
    code, outcome, _ = flowerbed(
        "submit", "--deployed", "adding", "--rounds", 5, "--run-config", "array-size=7"
    )
    assert (code, outcome) == (0, {"job_id": "j-1", "app": "numpy-add", "version": "1.0.0", **ANN})
    assert fake.request(0) == {
        "verb": "submit",
        "deployed": "adding",
        "options": {"rounds": 5, "environment": MADE},
        "run_config": ["array-size=7"],
    }
    with tarfile.open(fileobj=io.BytesIO(fake.stdin())) as tar:
        assert tar.getnames() == ["pyproject.toml"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--deployed", "addin"], "No app 'addin' is deployed"),
        (["--deployed", "addin"], "There are: adding, link, other."),
        (["--deployed", "no-app"], "No app 'no-app' is deployed"),
        (["--deployed", "../deployed/adding"], "No app '../deployed/adding' is deployed"),
        (["--deployed", "link"], "link is a link"),
        (["--deployed", "adding", "--run-config", "x=1"], "The app has: num-server-rounds"),
    ],
)
def test_a_deployed_app_is_checked_where_it_lies(
    fake: Fake, flowerbed: Run, deployed: Path, words: list[Any], text: str
) -> None:
    (deployed / "link").symlink_to(APP)
    code, outcome, _ = flowerbed("submit", *words)
    assert code == 2 and text in outcome["error"]
    assert fake.calls == []


def test_submit_takes_an_app_or_the_name_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    for words, text in (
        ([], "one of the arguments"),
        ([str(APP), "--deployed", "adding"], "not allowed with"),
    ):
        assert main(["submit", *words]) == 2 and text in capsys.readouterr().err


def test_submit_prints_nothing_but_the_job_id(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("submit", reads=True, out='{"job_id": "j-1"}\n')
    assert main(["submit", str(APP)]) == 0
    assert capsys.readouterr().out == "j-1\n"


@pytest.mark.parametrize(
    ("identity", "service"), [("lead", "lead"), ("lead@x.example", "lead"), ("Ann.Bee", "ann-bee")]
)
def test_submit_as_somebody_else(fake: Fake, flowerbed: Run, identity: str, service: str) -> None:
    fake.answer("submit", reads=True, out='{"job_id": "j-1"}\n')
    assert flowerbed("submit", APP, "--as", identity)[0] == 0
    assert fake.calls[0][2] == f"mine-{service}-1"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["/nowhere"], "does not exist"),
        ([APP, "--rounds", "0"], "--rounds 0"),
        ([APP, "--grace", "5"], "--grace 5: expected 60 to 3600 seconds"),
        ([APP, "--retries", "101"], "--retries 101: expected 0 to 100"),
        ([APP, "--run-config", "array-size = 1"], "--run-config 'array-size = 1': expected key=value"),
        ([APP, "--run-config", "/nowhere/a.toml"], "--run-config /nowhere/a.toml: expected a TOML file"),
        ([APP, "--run-config", "x=1"], "The app has: num-server-rounds"),
        ([APP, "--sites", "site-1,site-9"], "--sites: unknown name site-9. There are: site-1, site-2"),
        ([APP, "--sites", "site-1,site-2,site-1"], "--sites site-1,site-2,site-1: site-1 is named twice."),
        ([APP, "--timeout", "5m"], "--timeout: expected --wait with it."),
        ([APP, "--name", "a b"], "--name 'a b': expected letters, digits, '.', '_' and '-'"),
        ([APP, "--min-sites", "3"], "expected 1 to 2"),
        ([APP, "--sites", "site-1", "--min-sites", "2"], "expected 1 to 1"),
        ([APP, "--as", "eve"], "--as eve: no such admin in project.yml. There are: lead, ann-bee"),
    ],
)
def test_submit_refuses_before_anything_is_sent(
    fake: Fake, flowerbed: Run, words: list[Any], text: str
) -> None:
    code, outcome, told = flowerbed("submit", *words)
    assert code == 2
    assert text in outcome["error"] and text in told
    assert fake.calls == []


def test_submit_of_an_app_without_an_environment_says_the_one_command(
    fake: Fake, flowerbed: Run, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "environments" / MADE)
    code, outcome, _ = flowerbed("submit", APP)
    assert code == 2 and outcome["missing"] == ["flwr>=1.26.0", "numpy"]
    assert f"./flowerbed build --app {APP}" in outcome["error"] and "--build" in outcome["error"]
    assert fake.calls == []


def test_submit_makes_the_environment_if_asked_to(
    fake: Fake, flowerbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[Path]] = []

    def make(folders: list[Path], choice: app_builds.Choice) -> list[dict[str, Any]]:
        made.append(folders)
        environment(tmp_path / "environments", "ffffffffffff", APP)
        return [{"name": "ffffffffffff"}]

    monkeypatch.setattr(app_builds, "make", make)
    fake.answer("submit", reads=True, out='{"job_id": "j-1"}\n')
    assert flowerbed("submit", APP, "--build")[0] == 0
    assert made == [], "there is one"
    shutil.rmtree(tmp_path / "environments" / MADE)
    assert flowerbed("submit", APP, "--build")[0] == 0
    assert made == [[APP]] and fake.request(1)["options"] == {"environment": "ffffffffffff"}


def test_a_wrong_job_is_reported_before_its_environment_is_made(
    fake: Fake, flowerbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(tmp_path / "environments" / MADE)
    monkeypatch.setattr(app_builds, "make", lambda *given: pytest.fail("minutes of work for nothing"))
    code, outcome, _ = flowerbed("submit", APP, "--build", "--sites", "site-9")
    assert code == 2 and "unknown name site-9" in outcome["error"]


def test_submit_takes_the_environment_that_is_named(fake: Fake, flowerbed: Run, tmp_path: Path) -> None:
    environment(tmp_path / "environments", "bbbbbbbbbbbb")
    fake.answer("submit", reads=True, out='{"job_id": "j-1"}\n')
    assert flowerbed("submit", APP, "--environment", "bbbbbbbbbbbb")[0] == 0
    assert fake.request(0)["options"] == {"environment": "bbbbbbbbbbbb"}


@pytest.mark.parametrize("name", ["cccccccccccc", "../environments/0123456789ab", "/etc", "0123", "x" * 5000])
def test_an_environment_that_is_not_there_is_refused_by_name(fake: Fake, flowerbed: Run, name: str) -> None:
    code, outcome, _ = flowerbed("submit", APP, "--environment", name)
    assert code == 2 and name[:100] in outcome["error"] and "./flowerbed apps" in outcome["error"]
    assert len(outcome["error"]) < 300 and fake.calls == []


def test_a_member_is_refused(fake: Fake, flowerbed: Run) -> None:
    fake.answer("submit", reads=True, code=1, err=error("refused by the server: not authorized", denied=True))
    code, outcome, _ = flowerbed("submit", APP, "--as", "lead")
    text = "refused by the server: not authorized (as lead@x.example, lead)"
    identity = {"name": "lead@x.example", "role": "lead"}
    assert (code, outcome) == (1, {"error": text, "denied": True, "as": identity})


def test_the_identity_is_shown_if_chosen(fake: Fake, flowerbed: Run) -> None:
    fake.answer("list", out=json.dumps({"jobs": []}) + "\n")
    assert " as " not in f" {flowerbed('jobs')[2]}"
    assert flowerbed("jobs", "--as", "lead")[2].startswith("as lead@x.example (lead)\n")


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("Error response from daemon: container 5f9c is not running\n", "./flowerbed up starts it"),
        ("Error response from daemon: No such container: mine-ann-bee-1\n", "./flowerbed up starts it"),
        (
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock.\n",
            "./flowerbed up starts it",
        ),
        (f"python: can't open file '{console.PROGRAM[-1]}': [Errno 2]\n", "./flowerbed build, then"),
        ("", "it printed nothing"),
    ],
)
def test_submit_while_the_federation_is_down(fake: Fake, flowerbed: Run, said: str, text: str) -> None:
    fake.answer("submit", reads=True, code=1, err=said)
    code, outcome, _ = flowerbed("submit", APP)
    assert code == 1
    assert text in outcome["error"]


def test_a_console_that_was_not_provisioned(fake: Fake, flowerbed: Run) -> None:
    fake.services("lead")
    fake.answer("submit", code=1, err="Error response from daemon: No such container: mine-ann-bee-1\n")
    code, outcome, _ = flowerbed("submit", APP)
    assert code == 1 and "./flowerbed provision, build and up" in outcome["error"]


def test_submit_before_anything_is_provisioned(
    fake: Fake, flowerbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "is_provisioned", lambda: False)
    code, outcome, _ = flowerbed("submit", APP)
    assert code == 1 and "./flowerbed quickstart" in outcome["error"]
    assert fake.calls == []


def test_a_job_folder_is_exported_and_submitted_as_it_is(fake: Fake, flowerbed: Run, tmp_path: Path) -> None:
    job = tmp_path / "job.tar"
    with tarfile.open(job, "w") as tar:
        for name, content in (
            ("meta.json", b'{"name": "numpy-add"}'),
            ("app/config/config_fed_server.json", b"{}"),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    fake.answer("export", reads=True, file=str(job))
    fake.answer("submit", reads=True, out='{"job_id": "j-2"}\n')
    folder = tmp_path / "jobs" / "mine"
    assert flowerbed("submit", APP, "--export", folder, "--rounds", 2)[1]["folder"] == str(folder)
    assert (folder / "app" / "config" / "config_fed_server.json").is_file()
    options = {"rounds": 2, "environment": MADE}
    assert fake.request(0) == {"verb": "export", "deployed": "", "options": options}
    assert flowerbed("submit", APP, "--export", folder)[0] == 0, "an earlier export may be replaced"

    assert flowerbed("submit", folder)[1]["job_id"] == "j-2"
    with tarfile.open(fileobj=io.BytesIO(fake.stdin(2))) as tar:
        assert set(tar.getnames()) == {"meta.json", "app/config/config_fed_server.json"}
    code, outcome, _ = flowerbed("submit", folder, "--rounds", 2)
    assert code == 2 and "submitted as it is" in outcome["error"]


def test_export_overwrites_no_other_folder(fake: Fake, flowerbed: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    code, outcome, _ = flowerbed("submit", APP, "--export", tmp_path)
    assert code == 2 and "found other files" in outcome["error"]
    assert (tmp_path / "thesis.tex").exists() and fake.calls == []


# wait


def reply(site: str, kind: str, examples: int, t: float, **metrics: float) -> dict[str, Any]:
    event = {"event": "reply", "round": 1, "site": site, "kind": kind, "num_examples": examples}
    return {**event, "metrics": metrics, "error": "", "t": t}


PROGRESS = (
    {"event": "status", "status": "SUBMITTED", "t": 100.0, "submitted": 100.0},
    {"event": "status", "status": "RUNNING", "t": 103.5},
    {"event": "round", "round": 1, "of": 1, "t": 104.0},
    reply("site-1", "train", 30, 107.0),
    reply("site-2", "train", 30, 108.0),
    reply("site-1", "evaluate", 10, 109.0, loss=0.5, accuracy=0.75),
    reply("site-2", "evaluate", 30, 110.0, loss=0.5, accuracy=0.95),
)
END = {"event": "end", "status": "FINISHED:COMPLETED", "reason": "", "t": 112.0}


def test_wait_names_removed_sites_and_hidden_progress(fake: Fake, flowerbed: Run) -> None:
    told_of = (
        {"event": "no progress", "reason": "not authorized", "t": 104.0},
        {"event": "removed", "site": "site-3", "reason": "it was disabled", "t": 105.0},
    )
    fake.answer("wait", out=lines(*PROGRESS[:2], *told_of, END))
    _, _, told = flowerbed("wait", "j-1")
    assert "no progress until the job's end: not authorized" in told
    assert "site-3 was removed from the job: it was disabled" in told


class Session:
    """A session of FLARE's console with an identity that may not ask a job for its events."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.statuses = ["RUNNING", "RUNNING", "RUNNING", "FINISHED:COMPLETED"]
        self.asked = 0

    def get_job_meta(self, job: str) -> dict[str, Any]:
        return {"status": self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]}

    def do_app_command(self, job: str, topic: str, data: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        raise self.error

    def set_timeout(self, seconds: float) -> None:
        pass

    def unset_timeout(self) -> None:
        pass

    def download_job_result(self, job: str, folder: str) -> str:
        return folder


@pytest.mark.parametrize("denied", [True, False])
def test_a_denial_of_the_servers_is_shown_once(denied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "POLL", 0.0)
    session = Session(AuthorizationError("not authorized") if denied else RuntimeError("starting"))
    call = Asked(session)
    inside.wait(call, "j-1")
    refusals = [event["reason"] for event in call.lines if event["event"] == "no progress"]
    assert refusals == (["not authorized"] if denied else [])
    assert session.asked == (1 if denied else 3)
    # A job without a process that answers yet is reported as starting.
    monkeypatch.setattr(inside, "STARTING_AFTER", 0.0)
    call = Asked(Session(RuntimeError("starting")))
    inside.wait(call, "j-1")
    assert [event["phase"] for event in call.lines if event["event"] == "phase"] == ["processes"]


def test_events_of_an_ended_job_are_streamed_and_delay_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(RuntimeError())
    session.statuses = ["FINISHED:COMPLETED"]
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "events.jsonl").write_text(lines(*PROGRESS[2:]))
    monkeypatch.setattr(session, "download_job_result", lambda job, folder: str(tmp_path))
    call = Asked(session)
    monkeypatch.setattr(call, "say", lambda event: told.append((event, downloading.locked())))
    told: list[tuple[dict[str, Any], bool]] = []
    read = events.read

    def one_by_one(file: Path) -> Iterator[dict[str, Any]]:
        for number, event in enumerate(read(file)):
            assert len(told) == 1 + number, "all are in memory at once"
            yield event

    monkeypatch.setattr(events, "read", one_by_one)
    inside.wait(call, "j-1")
    assert [event for event, _ in told][1:-1] == list(PROGRESS[2:])
    assert not any(held for _, held in told)


def test_wait_shows_rounds_sites_and_the_average(fake: Fake, flowerbed: Run) -> None:
    fake.answer("wait", out="FLARE says hello\n" + lines(*PROGRESS, {"event": "from the future"}, END))
    code, outcome, told = flowerbed("wait", "j-1")
    assert (code, outcome["status"]) == (0, "FINISHED:COMPLETED")
    assert outcome["rounds"][0]["metrics"]["accuracy"] == pytest.approx(0.9)
    assert told.startswith("      0 s  submitted\n      4 s  running\n      4 s  round 1 of 1\n")
    assert "site-2       evaluated loss 0.5  accuracy 0.95   on 30 examples" in told
    assert "   10 s    average      loss 0.5  accuracy 0.9\n" in told
    assert told.count("FINISHED:COMPLETED") == 1 and "   12 s  FINISHED:COMPLETED\n" in told
    assert told.endswith("  results: ./flowerbed results j-1\n")


def test_wait_shows_an_average_of_the_sites_that_evaluated(fake: Fake, flowerbed: Run) -> None:
    fake.answer("wait", out=lines(*PROGRESS[:-1], END))
    assert flowerbed("wait", "j-1")[2].count("average      loss 0.5  accuracy 0.75\n") == 1


def test_wait_says_where_an_average_is_of_a_model_that_was_not_trained(fake: Fake, flowerbed: Run) -> None:
    events = [{**e, "error": "E"} if e.get("kind") == "train" else e for e in PROGRESS]
    fake.answer("wait", out=lines(*events, END))
    code, outcome, told = flowerbed("wait", "j-1")
    assert "accuracy 0.9   (nothing was trained: every train reply failed, " in told
    assert code == 0 and outcome["rounds"][0]["trained"] is False


TRACE = (
    "Traceback (most recent call last):",
    '  File "x.py", line 1',
    "\tstrange",
    "KeyError: 'a'",
    "",
    "The above exception was the direct cause of the following exception:",
    "",
    "Traceback (most recent call last):",
    "ValueError: \x1b[2K",
)


def test_wait_shows_tabs_as_space_and_a_traceback_once(fake: Fake, flowerbed: Run) -> None:
    first = ["INFO :      \t├── Number of rounds: 1", "ERROR :   failed"]
    told_by_app = [*first, *(line.replace("\x1b", "\\x1b") for line in TRACE if line)]
    output = [
        {"event": "output", "lines": told_by_app[:5], "t": 105.0},
        {"event": "output", "lines": told_by_app[5:], "t": 106.0},
    ]
    reason = "\n".join(["the Flower run failed: x", *TRACE, "1 of 2 train replies failed"])
    end = {**END, "status": "FINISHED:EXECUTION_EXCEPTION", "reason": reason}
    fake.answer("wait", out=lines(*PROGRESS[:2], *output, end))
    code, outcome, told = flowerbed("wait", "j-1")
    assert code == 1 and outcome["reason"] == reason
    assert "| INFO :          ├── Number of rounds: 1\n" in told and "\\t" not in told
    assert told.count("KeyError: 'a'") == 1 and told.count("ValueError: \\x1b[2K") == 1
    assert outcome["error"].splitlines()[1:4] == [
        "    the Flower run failed: x",
        "    (the traceback is above)",
        "    1 of 2 train replies failed",
    ]
    # If none of it was shown, or only its beginning, none is missing.
    for shown in (output[:1], []):
        fake.answer("wait", out=lines(*PROGRESS[:2], *shown, end))
        assert reason.splitlines()[1] in flowerbed("wait", "j-1")[1]["error"]


def test_wait_shows_a_sites_error(fake: Fake, flowerbed: Run) -> None:
    for error in ("RuntimeError: on purpose", "<class 'some.module.RuntimeError'>:<'on purpose'>"):
        failed = {**reply("site-1", "train", 1, 107.0), "error": error}
        fake.answer("wait", out=lines(*PROGRESS[:3], failed, END))
        assert "site-1       trained   FAILED: RuntimeError: on purpose\n" in flowerbed("wait", "j-1")[2]


def test_wait_shows_what_happens_before_the_first_round(fake: Fake, flowerbed: Run) -> None:
    begins = {"event": "phase", "phase": "processes", "ready": [], "missing": [], "t": 103.0}
    phase = {"event": "phase", "phase": "sites", "ready": [], "missing": ["site-1", "site-2"], "t": 104.0}
    again = {**phase, "ready": ["site-1"], "missing": ["site-2"], "t": 114.0}
    runs = {**again, "phase": "run", "t": 120.0}
    full = {**runs, "ready": ["site-1", "site-2"], "missing": []}
    fake.answer(
        "wait",
        out=lines(*PROGRESS[:1], begins, {**begins, "phase": "superlink"}, phase, again, runs, full, END),
    )
    assert (
        "      3 s  the job's processes start\n"
        "      3 s  the SuperLink starts\n"
        "      4 s  the SuperLink is ready, waiting for site-1, site-2\n"
        "     14 s  the SuperLink is ready, waiting for site-2\n"
        "     20 s  1 site ready, without site-2: the ServerApp starts\n"
        "     20 s  2 sites ready: the ServerApp starts\n"
    ) in flowerbed("wait", "j-1")[2]


def test_wait_shows_the_output_of_an_app_without_rounds_and_what_failed(fake: Fake, flowerbed: Run) -> None:
    output = {"event": "output", "lines": ["looking", "one\x1b[2K\n  9 s  FINISHED"], "t": 105.0}
    failed = {**reply("site-1", "query", 1, 106.0), "round": None, "error": "no table here"}
    first = {"kind": "query", "round": None, "error": "no table here"}
    replies = {"event": "replies", "kinds": {"query": {"replies": 2, "failed": 1}}, "t": 107.0}
    fake.answer(
        "wait", out=lines(*PROGRESS[:2], output, failed, {**replies, "errors": {"site-1": first}}, END)
    )
    code, outcome, told = flowerbed("wait", "j-1")
    assert (code, outcome["replies"], outcome["errors"]) == (0, replies["kinds"], {"site-1": first})
    assert (
        "      5 s  | looking\n      5 s  | one\\x1b[2K\\n  9 s  FINISHED\n"
        "      6 s    site-1       query FAILED: no table here\n"
    ) in told
    assert "   FINISHED:COMPLETED\n" not in told
    assert "  1 of 2 query replies failed\n  site-1: no table here\n" in told


@pytest.mark.parametrize("status", ["FINISHED:COMPLETED", "FINISHED:EXECUTION_EXCEPTION"])
def test_wait_names_a_site_that_always_failed_and_its_log(fake: Fake, flowerbed: Run, status: str) -> None:
    events = [{**e, "error": "E: x"} if e.get("site") == "site-2" else e for e in PROGRESS]
    again = [{**e, "round": 2} for e in events[2:]]
    first = {"kind": "train", "round": 1, "error": "E: x"}
    counts = {"train": {"replies": 4, "failed": 2}}
    replies = {"event": "replies", "kinds": counts, "errors": {"site-2": first}, "t": 111.0}
    fake.answer("wait", out=lines(*events, *again, replies, {**END, "status": status}))
    _, _, told = flowerbed("wait", "j-1")
    assert "Logs: ./flowerbed logs j-1 --site site-2\n" in told
    if status == "FINISHED:COMPLETED":
        assert "  site-2 failed in every round (2 of 2): E: x\n" in told


def test_wait_names_no_log_of_a_job_that_never_started(fake: Fake, flowerbed: Run) -> None:
    why = "site-1 takes no part: it lacks the app's environment 0123456789ab"
    refused = {"event": "refused", "site": "site-1", "reason": why, "t": 103.5}
    end = {**END, "status": "FINISHED:CAN_NOT_SCHEDULE", "reason": "FLARE could not schedule the job"}
    fake.answer("wait", out=lines(PROGRESS[0], refused, end))
    code, outcome, told = flowerbed("wait", "j-1")
    assert code == 1 and "Logs:" not in outcome["error"]
    assert "site-1 refused the job and takes no part: it lacks" in told
    fake.answer("wait", out=lines(*PROGRESS[:2], refused, end))
    assert "Logs: ./flowerbed logs j-1" in flowerbed("wait", "j-1")[1]["error"]


def test_remove_takes_no_latest(fake: Fake, flowerbed: Run) -> None:
    code, outcome, _ = flowerbed("remove", "latest")
    assert code == 2 and "expected the id" in outcome["error"] and fake.calls == []


def test_wait_shows_starts_central_evaluation_and_lists(fake: Fake, flowerbed: Run) -> None:
    events = [{**event, "start": 2} for event in PROGRESS[2:]]
    evaluation = {"event": "evaluation", "start": 2, "round": 1, "t": 110.0}
    numbers = {"auc": 0.25, "each": [1.0, 2.0], "many": [0.5] * 9}
    fake.answer("wait", out=lines(*PROGRESS, *events, {**evaluation, "metrics": numbers}, END))
    _, outcome, told = flowerbed("wait", "j-1")
    assert [entry.get("start", 1) for entry in outcome["rounds"]] == [1, 2]
    assert outcome["central"] == [{"start": 2, "round": 1, "metrics": numbers}]
    assert "  start 2, round 1 of 1\n" in told
    # The second start's times are those of the first: no line goes back.
    times = [int(found) for found in re.findall(r"^ +(\d+) s  ", told, re.MULTILINE)]
    assert times == sorted(times)
    shown = "auc 0.25  each [1, 2]  many [0.5, 0.5, 0.5, ..., 0.5] (9) (start 2, round 1)\n"
    assert f"  server       evaluated {shown}" in told


def test_an_aborted_job_is_reported_as_aborted(fake: Fake, flowerbed: Run) -> None:
    fake.answer("wait", out=lines(*PROGRESS, {**END, "status": "FINISHED:ABORTED", "reason": "aborted"}))
    code, outcome, told = flowerbed("wait", "j-1")
    assert (code, outcome["status"], outcome["reason"]) == (1, "FINISHED:ABORTED", "aborted")
    assert "Job j-1 was aborted.\n  Logs: ./flowerbed logs j-1\n" in told


@pytest.mark.parametrize("status", ["FINISHED:EXECUTION_EXCEPTION", "FINISHED:ABORTED", "FINISHED:ABNORMAL"])
def test_wait_fails_with_the_reason_unless_completed(fake: Fake, flowerbed: Run, status: str) -> None:
    end = {"event": "end", "status": status, "reason": "RuntimeError: on purpose", "t": 112.0}
    fake.answer("wait", out=lines(*PROGRESS, end))
    code, outcome, told = flowerbed("wait", "j-1")
    assert (code, outcome["status"]) == (1, status)
    assert "RuntimeError: on purpose" in told and "./flowerbed logs j-1" in told
    assert len(outcome["rounds"]) == 1


def test_wait_names_the_job_that_repeats_one(fake: Fake, flowerbed: Run) -> None:
    end = {"event": "end", "status": "FINISHED:ABNORMAL", "reason": "server restarted", "t": 112.0}
    fake.answer("wait", out=lines({**end, "retried_as": "j-2"}))
    code, outcome, told = flowerbed("wait", "j-1")
    assert (code, outcome["retried_as"], outcome["reason"]) == (1, "j-2", "server restarted")
    assert "again as job j-2: ./flowerbed wait j-2" in told


def test_wait_names_the_sites_that_refused(fake: Fake, flowerbed: Run) -> None:
    why = {"site-3": "its policy forbids custom code (right byoc)"}
    refused = {"event": "refused", "site": "site-3", "reason": why["site-3"], "t": 103.5}
    fake.answer("wait", out=lines(*PROGRESS[:2], refused, *PROGRESS[2:], {**END, "refused": why}))
    code, outcome, told = flowerbed("wait", "j-1")
    assert (code, outcome["refused"]) == (0, why)
    assert f"      4 s  site-3 refused the job and takes no part: {why['site-3']}\n" in told


def test_wait_for_an_unknown_job(fake: Fake, flowerbed: Run) -> None:
    fake.answer("wait", code=2, err=error("no such job: j-9. The jobs there are: ./flowerbed jobs"))
    code, outcome, _ = flowerbed("wait", "j-9")
    assert (code, outcome["error"]) == (2, "no such job: j-9. The jobs there are: ./flowerbed jobs")


def test_an_interrupted_wait_says_so(fake: Fake, flowerbed: Run) -> None:
    fake.answer("wait", out=lines(*PROGRESS))
    code, outcome, _ = flowerbed("wait", "j-1", "--timeout", 5)
    assert code == 1 and "before it ended" in outcome["error"]
    assert fake.request(0) == {"verb": "wait", "job": "j-1", "timeout": 5.0}
    assert fake.calls[0][8] == "watch"


def test_ctrl_c_leaves_the_job_running_and_says_so(
    fake: Fake, flowerbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*words: str, **arguments: Any) -> Any:
        yield PROGRESS[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "stream", interrupted)
    code, _, told = flowerbed("wait", "j-1")
    assert code == 130
    assert "Job j-1 goes on.\n  wait again: ./flowerbed wait j-1\n  stop it: ./flowerbed abort j-1\n" in told


def test_submit_and_wait_in_one(fake: Fake, flowerbed: Run) -> None:
    fake.answer("submit", reads=True, out='{"job_id": "j-1"}\n')
    fake.answer("wait", out=lines({"event": "end", "status": "FINISHED:ABORTED", "reason": "", "t": 1.0}))
    code, outcome, _ = flowerbed("submit", APP, "--wait")
    assert (code, outcome["status"], outcome["job_id"]) == (1, "FINISHED:ABORTED", "j-1")


# jobs, logs, abort, results


NOON = datetime(2026, 1, 2, 12).timestamp()


def test_jobs_newest_first(fake: Fake, flowerbed: Run) -> None:
    old = {"job_id": "a", "name": "x", "status": "RUNNING", "submit_time": NOON - 60.5}
    new = {
        **old,
        "job_id": "b",
        "submit_time": NOON,
        "duration": "0:00:41.2",
        "submitter": "l",
    }
    fake.answer("list", out=json.dumps({"jobs": [old, new]}) + "\n")
    code, outcome, told = flowerbed("jobs")
    assert code == 0 and [job["job_id"] for job in outcome["jobs"]] == ["b", "a"]
    assert told.splitlines()[1].split() == ["b", "RUNNING", "x", "2026-01-02", "12:00:00", "0:00:41", "l"]


def test_no_jobs_yet(fake: Fake, flowerbed: Run) -> None:
    fake.answer("list", out='{"jobs": []}\n')
    assert "./flowerbed submit" in flowerbed("jobs")[2]


EVIL = "\x1b]52;c;aGk=\x07\x1b[2K\r    85 s  FINISHED:COMPLETED\n   86 s  more\u202e"


def harmless(text: str) -> None:
    """No output acts on a terminal, and no line of it poses as one of ours."""
    assert not set(text) & set("\x1b\x07\r\u202e\x9b"), text
    assert not any(line.strip().startswith(("85 s", "86 s")) for line in text.splitlines()), text


def test_wait_shows_what_a_site_sends_as_text(
    fake: Fake, flowerbed: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [
        {"event": "status", "status": "RUNNING", "submitted": 0, "t": 0},
        {"event": "refused", "site": "site-2", "reason": EVIL, "t": 1},
        {"event": "round", "round": 1, "of": None, "t": 1},
        reply("site-1", EVIL, 30, 2, **{EVIL: 0.5, "loss $\\frac{$": 1.0}),
        {**reply("site-1", "train", 30, 3), "error": EVIL},
        {"event": "end", "status": "FINISHED:EXECUTION_EXCEPTION", "reason": EVIL, "t": 4},
    ]
    fake.answer("wait", out=lines(*events))
    main(["wait", "j-1"])
    told = capsys.readouterr().err
    harmless("\n".join(line for line in told.splitlines() if not line.startswith("    ")))
    assert not set(told) & set("\x1b\x07\r\u202e"), told
    assert r"\x1b]52;c;aGk=\x07" in told and "loss $" in told
    # A reason keeps its lines, moved in.
    assert "       86 s  more" in told


def test_jobs_shows_names_and_reasons_as_text(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    job = {"job_id": "j-1", "name": EVIL, "status": "FINISHED:X", "submit_time": 1.0, "reason": EVIL * 50}
    fake.answer("list", out=lines({"jobs": [job]}))
    main(["jobs"])
    told = capsys.readouterr().out
    harmless(told)
    assert "FINISHED:X" in told and len(told) < 2000


@pytest.mark.parametrize("terminal", [True, False])
def test_logs_act_on_no_terminal_and_come_whole_into_a_file(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    fake.answer("logs", out=EVIL)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    main(["logs", "j-1"])
    out = capsys.readouterr().out
    assert (out == EVIL) != terminal
    assert bool(set(out) & set("\x1b\x07\r")) != terminal


def test_logs_go_to_stdout(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("logs", out="one\ntwo\n")
    assert main(["logs", "j-1", "--site", "site-1"]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    wanted = {"site": "site-1", "tail": None, "since": None, "follow": False}
    assert fake.request(0) == {"verb": "logs", "job": "j-1", **wanted}


@pytest.mark.parametrize(
    ("given", "note"),
    [
        (
            'num-server-rounds="two"',
            'is a whole number in the app\'s pyproject.toml, and "two" is text',
        ),
        ("num-server-rounds=1.5", "and 1.5 is a decimal number"),
        (
            "fraction-evaluate=true array-size=false",
            "true is true or false; array-size is a whole number",
        ),
        ("fraction-evaluate=1 array-size=3", ""),
    ],
)
def test_values_of_another_type_are_sent_as_flower_takes_them_with_one_note(
    fake: Fake, flowerbed: Run, given: str, note: str
) -> None:
    fake.answer("submit", reads=True, out='{"job_id": "j-1"}\n')
    code, _, told = flowerbed("submit", APP, "--run-config", given)
    assert code == 0 and fake.request(0)["run_config"] == [given]
    assert told.count("Note:") == bool(note) and note in told
    own = read_app(APP)["tool"]["flwr"]["app"]["config"]
    overrides = parse_config_args([given])
    assert fuse_dicts(own, overrides) == own | overrides


def test_logs_of_a_site_that_is_not_there(fake: Fake, flowerbed: Run) -> None:
    fake.answer("logs", code=1, err=error("there is no log of site-9 for job j-1: not available"))
    code, outcome, _ = flowerbed("logs", "j-1", "--site", "site-9", "--follow")
    assert (code, outcome["error"]) == (2, "--site: unknown site site-9. There are: server, site-1, site-2.")
    assert fake.request(0)["follow"] is False
    fake.answer("logs", code=1, err=error("refused by the server", denied=True))
    assert flowerbed("logs", "j-1", "--site", "site-9")[1]["error"].startswith("refused by the server")
    # One that has left the project may have sent its log before.
    fake.answer("logs", out="one\n")
    assert flowerbed("logs", "j-1", "--site", "site-9")[1]["log"] == "one\n"


def test_logs_hands_on_how_much_is_wanted(fake: Fake, flowerbed: Run) -> None:
    fake.answer("logs", out="one\ntwo\n")
    code, outcome, _ = flowerbed("logs", "latest", "-f", "--tail", 20, "--since", "5m")
    assert (code, outcome["log"]) == (0, "one\ntwo\n")
    wanted = {"site": "server", "tail": 20, "since": 300.0, "follow": True}
    assert fake.request(0) == {"verb": "logs", "job": "latest", **wanted}
    for tail in (-1, "x"):
        code, outcome, _ = flowerbed("logs", "j-1", "--tail", tail)
        assert code == 2 and f"'{tail}': expected a whole number, 0 or more." in outcome["error"]


def test_wait_for_a_job_that_runs_already_counts_from_when_it_was_submitted(
    fake: Fake, flowerbed: Run
) -> None:
    fake.answer("wait", out=lines({**PROGRESS[1], "submitted": 100.0}, *PROGRESS[2:], END))
    assert flowerbed("wait", "j-1")[2].startswith("      4 s  running\n      4 s  round 1 of 1\n")


def test_wait_for_a_job_that_has_ended_says_when_it_did(fake: Fake, flowerbed: Run) -> None:
    fake.answer("wait", out=lines({"event": "submitted", "submitted": 100.0, "t": 100.0}, *PROGRESS[2:], END))
    told = flowerbed("wait", "j-1")[2]
    assert told.startswith("      4 s  round 1 of 1\n") and "     12 s  FINISHED:COMPLETED\n" in told
    fake.answer("wait", out=lines({**END, "t": None}))
    assert "           FINISHED:COMPLETED\n" in flowerbed("wait", "j-1")[2]


META = {"submit_time": 100.0, "start_time": "1970-01-01T00:01:44+00:00", "duration": "0:00:08.500000"}


def test_the_console_tells_the_times_that_flare_has_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(RuntimeError("none"))
    monkeypatch.setattr(
        session, "get_job_meta", lambda job: {**META, "status": "FINISHED:COMPLETED"}, raising=False
    )
    call = Asked(session)
    inside.wait(call, "j-1")
    assert [(event["event"], event["t"]) for event in call.lines] == [("submitted", 100.0), ("end", 112.5)]
    monkeypatch.setattr(session, "get_job_meta", lambda job: {"status": "FINISHED:ABORTED"}, raising=False)
    call = Asked(session)
    inside.wait(call, "j-1")
    assert call.lines[-1]["t"] is None
    for status in ("SUBMITTED", "RUNNING"):
        monkeypatch.setattr(
            session, "get_job_meta", lambda job, s=status: {**META, "status": s}, raising=False
        )
        told = inside.Watched()
        inside._tell_status(call, "j-1", told)
    assert [event["t"] for event in call.lines[-2:]] == [100.0, 104.0]
    inside._tell_status(call, "j-1", inside.Watched(status="SUBMITTED"))
    assert call.lines.pop()["t"] > 1000, "what is seen to happen has the time at which it is seen"


def test_remove_names_each_job_once_and_the_freed_space(fake: Fake, flowerbed: Run) -> None:
    ids = [f"0000000{n}-0000-0000-0000-000000000000" for n in (1, 2)]
    fake.answer("remove", out=json.dumps({"removed": ids, "freed_bytes": 3 * 2**30}) + "\n")
    code, outcome, told = flowerbed("remove", *ids, ids[0])
    assert fake.request(0) == {"verb": "remove", "jobs": ids}
    assert (code, outcome) == (0, {"removed": ids, "freed_bytes": 3 * 2**30, **ANN})
    assert "Removed 2 jobs from the server's store: 3 GB freed. What is in results/ stays." in told


def test_a_refused_remove_names_the_removed_jobs(fake: Fake, flowerbed: Run) -> None:
    fake.answer("resolve", out='{"job_id": "j-1"}\n')
    fake.answer("remove", code=1, err=error("job j-1 is not removed", removed=["j-0"], freed_bytes=5))
    code, outcome, _ = flowerbed("remove", "j-1")
    assert (code, outcome["removed"], outcome["freed_bytes"]) == (1, ["j-0"], 5)
    assert flowerbed("remove")[0] == 2
    assert flowerbed("remove", "../x")[0] == 2


def test_jobs_and_wait_name_the_sites_a_job_waits_for(fake: Fake, flowerbed: Run) -> None:
    waits = "waits for site-2, not registered"
    fake.answer("list", out=lines({"jobs": [{"job_id": "j-1", "status": "SUBMITTED", "waits": waits}]}))
    _, outcome, told = flowerbed("jobs")
    assert waits in told and outcome["jobs"][0]["waits"] == waits
    events = [PROGRESS[0], {"event": "waits", "reason": waits, "t": 104.0}, END]
    fake.answer("wait", out=lines(*events))
    assert f"  {waits}\n" in flowerbed("wait", "j-1")[2]


def test_jobs_says_what_is_stored(fake: Fake, flowerbed: Run) -> None:
    job = {"job_id": "j-1", "name": "x", "status": "FINISHED:COMPLETED", "stored_bytes": 2 * 2**30}
    fake.answer("list", out=lines({"jobs": [job]}))
    _, outcome, told = flowerbed("jobs")
    assert "STORED" in told and "2 GB" in told and outcome["jobs"][0]["stored_bytes"] == 2 * 2**30


@pytest.mark.parametrize("status", ["RUNNING", "FINISHED:ABORTED"])
def test_abort_returns_when_the_job_has_ended(fake: Fake, flowerbed: Run, status: str) -> None:
    fake.answer("abort", out=json.dumps({"job_id": "j-1", "status": status}) + "\n")
    fake.answer("wait", out=lines({**END, "status": "FINISHED:ABORTED"}))
    _, outcome, told = flowerbed("abort", "j-1")
    assert outcome == {"job_id": "j-1", "status": "FINISHED:ABORTED", **ANN}
    assert ("had already ended (FINISHED:ABORTED). Nothing was stopped." in told) == (status != "RUNNING")


def test_results_of_an_unknown_job(fake: Fake, flowerbed: Run, tmp_path: Path) -> None:
    fake.answer("download", code=2, err=error("no such job: j-9"))
    code, outcome, _ = flowerbed("results", "j-9")
    assert (code, outcome["error"]) == (2, "no such job: j-9")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("job", ["../x", "a/b", "-x", ""])
def test_a_job_id_cannot_lead_out_of_the_results(fake: Fake, job: str) -> None:
    assert main(["results", "--", job]) == 2 and fake.calls == []


def test_an_answer_that_is_not_json_is_named(fake: Fake, flowerbed: Run) -> None:
    fake.answer("abort", out="hello\n")
    assert "answered no JSON object" in flowerbed("abort", "j-1")[1]["error"]


# quickstart


@pytest.fixture
def steps(fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Everything but the training is noted, not done."""
    done: list[str] = []
    monkeypatch.setattr(results, "RESULTS", ROOT / "results")
    monkeypatch.setattr(engine, "ensure", lambda: done.append("engine"))
    monkeypatch.setattr(provision, "run", lambda: done.append("provision" + core.follow_up("build")))
    monkeypatch.setattr(build, "run", lambda: done.append("build"))
    monkeypatch.setattr(app_builds, "make", lambda folders, choice: done.append(f"app {folders[0].name}"))
    monkeypatch.setattr(up, "run", lambda: done.append("up"))
    monkeypatch.setattr(data, "prepare", lambda sites, **options: done.append(f"data {sites} {options}"))
    monkeypatch.setattr(data, "table", lambda manifest: "")
    monkeypatch.setattr(results, "tell", lambda outcome: None)
    rounds = [{"metrics": {"accuracy": 0.87}}]
    monkeypatch.setattr(
        results,
        "collect",
        lambda service, job: {"job_id": job, "rounds": rounds, "folder": str(ROOT / "results" / job)},
    )
    return done


def test_quickstart_does_every_step_in_order(fake: Fake, flowerbed: Run, steps: list[str]) -> None:
    fake.answer("submit", reads=True, out='{"job_id": "j-1"}\n')
    fake.answer("wait", out=lines({"event": "end", "status": "FINISHED:COMPLETED", "reason": "", "t": 1.0}))
    code, outcome, told = flowerbed("quickstart", "--rounds", 2, "--alpha", 0.5)
    assert code == 0
    data_step = "data ['site-1', 'site-2'] {'alpha': 0.5, 'seed': 0}"
    assert steps == ["engine", "provision", "build", "app pytorch-quickstart", data_step, "up"]
    options = {"rounds": 2, "environment": "aaaaaaaaaaaa"}
    request = {"options": options, "run_config": ["min-available-clients=2"]}
    assert fake.request(0) == {"verb": "submit", "deployed": "", **request}
    assert fake.request(1) == {"verb": "wait", "job": "j-1", "timeout": None}
    assert "87.0% test accuracy" in told and "results/j-1/curves.png" in told
    assert outcome["job_id"] == "j-1" and len(outcome["steps"]) == 8


def test_only_a_single_verb_names_the_next_one() -> None:
    with core.led():
        assert core.follow_up("up") == ""
    assert core.follow_up("up") == " Next: ./flowerbed up"


def test_quickstart_leaves_sites_elsewhere_alone(
    fake: Fake, flowerbed: Run, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    people = [
        {**item, "elsewhere": True} if item["name"] == "site-2" else item for item in PROJECT["participants"]
    ]
    monkeypatch.setattr(provision, "load", lambda project: {**PROJECT, "participants": people})
    fake.answer("submit", reads=True, out='{"job_id": "j-1"}\n')
    fake.answer("wait", out=lines({"event": "end", "status": "FINISHED:COMPLETED", "reason": "", "t": 1.0}))
    code, _, told = flowerbed("quickstart")
    assert code == 0 and "site-2: on another machine, which has its own data" in told
    assert "data ['site-1'] {'alpha': None, 'seed': 0}" in steps
    assert fake.request(0)["options"]["sites"] == ["site-1"]
    assert fake.request(0)["run_config"] == ["min-available-clients=1"]


def test_quickstart_stops_at_the_first_step_that_fails(
    fake: Fake, flowerbed: Run, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise Failure("the disk is full")

    monkeypatch.setattr(build, "run", full)
    code, outcome, _ = flowerbed("quickstart")
    assert (code, outcome) == (1, {"error": "the disk is full"})
    assert steps == ["engine", "provision"] and fake.calls == []


def test_hash_prints_what_the_console_makes_of_the_app(
    fake: Fake, flowerbed: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fake.answer("hash", reads=True, out='{"hash": "ab12", "app": "numpy-add", "version": "1.0.0"}\n')
    code, outcome, _ = flowerbed("hash", APP)
    assert (code, outcome) == (0, {"hash": "ab12", "app": "numpy-add", "version": "1.0.0", **ANN})
    assert fake.request(0) == {"verb": "hash"}
    capsys.readouterr()
    assert main(["hash", str(APP)]) == 0 and capsys.readouterr().out == "ab12\n"
    (tmp_path / "meta.json").write_text('{"name": "x"}')
    code, outcome, _ = flowerbed("hash", tmp_path)
    assert code == 2 and "is a job folder" in outcome["error"]


@pytest.mark.parametrize("name", ["/workspace/nvflare", "../x", "", "a/b", ".x", "-x", "a b", 7, None])
def test_a_job_folder_with_a_name_that_leads_elsewhere_is_refused(
    fake: Fake, flowerbed: Run, tmp_path: Path, name: object
) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"name": name}))
    code, outcome, _ = flowerbed("submit", tmp_path)
    assert code == 2 and "expected letters, digits" in outcome["error"] and fake.calls == []
