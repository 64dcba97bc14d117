"""The app folder as it is read, checked and packed on the host."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from bridge.common import app_environment
from bridge.common.app import LEFT_OUT, ROUNDS_KEY, BadApp
from bridge.job import fab
from scripts import app as apps
from scripts.core import ROOT, UsageError

PYPROJECT = """
[project]
name = "mine"
version = "1.2.0"
[tool.flwr.app]
publisher = "me"
[tool.flwr.app.components]
serverapp = "mine.server_app:app"
clientapp = "mine.client_app:app"
[tool.flwr.app.config]
num-server-rounds = 3
name = "x"
[tool.flwr.app.config.optimizer]
lr = 0.1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "pyproject.toml", PYPROJECT)
    write(tmp_path, "mine/__init__.py", "")
    write(tmp_path, "mine/server_app.py", "app = object()\n")
    write(tmp_path, "mine/client_app.py", "app = object()\n")
    return tmp_path


def write(folder: Path, name: str, content: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)


def packed(folder: Path) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(apps.read(folder).pack())) as tar:
        return set(tar.getnames())


def test_reads_name_version_and_flat_config(folder: Path) -> None:
    app = apps.read(folder)
    assert (app.name, app.version, app.ready) == ("mine", "1.2.0", False)
    assert app.config == {"num-server-rounds": 3, "name": "x", "optimizer.lr": 0.1}


@pytest.mark.parametrize(
    "path",
    [
        ROOT / "apps" / "pytorch-quickstart",
        *sorted(path.parent for path in (ROOT / "tests" / "apps").rglob("pyproject.toml")),
    ],
    ids=lambda p: p.name,
)
def test_reads_every_app_of_this_repository(path: Path) -> None:
    app = apps.read(path)
    # The app of `flwr new` has the name that its own page gives it.
    assert app.name == {"flwr-new": "quickstart-numpy"}.get(path.name, path.name)
    without = {"analytics", "echo", "large-record", "lookup", "trespasser", "unasked", "working-folder"}
    without |= {"boosted-trees", "datasets-folder", "pandas-query"}
    assert (ROUNDS_KEY in app.config) == (path.name not in without)
    assert any(line.startswith("flwr") for line in app_environment.requirements(app.pyproject))


def test_packs_what_flower_bundles_and_nothing_else(folder: Path) -> None:
    kept = {"pyproject.toml", ".gitignore", "README.md", "LICENSE", "mine/env/world.py", "mine/conf.yaml"}
    left = (
        "mine/__pycache__/x.py",
        ".git/config.toml",
        ".venv/lib/a.py",
        "model.npz",
        "secret.json",
        "out/a.md",
    )
    for name in (*kept - {"pyproject.toml", ".gitignore"}, *left):
        write(folder, name, "" if name.endswith(".py") else "x")
    write(folder, ".gitignore", "secret.json\nout/\n")
    write(folder, "other-venv/pyvenv.cfg", "home = /usr")
    write(folder, "other-venv/lib/broken.py", "def (")
    (folder / "link.py").symlink_to("/etc/passwd")
    assert packed(folder) == kept | {"mine/__init__.py", "mine/server_app.py", "mine/client_app.py"}


