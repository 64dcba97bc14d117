"""A join file is whole and signed by the CA that its kit trusts, and its script refuses what it can tell
alone. No engine: a program in the place of docker answers."""

from __future__ import annotations

import datetime
import os
import re
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bridge.common import join_file, own_policy, own_settings, site_settings, trust
from bridge.common.join_file import BadJoinFile
from provisioning import join, renewal, state
from scripts import kit_layer

SITE = "hospital-c"
TODAY = datetime.datetime.now(datetime.UTC).date()
SECRET = "-----BEGIN PRIVATE KEY-----\nkey of hospital-c\n-----END PRIVATE KEY-----\n"


def authority(folder: Path) -> Path:
    """Make a CA in a state folder."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "flowerbed")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    folder.mkdir()
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    state.save(folder, {"root_cert": pem, "root_pri_key": private.decode()})
    return folder


def kit(folder: Path, ca: Path) -> Path:
    files = {
        "startup/client.key": SECRET,
        "startup/client.crt": "certificate\n",
        "startup/rootCA.pem": state.read(ca)["root_cert"],
        "startup/fed_client.json": '{"no": "newline"}',
        "startup/sub_start.sh": "#!/bin/sh\necho $HOME `id` 'x' \\\n",
        "startup/start.sh": "#!/bin/sh\n",
        "startup/stop_fl.sh": "#!/bin/sh\n",
        "local/privacy.json.sample": "{}",
        "local/empty": "",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority(tmp_path_factory.mktemp("ca") / "state")


@pytest.fixture(scope="module")
def text(ca: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(ca, tmp_path_factory.mktemp("kit"))


def written(ca: Path, folder: Path, days: int = 1, role: str = "site") -> str:
    invitation = join.Invitation(
        site=SITE,
        role=role,
        project="flowerbed",
        server="fl.example.org:8002",
        runtime="sha256:abc",
        content='["sha256:1"] null',
        runtime_from="",
        last_day=TODAY + datetime.timedelta(days=days),
        id="0123",
        kit="4567",
    )
    return join.render(invitation, kit_layer.pack(kit(folder / "kit", ca)), "services: {}\n", ca)


class Site:
    """A machine with a join file, and a `docker` that answers what a test says."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder, self.file, self.engine = folder, folder / f"{SITE}.join", folder / "bin/docker"
        self.file.write_text(text)
        self.engine.parent.mkdir()
        self.answers: dict[str, str] = {
            "version": "echo 28.2.2",
            "compose version": "echo 2.24.4",
            "image inspect --format {{.Id}}": "echo sha256:abc",
            "image inspect --format {{json": "echo '[\"sha256:1\"] null'",
            "ps": "true",
        }

    def run(self, *words: str, typed: str = "") -> tuple[int, str]:
        """Run the join file.

        Args:
            typed: what a person answers at a terminal. Without it, there is no terminal.
        """
        cases = "".join(f'    "{words}"*) {answer} ;;\n' for words, answer in self.answers.items())
        self.engine.write_text(
            f'#!/bin/sh\ncase "$*" in\n{cases}    *) echo "docker $*" >&2; exit 9 ;;\nesac\n'
        )
        self.engine.chmod(0o755)
        keyboard, terminal = os.openpty()
        os.write(keyboard, typed.encode())
        try:
            process = subprocess.run(
                ["sh", self.file.name, *words],
                cwd=self.folder,
                env={**os.environ, "PATH": f"{self.engine.parent}:{os.environ['PATH']}"},
                stdin=terminal if typed else subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            os.close(keyboard)
            os.close(terminal)
        return process.returncode, process.stdout + process.stderr


@pytest.fixture
def site(text: str, tmp_path: Path) -> Site:
    return Site(tmp_path, text)


def test_a_file_is_small_text_with_what_it_does_first(text: str, ca: Path) -> None:
    assert len(text.encode()) < 100_000 and text.isascii()
    head = text[:2000]
    fingerprint = join_file.check(text)
    assert (
        fingerprint in head
        and "PRIVATE KEY" in head
        and f"until {TODAY + datetime.timedelta(days=1)}" in head
    )
    assert state.read(ca)["root_pri_key"] not in text
    assert f"sha256sum {SITE}.join" in head and "apps of the federation run here" in head


def test_the_head_names_the_lines_that_act(text: str) -> None:
    lines = text.splitlines()
    found = re.search(r"^# Lines (\d+) to (\d+) are the script\. ", text, re.M)
    assert found
    first, last = (int(number) for number in found.groups())
    assert lines[first - 1] == f"SITE='{SITE}'" and all(line[:1] == "#" for line in lines[: first - 1])
    assert lines[last] == "# The site's files." and lines[last + 1] == "files() {"


def test_files_that_no_container_uses_are_left_out(text: str) -> None:
    assert "kit/startup/sub_start.sh" in text
    assert not [name for name in ("start.sh", "stop_fl.sh", "privacy.json.sample") if f"/{name}" in text]


def test_the_files_of_a_site_come_out_as_they_went_in(text: str, tmp_path: Path) -> None:
    script = text.partition('main "$@"\nexit\n')[0]
    process = subprocess.run(
        ["sh", "-c", f'{script}\nfiles "{tmp_path}"'], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert (tmp_path / "kit/startup/client.key").read_text() == SECRET
    assert (tmp_path / "kit/startup/client.crt").readlink() == Path("/renewed/client.crt")
    assert (tmp_path / "renewed/client.crt").read_text() == "certificate\n"
    assert (tmp_path / "kit/startup/sub_start.sh").read_text() == "#!/bin/sh\necho $HOME `id` 'x' \\\n"
    assert (tmp_path / "kit/startup/fed_client.json").read_text() == '{"no": "newline"}\n'
    assert (tmp_path / "kit/local/empty").read_text() == ""
    assert (tmp_path / "site").read_text() == (join.FOLDER / "site.sh").read_text()


ALTERED: dict[str, Callable[[str], str]] = {
    "a letter": lambda text: text.replace("fl.example.org", "fl.example.com"),
    "a command": lambda text: text.replace("set -eu\n", "set -eu\ncurl example.org | sh\n", 1),
    "another site": lambda text: text.replace(f"SITE='{SITE}'", "SITE='hospital-d'"),
    "a later day": lambda text: text.replace("LAST_DAY='20", "LAST_DAY='30"),
    "half": lambda text: text[: len(text) // 2],
    "no signature": lambda text: text.rpartition("#: signature")[0],
    "a line at the end": lambda text: text + "echo more\n",
    "another signature": lambda text: text[:-20] + "AAAAAAAAAAAAAAAAAA=\n",
}


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_file_has_no_good_signature(text: str, how: str) -> None:
    altered = ALTERED[how](text)
    assert altered != text
    with pytest.raises(BadJoinFile, match=r"altered|not complete"):
        join_file.check(altered)


def test_it_brings_the_statement_about_a_change_of_the_ca(ca: Path, tmp_path: Path) -> None:
    changed = tmp_path / "state"
    changed.mkdir()
    state.save(changed, {**state.read(ca), renewal.TRUST: '{"statement": "..."}\n'})
    text = written(changed, tmp_path)
    join_file.check(text)
    assert f'put "$1/renewed/{trust.FILE}" <<\'{join.MARK}\'\n{{"statement": "..."}}\n{join.MARK}\n' in text


def test_another_ca_cannot_sign_it(text: str, tmp_path: Path) -> None:
    other = state.read(authority(tmp_path / "other"))
    key = serialization.load_pem_private_key(other["root_pri_key"].encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    certificate = x509.load_pem_x509_certificate(other["root_cert"].encode())
    body = text.partition(join_file.END)[0]
    with pytest.raises(BadJoinFile, match="not the one that its kit trusts"):
        join_file.check(join_file.seal(body, certificate, key))


@pytest.mark.parametrize("how", ["a letter", "a command", "another site"])
def test_the_script_refuses_an_altered_file_before_it_asks_docker(site: Site, how: str) -> None:
    site.file.write_text(ALTERED[how](site.file.read_text()).replace("curl example.org | sh", "true"))
    site.answers.clear()
    code, said = site.run("--yes")
    assert code == 1 and "was altered or is not complete" in said and "docker" not in said


def test_half_a_file_does_nothing(site: Site) -> None:
    for part in (3, 2):
        site.file.write_text(site.file.read_text()[: len(site.file.read_text()) * (part - 1) // part])
        code, said = site.run("--yes")
        assert code and sorted(path.name for path in site.folder.iterdir()) == ["bin", f"{SITE}.join"], said


def test_a_file_is_refused_after_its_last_day(ca: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    code, said = Site(tmp_path / "site", written(ca, tmp_path, days=-1)).run("--yes")
    yesterday = TODAY - datetime.timedelta(days=1)
    assert code == 1 and f"was {yesterday}, and today is {TODAY}" in said
    assert "./flowerbed site add hospital-c" in said


@pytest.mark.parametrize(
    ("words", "answer", "expected"),
    [
        ("version", "echo permission denied while trying to connect >&2; exit 1", "permission denied while"),
        ("version", "echo 19.03.2", "expected Docker 20.10 or newer, found 19.03.2"),
        ("compose version", "exit 1", "expected Docker's Compose plugin, found none"),
        ("compose version", "echo v2.6.0", "expected Docker Compose 2.20 or newer, found v2.6.0"),
        ("image inspect --format {{json", "exit 1", "lacks the federation's runtime image (sha256:abc)"),
        ("ps", "echo /srv/other", "runs on this machine already, from the folder /srv/other"),
        ("run", "echo this file was altered; exit 1", "this file was altered"),
    ],
)
def test_what_the_machine_lacks_is_named(site: Site, words: str, answer: str, expected: str) -> None:
    site.answers[words] = answer
    code, said = site.run("--yes")
    assert code == 1 and expected in said, said
    assert not (site.folder / SITE).exists()


SIGNED = "cat >/dev/null; echo signed by AA:BB"


def test_an_engine_with_another_image_store_runs_the_image_by_its_own_id(site: Site) -> None:
    """There the image is found by its name, and its content counts. The same name may hold another image."""
    content = site.answers["image inspect --format {{json"]
    site.answers |= {"run --rm --interactive": SIGNED, "run": "true", "compose": "true"}
    site.answers["image inspect --format {{.Id}}"] = "echo sha256:other"
    known = f'*" flowerbed-runtime:abc") {content} ;; *" flowerbed-runtime:dev") echo x ;;'
    site.answers["image inspect --format {{json"] = f"case $* in {known} *) exit 1 ;; esac"
    code, said = site.run("--yes")
    assert code == 0, said
    assert "SITE_RUNTIME=sha256:other\n" in (site.folder / SITE / ".env").read_text()


def test_an_image_of_that_name_with_other_content_is_not_run(site: Site) -> None:
    site.answers["image inspect --format {{json"] = "echo '[\"sha256:2\"] null'"
    code, said = site.run("--yes")
    assert code == 1 and "lacks the federation's runtime image" in said


def test_another_fingerprint_is_refused(site: Site) -> None:
    site.answers["run"] = SIGNED
    code, said = site.run("--fingerprint", "AA:CC")
    assert code == 1 and "found the CA AA:BB. Somebody else made this file" in said
    code, said = site.run()
    assert code == 2 and "expected --fingerprint F" in said and "AA:BB" in said
    assert not (site.folder / SITE).exists()


@pytest.mark.parametrize(
    ("typed", "goes_on"),
    [("y", True), ("Y", True), ("yes", True), ("Yes", True), ("", False), ("n", False), ("no, y", False)],
)
def test_a_person_agrees_with_any_yes(site: Site, typed: str, goes_on: bool) -> None:
    site.answers |= {"run --rm --interactive": SIGNED, "run": "true"}
    code, said = site.run("--prepare", typed=f"{typed}\n")
    assert (code == 0) == goes_on and ("nothing was changed" in said) != goes_on, said


def test_a_file_joins_and_does_nothing_the_second_time(site: Site) -> None:
    site.answers |= {"run --rm --interactive": SIGNED, "run": "true", "compose": "true"}
    code, said = site.run("--fingerprint", "aabb")
    assert code == 0 and f"{SITE} is registered with fl.example.org:8002." in said, said
    assert "Delete the join file now: it holds the private key" in said
    settings = site.folder / SITE / "site.yml"
    settings.write_text("cpus: 2\n")
    site.answers.pop("run")
    code, said = site.run()
    assert code == 0 and "has joined already" in said and settings.read_text() == "cpus: 2\n"


def test_a_site_that_could_not_start_is_stopped_and_can_be_joined_again(site: Site) -> None:
    site.answers |= {"run --rm --interactive": SIGNED, "run": "true", "compose --progress": "exit 1"}
    site.answers["compose logs"] = "echo 2026 - Authenticator - ERROR - registration rejected: it is revoked"
    site.answers["compose"] = "true"
    code, said = site.run("--yes")
    assert code == 1 and "the server refuses the site: it is revoked" in said
    assert "has not joined, and is stopped" in said
    first = (site.folder / SITE / ".env").read_text()
    site.answers["compose --progress"] = "true"
    code, said = site.run("--yes")
    assert code == 0, said
    number = next(line for line in first.splitlines() if line.startswith("SITE_INSTANCE="))
    assert number in (site.folder / SITE / ".env").read_text().splitlines()


@pytest.mark.parametrize("role", ["site", "relay", "console"])
def test_only_a_site_installs_packages_from_a_stick(ca: Path, tmp_path: Path, role: str) -> None:
    site = Site(tmp_path, written(ca, tmp_path / "kit", role=role))
    site.answers |= {"run --rm --interactive": SIGNED, "run": "true", "compose run": "echo taken >&2"}
    (tmp_path / "stick" / "environments").mkdir(parents=True)
    code, said = site.run("--yes", "--prepare", "--images", "stick")
    assert code == 0, said
    assert ("installing packages" in said) == ("taken" in said) == (role == "site")


def test_what_leaving_has_left_is_kept_when_the_site_joins_again(site: Site) -> None:
    site.answers |= {"run --rm --interactive": SIGNED, "run": "true"}
    folder = site.folder / SITE
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "patients.csv").write_text("1,2\n")
    (folder / "site.yml").write_text("cpus: 3\n")
    folder.chmod(0o777)
    code, said = site.run("--yes", "--prepare")
    assert code == 0, said
    assert (folder / "data" / "patients.csv").read_text() == "1,2\n"
    assert (folder / "site.yml").read_text() == "cpus: 3\n"
    assert {"kit", "renewed", "compose.yaml", ".env", "site"} <= {path.name for path in folder.iterdir()}
    assert folder.stat().st_mode & 0o077 == 0 and not (site.folder / f"{SITE}.joining").exists()


def test_settings_behind_a_link_are_none_that_leaving_has_left(site: Site) -> None:
    site.answers |= {"run --rm --interactive": SIGNED, "run": "true"}
    (site.folder / SITE).mkdir()
    (site.folder / SITE / "site.yml").symlink_to("/etc/hostname")
    assert "has other files in it" in site.run("--yes", "--prepare")[1]


def test_a_folder_of_another_site_or_with_other_files_is_left_alone(site: Site) -> None:
    other = site.folder / "other"
    other.mkdir()
    (other / "thesis.txt").touch()
    assert "has other files in it" in site.run("--yes", "--dir", "other")[1]
    (other / "site").touch()
    (other / ".env").write_text("SITE_NAME=hospital-d\n")
    code, said = site.run("--yes", "--dir", "other")
    assert code == 1 and "is the folder of the site hospital-d: expected that of hospital-c" in said
    assert "expected the site's folder, found no site" in site.run("--update", "--dir", "nowhere")[1]


def test_the_ca_of_the_first_file_does_not_count_once_it_was_replaced(site: Site) -> None:
    site.answers |= {"run --rm --interactive": SIGNED, "run": "true", "compose": "true"}
    assert site.run("--yes")[0] == 0
    assert site.run("--update", "--yes")[0] == 0
    asks = "run --rm --network none --read-only --cap-drop ALL --security-opt no-new-privileges --mount"
    site.answers = {asks: "exit 1", **site.answers}
    code, said = site.run("--update", "--yes")
    assert code == 1 and "does not trust the CA of this file, AA:BB" in said
    assert site.run("--update", "--fingerprint", "aabb")[0] == 0
    # A site without a list of CAs has only that of its first file.
    (site.folder / SITE / "renewed/rootCA.pem").unlink()
    assert site.run("--update", "--yes")[0] == 0


def test_an_older_file_is_refused(ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, now = [], time.time()
    for name, ahead in (("first", 0), ("second", 60)):
        monkeypatch.setattr(time, "time", lambda then=now + ahead: then)
        texts.append(written(ca, tmp_path / name))
    monkeypatch.undo()
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site", texts[1])
    site.answers |= {"run --rm --interactive": SIGNED, "run": "true", "compose": "true"}
    assert site.run("--yes")[0] == 0
    before = (site.folder / SITE / ".env").read_text()
    site.file.write_text(texts[0])
    code, said = site.run("--update")
    assert code == 1 and "is older than the one that the site has used" in said
    assert (site.folder / SITE / ".env").read_text() == before
    site.file.write_text(texts[1])
    assert site.run("--update")[0] == 0


def test_a_folder_may_end_with_a_slash(site: Site) -> None:
    site.answers |= {"run --rm --interactive": SIGNED, "run": "true", "compose": "true"}
    code, said = site.run("--yes", "--dir", "here//")
    assert code == 0, said
    assert sorted(path.name for path in site.folder.iterdir()) == ["bin", "here", f"{SITE}.join"]
    assert stat.S_IMODE((site.folder / "here").stat().st_mode) == 0o700
    # Only a console's container has jobs.
    assert not (site.folder / "here/jobs").exists()


@pytest.mark.parametrize("how", ["a link", "another user's folder"])
def test_a_key_is_not_written_where_somebody_else_waits_for_it(site: Site, how: str) -> None:
    site.answers |= {"run --rm --interactive": SIGNED, "run": "true"}
    there, trap = site.folder / "there", site.folder / f"{SITE}.joining"
    there.mkdir()
    if how == "a link":
        trap.symlink_to(there)
    elif os.geteuid() == 0:
        trap.mkdir()
        os.chown(trap, 12345, 12345)
    else:
        pytest.skip("only root makes another user's folder")
    code, said = site.run("--yes")
    assert code == 1 and f"expected nothing at {trap}, found a link, or a file of another user" in said
    assert not list(there.iterdir()) and not list(trap.iterdir()) and not (site.folder / SITE).exists()


@pytest.mark.parametrize("how", ["a link", "another user's folder"])
def test_a_folder_that_somebody_else_has_prepared_is_no_sites_folder(site: Site, how: str) -> None:
    """Its .env could name another Compose file, and its owner could take the key."""
    if os.geteuid() != 0:
        pytest.skip("only root makes another user's folder")
    site.answers |= {"run --rm --interactive": SIGNED, "run": "true", "compose": "true"}
    waits = site.folder / ("theirs" if how == "a link" else SITE)
    waits.mkdir()
    (waits / "site").touch()
    (waits / ".env").write_text(f"SITE_NAME={SITE}\nCOMPOSE_FILE=theirs.yaml\n")
    if how == "a link":
        (site.folder / SITE).symlink_to(waits)
        os.chown(site.folder / SITE, 12345, 12345, follow_symlinks=False)
    else:
        os.chown(waits, 12345, 12345)
    code, said = site.run("--yes")
    assert code == 1 and "found a link or what another user has put there" in said, said
    assert sorted(path.name for path in waits.iterdir()) == [".env", "site"]


def test_a_link_of_the_administrators_own_leads_to_the_sites_folder(site: Site) -> None:
    site.answers |= {"run --rm --interactive": SIGNED, "run": "true", "compose": "true"}
    assert site.run("--yes", "--dir", "disk")[0] == 0
    (site.folder / SITE).symlink_to("disk")
    site.answers["ps"] = f"echo {site.folder / SITE}"
    code, said = site.run()
    assert code == 0 and "has joined already" in said, said


def test_what_others_wrote_does_not_act_on_the_terminal(site: Site) -> None:
    site.answers["run"] = r"printf 'not\033[2J\302\233 signed\342\200\256, Zürich\n'; exit 1"
    code, said = site.run("--yes")
    assert code == 1 and "not[2J signed, Zürich" in said
    assert all(character >= " " or character == "\n" for character in said)
    # A shell's echo would make a control character of this one.
    site.answers["run"] = r"printf '%s\n' '\033[2J'; exit 1"
    assert r"\033[2J" in site.run("--yes")[1]


@pytest.mark.parametrize("words", [("--fingerprint",), ("--force",), ("--dir", "a:b")])
def test_wrong_words_exit_with_2(site: Site, words: tuple[str, ...]) -> None:
    assert site.run(*words)[0] == 2


def test_the_template_of_a_sites_settings_names_every_key() -> None:
    lines = (join.FOLDER / "site.yml").read_text().format(name=SITE).splitlines()
    shown = [line.removeprefix("# ") for line in lines if re.match(r"# [a-z_]+: ", line)]
    contents = [yaml.safe_load(line) for line in shown]
    contents = [c for c in contents if c != {"allowed_apps": ["HASH"]}]
    assert all(own_settings.problems(content) == [] for content in contents)
    known = {*site_settings.KEYS, own_settings.ENVIRONMENTS, *own_policy.KEYS}
    assert {key for content in contents for key in content} | {"allowed_apps"} == known
