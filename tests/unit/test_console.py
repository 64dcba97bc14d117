"""The console program turns stdin into files in a new folder, or into an error."""

from __future__ import annotations

import re
import shutil
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.common.app import LEFT_OUT, BadApp
from bridge.flare.console import apps as console
from bridge.flare.console import archive
from bridge.flare.console.call import ConsoleError
from bridge.flare.console.run_config import overrides
from bridge.job import fab
from scripts import app as apps
from tests.attacks.test_job_folder import FOLDERS, named, tar
from tests.unit.asking import Asked

APP = Path(__file__).parents[1] / "apps" / "numpy-add"


class Session:
    """A session with a server that accepts everything."""

    def __init__(self) -> None:
        self.submitted: list[str] = []
        self.heard = time.time()

    def get_system_info(self) -> Any:
        return SimpleNamespace(client_info=[SimpleNamespace(name="site-1", last_connect_time=self.heard)])

    def submit_job(self, folder: str) -> str:
        self.submitted.append(folder)
        assert (Path(folder) / "meta.json").is_file()
        return "j-1"


def submit(content: bytes, session: Session) -> Asked:
    call = Asked(session, content)
    console.submit(call)
    return call


def test_a_job_goes_from_one_folder_whatever_its_name_is() -> None:
    session = Session()
    call = submit(tar(named("my-job_1.2")), session)
    assert [Path(folder).name for folder in session.submitted] == [console.FOLDER]
    assert call.lines == [{"job_id": "j-1", "sites": ["site-1"]}]


def test_a_silent_site_is_reported() -> None:
    session = Session()
    session.heard -= 100
    answer = submit(tar(named("my-job")), session).lines[0]
    assert answer["sites"] == ["site-1"] and 100 <= answer["silent"]["site-1"] < 110


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_leads_elsewhere_is_refused(what: str) -> None:
    session = Session()
    with pytest.raises(ConsoleError, match="expected") as stopped:
        submit(FOLDERS[what], session)
    assert stopped.value.code == 2 and session.submitted == []


def test_too_much_is_refused_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "INPUT_LIMIT", 1000)
    with pytest.raises(ConsoleError, match="at most 1000 bytes"):
        submit(tar(named("x"), (tarfile.TarInfo("large"), b"x" * 1001)), Session())


def test_the_hash_is_that_of_what_a_job_carries() -> None:
    """The host sends only the files that Flower takes: of them it makes the same bundle as of the folder."""
    call = Asked(payload=apps.read(APP).pack())
    console.hash(call)
    assert call.lines == [{"hash": fab.sha256(fab.build(APP)), "app": "numpy-add", "version": "1.0.0"}]


FORMAT = "The provided configuration string is in an invalid format."
KIND = "needs to be of type `int`, `float`, `bool, `str`"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["a=1 b.c=true", "d='x y' e=\"z\""], {"a": 1, "b.c": True, "d": "x y", "e": "z"}),
        (["a=1", "a=2"], {"a": 2}),
        # Flower loses the first of these two.
        (["a.b=1", "a.c=2"], {"a.b": 1, "a.c": 2}),
        ([""], {}),
        (["augment=False"], FORMAT),
        (["a=.01"], FORMAT),
        (["a=1,5"], FORMAT),
        (["a=word"], FORMAT),
        (["a=1 a=2"], FORMAT),
        (["a=2020-01-01"], f"The value for key a {KIND}"),
        (["a=[1]"], f"The value for key a {KIND}"),
        (["a=99999999999999999999"], "Value out of range"),
        (["a=1", "b.toml"], "TOML files cannot be passed alongside key-value pairs."),
        # It would be a file of the container's.
        (["/etc/mine.toml"], "TOML files cannot be passed alongside key-value pairs."),
    ],
)
def test_overrides_are_what_flower_takes_and_refused_in_its_words(
    given: list[str], found: dict[str, object] | str
) -> None:
    if isinstance(found, dict):
        assert overrides(given) == found
        return
    with pytest.raises(ConsoleError) as refused:
        overrides(given)
    assert found in str(refused.value) and str(refused.value).startswith("--run-config: ")
    assert refused.value.code == 2


def test_overrides_of_a_file_are_what_flower_takes() -> None:
    assert overrides([], 'a = "köln"\n[b]\nc = 0.5\n') == {"a": "köln", "b.c": 0.5}
    for file, words in (
        ("a = [1]", KIND),
        ("a = ", "Invalid value"),
        ("a = " + "[" * 2000, "--run-config: "),
    ):
        with pytest.raises(ConsoleError, match="--run-config: ") as refused:
            overrides([], file)
        assert words in str(refused.value)


def changed(into: Path, **lines: str) -> Path:
    """The app with other lines in its pyproject.toml, by the key that they begin with."""
    app = Path(shutil.copytree(APP, into / "app"))
    text = (app / "pyproject.toml").read_text()
    for key, line in lines.items():
        text, times = re.subn(rf"(?m)^{key} .*$", line, text)
        assert times == 1
    (app / "pyproject.toml").write_text(text)
    return app


@pytest.mark.parametrize("deployed", ["", "adding"])
@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ({"name": 'name = "my_app"'}, "can only contain letters, digits, and hyphens"),
        ({"name": 'name = "my app"'}, "can only contain letters, digits, and hyphens"),
        ({"name": f'name = "{"x" * 33}"'}, "no longer than 32 characters"),
        ({"num-server-rounds": "num-server-rounds = [3]"}, "The value for key num-server-rounds needs"),
        ({"num-server-rounds": "num-server-rounds = 2020-01-01"}, "num-server-rounds needs to be of type"),
        ({"publisher": 'publisher = "me"\nfab-format-version = 1'}, "flwr-version-target"),
        ({"publisher": 'publisher = "me"\nfab-format-version = 7'}, "fab-format-version: 7"),
        ({"publisher": 'publisher = "me"\nfab-include = []'}, 'Property "fab-include"'),
    ],
)
def test_an_app_that_flower_refuses_is_refused_in_its_words(
    tmp_path: Path, lines: dict[str, str], words: str, deployed: str
) -> None:
    with pytest.raises(BadApp, match="the app cannot be built: ") as refused:
        console.make_job(changed(tmp_path, **lines), tmp_path, {}, deployed=deployed, default_min_sites=1)
    assert words in str(refused.value)


@pytest.mark.parametrize(("name", "job"), [("köln", "koln"), ("東京", "flower-app"), ("Straße-2", "Strae-2")])
def test_an_app_is_named_in_any_script_and_its_job_in_letters_that_flare_takes(
    tmp_path: Path, name: str, job: str
) -> None:
    app = changed(tmp_path, name=f'name = "{name}"')
    made = console.make_job(app, tmp_path, {}, deployed="", default_min_sites=1)
    assert made.name == job and fab.read((next(made.rglob(fab.NAME))).read_bytes())["project"]["name"] == name


def test_a_file_that_was_not_sent_is_in_no_bundle(tmp_path: Path) -> None:
    app = changed(tmp_path)
    (app / "numpyadd" / "more.json").write_bytes(LEFT_OUT)
    with pytest.raises(
        BadApp, match=r"this Flower bundles numpyadd/more\.json, which Flowerbed did not send"
    ):
        fab.build(app)