def test_packs_the_same_bytes_for_the_same_content(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy = tmp_path_factory.mktemp("copy")
    for name, content in reversed(list(apps.read(folder).files.items())):
        write(copy, name, content.decode())
    assert apps.read(copy).pack() == apps.read(folder).pack()


def test_packed_files_can_be_zipped(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(fileobj=io.BytesIO(apps.read(folder).pack())) as tar:
        tar.extractall(unpacked)
    zipped = shutil.make_archive(str(unpacked), "zip", unpacked)
    with zipfile.ZipFile(zipped) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert names == set(apps.read(folder).files)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere does not exist: expected the folder of a Flower app"):
        apps.read(tmp_path / "nowhere")


def test_a_file_for_a_folder(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"is a file: expected the folder"):
        apps.read(folder / "pyproject.toml")


def test_a_folder_without_pyproject_is_refused(folder: Path) -> None:
    (folder / "pyproject.toml").unlink()
    with pytest.raises(UsageError, match=r"has no pyproject\.toml"):
        apps.read(folder)


def test_gitignore_that_excludes_pyproject(folder: Path) -> None:
    write(folder, ".gitignore", "*.toml\n")
    with pytest.raises(UsageError, match=r"excludes pyproject\.toml itself"):
        apps.read(folder)


@pytest.mark.parametrize(
    ("found", "instead", "error"),
    [
        ('name = "mine"', 'name = "mine', r"not valid TOML: .*line 3"),
        ('name = "mine"', "", r"expected \[project\] to have name = .*missing"),
        ('version = "1.2.0"', "version = 1.2", r"expected \[project\] to have version = .*found 1\.2"),
        ('publisher = "me"', "", r"expected \[tool\.flwr\.app\] to have publisher"),
        ("serverapp =", "server =", r"expected \[tool\.flwr\.app\.components\] to have serverapp"),
        (
            "mine.server_app:app",
            "mine.server_app",
            r'serverapp = "mine\.server_app": expected "module:attribute"',
        ),
        (
            "mine.server_app:app",
            "mine.sever_app:app",
            r"no mine/sever_app\.py in the app.*mine/server_app\.py",
        ),
        ("mine.client_app:app", "mine.client_app:ap", r"clientapp.*mine/client_app\.py defines no 'ap'"),
    ],
)
def test_bad_pyproject(folder: Path, found: str, instead: str, error: str) -> None:
    assert found in PYPROJECT
    write(folder, "pyproject.toml", PYPROJECT.replace(found, instead, 1))
    with pytest.raises(UsageError, match=error):
        apps.read(folder)


def test_syntax_error_names_file_and_line(folder: Path) -> None:
    write(folder, "mine/task.py", "import os\n\ndef train(:\n    pass\n")
    with pytest.raises(UsageError, match=r"mine/task\.py, line 3: syntax error: .*\n    def train\(:"):
        apps.read(folder)


@pytest.mark.parametrize(
    "source",
    [
        "def app(): ...",
        "class app: ...",
        "from mine.other import app",
        "import x as app",
        "app: object = object()",
        "a, app = 1, 2",
        "try:\n    import torch\nexcept ImportError:\n    app = None",
        "if True:\n    pass\nelse:\n    app = 1",
        "from mine.other import *",
    ],
)
def test_ways_to_define_an_app(folder: Path, source: str) -> None:
    write(folder, "mine/server_app.py", source)
    assert apps.read(folder).name == "mine"


def test_a_local_name_defines_no_app(folder: Path) -> None:
    write(folder, "mine/server_app.py", "def main():\n    app = 1\n")
    with pytest.raises(UsageError, match="defines no 'app'"):
        apps.read(folder)


def test_too_large_names_the_largest_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "table.json", json.dumps([i * 7919 % 10007 for i in range(20_000)]))
    monkeypatch.setattr(apps, "MOST_BYTES", 10_000)
    with pytest.raises(UsageError, match=r"too large: .* Largest: table\.json \("):
        apps.read(folder)


def test_a_job_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, "meta.json", json.dumps({"name": "job", "min_clients": 2}))
    write(tmp_path, "app/config/config_fed_server.json", "{}")
    write(tmp_path, "app/custom/data.bin", "x")
    app = apps.read(tmp_path)
    assert (app.ready, app.name) == (True, "job")
    assert packed(tmp_path) == {"meta.json", "app/config/config_fed_server.json", "app/custom/data.bin"}


def test_a_job_folder_with_a_broken_meta(tmp_path: Path) -> None:
    write(tmp_path, "meta.json", "{")
    with pytest.raises(UsageError, match=r"meta\.json is not a FLARE job's"):
        apps.read(tmp_path)


def test_run_config_goes_to_the_console_as_it_is_given(folder: Path) -> None:
    app = apps.read(folder)
    assert apps.run_config(app, []) == {}
    # The last is none of ours to refuse: Flower does, in its words.
    given = [
        "optimizer.lr=0.5 num-server-rounds=2",
        "name='a b'",
        '"name"="c"',
        "",
        "num-server-rounds=False",
    ]
    assert apps.run_config(app, given) == {"run_config": given}
    mixed = ["name='a'", "more.toml"]
    assert apps.run_config(app, mixed) == {"run_config": mixed}


