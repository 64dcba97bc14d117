"""The connection and the token for Flower's command line, in Flower's own files."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest
from flwr.cli import flower_config
from flwr.cli.auth_plugin import get_cli_plugin_class
from flwr.cli.constant import DEFAULT_FLOWER_CONFIG_TOML
from flwr.supercore.credential_store import FileCredentialStore

from scripts import flwr_api, flwr_config, flwr_home
from scripts.core import Failure, UsageError

HOST = "127.0.0.1:21386"
OWN = """\
# My connections.
[superlink]
default = "lab"

[superlink.lab]   # the one of the lab
address = "lab.example:9093"
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    return tmp_path / "flwr"


def test_flower_reads_the_connection_that_is_written(home: Path) -> None:
    file = flwr_home.write_connection("flowerbed", HOST, "CERTIFICATE")
    assert file == home / "config.toml"
    found = flower_config.read_superlink_connection("flowerbed")
    assert found.address == HOST and not found.insecure
    assert Path(str(found.root_certificates)).read_text() == "CERTIFICATE"


def test_where_flower_has_no_configuration_yet_it_gets_its_own_beside(home: Path) -> None:
    assert flwr_home.DEFAULT == DEFAULT_FLOWER_CONFIG_TOML
    flwr_home.write_connection("flowerbed", HOST, "")
    content = tomllib.loads((home / "config.toml").read_text())["superlink"]
    assert content["default"] == "local" and {"local", "supergrid", "flowerbed"} < set(content)


def test_existing_content_stays_with_its_comments(home: Path) -> None:
    home.mkdir()
    file = home / "config.toml"
    file.write_text(OWN)
    file.chmod(0o600)
    flwr_home.write_connection("flowerbed", "127.0.0.1:1", "")
    flwr_home.write_connection("flowerbed", HOST, "")
    assert file.read_text().startswith(OWN)
    assert file.read_text().count("[superlink.flowerbed]") == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert flower_config.read_superlink_connection().address == "lab.example:9093"
    assert flower_config.read_superlink_connection("flowerbed").address == HOST


@pytest.mark.parametrize(
    "text",
    [
        '[superlink]\nflowerbed = {address = "x"}\n',
        '[superlink]\nflowerbed.address = "x"\n',
        '[superlink."flowerbed"]\naddress = "x"\n',
        "[superlink]\nflowerbed = 1\n",
        '[superlink.lab]\naddress = """\n[superlink.flowerbed]\n"""\nfederation = "@a/b"\n',
    ],
)
def test_a_form_that_cannot_be_edited_is_left_as_it_is(text: str, home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text(text)
    with pytest.raises(Failure, match=r"choose another name with --name|is not valid TOML"):
        flwr_home.write_connection("flowerbed", HOST, "")
    assert (home / "config.toml").read_text() == text


def test_a_broken_file_is_left_as_it_is(home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text("[superlink\n")
    with pytest.raises(Failure, match="is not valid TOML"):
        flwr_home.write_connection("flowerbed", HOST, "")


def test_flower_finds_the_token_and_nobody_else_can_read_it(home: Path) -> None:
    home.mkdir()
    store = FileCredentialStore(home / "credentials.yaml")
    store.set("flower.account-auth.lab.example:9093.authn-type", b"oidc")
    file = flwr_home.write_token(HOST, "secret")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert store.get("flower.account-auth.lab.example:9093.authn-type") == b"oidc"
    assert store.get(f"flower.account-auth.{HOST}.authn-type") == b"oidc"
    plugin = get_cli_plugin_class("oidc")(HOST)
    plugin.store = store
    plugin.load_tokens()
    metadata = dict(plugin.write_tokens_to_metadata([]))
    assert "secret" in metadata.values()


def test_broken_credentials_are_left_as_they_are(home: Path) -> None:
    home.mkdir()
    (home / "credentials.yaml").write_text("- a\n- list\n")
    with pytest.raises(Failure, match="Move it away"):
        flwr_home.write_token(HOST, "secret")
    assert (home / "credentials.yaml").read_text() == "- a\n- list\n"


def test_a_file_that_is_a_link_stays_one(home: Path, tmp_path: Path) -> None:
    """As in a folder of dotfiles."""
    home.mkdir()
    (tmp_path / "dotfiles.toml").write_text(OWN)
    (home / "config.toml").symlink_to(tmp_path / "dotfiles.toml")
    flwr_home.write_connection("flowerbed", HOST, "")
    assert (home / "config.toml").is_symlink()
    assert "flowerbed" in (tmp_path / "dotfiles.toml").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"write": True, "revoke": True}, "one of --write, --approve and --revoke"),
        ({"approve": "BCDF-GHJK", "write": True}, "one of --write"),
        ({"name": "a.b"}, "expected letters, digits"),
    ],
)
def test_wrong_use_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        flwr_config.run(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"folder": Path("/nowhere"), "identity": "lead"}, "one of --kit and --as"),
        ({"folder": Path("/nowhere")}, "has no startup kit of a person"),
        ({"folder": Path("/nowhere"), "name": "a b"}, "expected letters, digits"),
    ],
)
def test_flwr_api_refuses_a_folder_without_a_kit(given: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        flwr_api.run(**given)  # type: ignore[arg-type]