def test_run_config_of_a_file_goes_to_the_console_as_its_content(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    app = apps.read(folder)
    file = tmp_path_factory.mktemp("elsewhere") / "mine.toml"
    file.write_text('name = "k\u00f6ln"\n[optimizer]\nlr = 0.5\n')
    assert apps.run_config(app, [str(file)], 2) == {"run_config_file": file.read_text()}
    file.write_text("num-server-rounds = 3")
    with pytest.raises(UsageError, match="found both"):
        apps.run_config(app, [str(file)], 2)
    for content, error in (
        (b"learning = 1", r"unknown configuration key learning"),
        (b"# " + b"x" * apps.CONFIG_LIMIT, r"mine\.toml: expected at most 64 KB, found 64 KB"),
        (b'name = "\xff"', r"mine\.toml: expected UTF-8"),
    ):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=error):
            apps.run_config(app, [str(file)])
    file.unlink()
    with pytest.raises(UsageError, match=r"expected a TOML file: No such file.*needs quotes: key=\"name"):
        apps.run_config(app, [str(file)])


@pytest.mark.parametrize(
    "more",
    [
        "",
        'fab-exclude = ["data/**", "mine/old.py", "lib/**"]',
        'fab-include = ["mine/**", "data/small.json", "LICENSE"]',
        'fab-include = ["**/*.py", "**/*.json"]\nfab-exclude = ["/data/*"]',
    ],
)
def test_checked_and_sent_files_are_those_that_flower_bundles(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, more: str
) -> None:
    """The bundle of what is sent is the bundle of the folder, byte for byte."""
    for name in ("data/small.json", "README.md", "LICENSE", "mine/LICENSE"):
        write(folder, name, "{}")
    # None of these is Python, and none is bundled.
    for name in ("lib/a.py", "mine/test_a.py", "mine/a_test.py", "build/b.py", "venv/c.py", ".flwr/d.py"):
        write(folder, name, "def (")
    for name in ("mine/lib/a.py", "mine/venv/b.py", "mine/old.py"):
        write(folder, name, "x = 1\n")
    write(folder, "pyproject.toml", PYPROJECT.replace('publisher = "me"', f'publisher = "me"\n{more}'))
    unpacked = tmp_path_factory.mktemp("unpacked")
    app = apps.read(folder)
    with tarfile.open(fileobj=io.BytesIO(app.pack())) as tar:
        tar.extractall(unpacked)
    content = fab.build(folder)
    assert fab.build(unpacked) == content
    bundle = fab.files(content).keys() - {".info/CONTENT"}
    assert set(apps.bundled(app.files, app.pyproject)) == bundle
    by_name_alone = {name for name, found in app.files.items() if found == LEFT_OUT}
    assert by_name_alone == app.files.keys() - bundle - apps.NAMES


def test_excluded_files_are_neither_checked_nor_counted_nor_sent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "old/broken.py", "def (")
    write(folder, "old/table.json", json.dumps([i * 7919 % 10007 for i in range(20_000)]))
    monkeypatch.setattr(apps, "MOST_BYTES", 10_000)
    with pytest.raises(UsageError, match=r"old/broken\.py, line 1: syntax error"):
        apps.read(folder)
    write(
        folder,
        "pyproject.toml",
        PYPROJECT.replace("[tool.flwr.app]", '[tool.flwr.app]\nfab-exclude = ["old/**"]'),
    )
    assert len(apps.read(folder).pack()) < 20_000
    write(
        folder,
        "pyproject.toml",
        PYPROJECT.replace("[tool.flwr.app]", '[tool.flwr.app]\nfab-exclude = ["gone/**"]'),
    )
    (folder / "old" / "broken.py").unlink()
    (folder / "old" / "table.json").unlink()
    with pytest.raises(BadApp, match='Pattern in "fab-exclude" did not match any files'):
        fab.build(apps.read(folder).folder)


@pytest.mark.parametrize(
    ("given", "rounds", "error"),
    [
        (
            ["learning=1"],
            None,
            r"--run-config: unknown .* key learning.*app has: num-server-rounds, name, optimizer\.lr",
        ),
        (["name"], None, r"--run-config 'name': expected key=value"),
        (["name=1 stray"], None, r"expected key=value.*found a stray 'stray'"),
        (["name = 1"], None, r"no space before or after the ="),
        ([], 0, r"--rounds 0: expected at least 1"),
        (["num-server-rounds=2"], 3, r"found both"),
    ],
)
def test_bad_run_config(folder: Path, given: list[str], rounds: int | None, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        apps.run_config(apps.read(folder), given, rounds)


def test_rounds_of_an_app_that_has_no_such_key(folder: Path) -> None:
    write(folder, "pyproject.toml", PYPROJECT.replace("num-server-rounds", "rounds"))
    with pytest.raises(
        UsageError,
        match=r"--rounds sets num-server-rounds: .*unknown configuration key num.*The app has: rounds",
    ):
        apps.run_config(apps.read(folder), [], 2)
