"""Environments that come to a site: who signed them, what may be in them, and what the site takes."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nvflare.lighter.entity import Participant
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.utils import serialize_cert, serialize_pri_key

from bridge.common import app_environment, archive, offers, signed
from bridge.common.archive import BadArchive, Packed
from bridge.common.site_environments import ACCEPT, APPROVE, NEWS, REFUSE, Approvals, News
from bridge.keeper import environments as keeper
from bridge.keeper.environments import Installer
from provisioning.certificates import CertificateBuilder
from scripts import core, progress, provision
from scripts import offers as host
from tests.unit.faking import environment
from tests.unit.test_certificates import authority

NAME = "0123456789ab"
Signer = tuple[bytes, bytes]
Change = Callable[[tarfile.TarFile], None]


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertBuilder:
    return authority(tmp_path_factory.mktemp("ca") / "state")


def person(ca: CertBuilder, role: str | None) -> Signer:
    """Make a kit's key and certificate: a person's, or without a role a site's."""
    kind, props = ("admin", {"role": role}) if role else ("client", {})
    name = f"{role}@hospital.example" if role else "site-1"
    key, certificate = CertificateBuilder.get_pri_key_cert(ca, Participant(kind, name, "hospital", props))
    return serialize_pri_key(key), serialize_cert(certificate)


@pytest.fixture(scope="module")
def admin(ca: CertBuilder) -> Signer:
    return person(ca, "project_admin")


@pytest.fixture(scope="module")
def lead(ca: CertBuilder) -> Signer:
    return person(ca, "lead")


def made(root: Path) -> Path:
    """Make a small environment, with all kinds of files that real ones have."""
    folder = environment(root, NAME)
    (folder / "lock.txt").write_text("flwr==1.42.0\n")
    packages = folder / "venv" / "lib" / "python3.11" / "site-packages" / "flwr"
    packages.mkdir(parents=True)
    (packages / "__init__.py").write_text("x = 1\n")
    (packages / "also.py").hardlink_to(packages / "__init__.py")
    programs = folder / "venv" / "bin"
    programs.mkdir()
    (programs / "flwr").write_text("#!/environments/x/venv/bin/python\n")
    (programs / "flwr").chmod(0o755)
    (programs / "python").symlink_to("/usr/bin/python3.11")
    (programs / "python3").symlink_to("python")
    (folder / "venv" / "lib64").symlink_to("lib")
    (folder / "system" / "lib").mkdir(parents=True)
    (folder / "system" / "lib" / "libx.so.1").write_bytes(b"\x7fELF")
    (folder / "system" / "lib" / "libx.so").symlink_to("../lib/libx.so.1")
    return folder


class Stick:
    """A folder as the server offers it, or as a stick has it."""

    def __init__(self, folder: Path, ca: CertBuilder, signer: Signer) -> None:
        self.folder = folder
        (folder / "environments").mkdir(parents=True)
        self.archive = folder / "environments" / f"{NAME}.tar.gz"
        self.statement = folder / "environments" / f"{NAME}.json"
        self.source = made(folder.parent / "made")
        with self.archive.open("wb") as file:
            self.packed = archive.pack(self.source, file)
        self.facts = json.loads((self.source / app_environment.DESCRIPTION).read_text())
        self.signer = signer
        self.sign()
        (folder / "rootCA.pem").write_bytes(ca.serialized_cert)

    def sign(self, **other: Any) -> None:
        """Write the statement, with other values."""
        said = offers.statement(NAME, self.packed, self.facts) | other
        self.statement.write_bytes(signed.sign(said, *self.signer))

    def put(self, content: bytes, **other: Any) -> None:
        """Put another archive there, with a statement that fits."""
        self.archive.write_bytes(content)
        digest = archive.Hashing(io.BytesIO(content))
        digest.drain()
        self.packed = Packed(digest.sha256, len(content), 1 << 20)
        self.sign(**other)

    def installer(self, root: Path, **choices: Any) -> Installer:
        root.mkdir(exist_ok=True)
        return Installer(self.folder, root, self.folder / "rootCA.pem", **choices)


@pytest.fixture
def stick(tmp_path: Path, ca: CertBuilder, admin: Signer) -> Stick:
    return Stick(tmp_path / "stick", ca, admin)


def tree(folder: Path) -> dict[str, Any]:
    """All of a folder: contents, links, and whether it can be executed."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            stat = path.stat()
            found[name] = path.read_bytes(), bool(stat.st_mode & 0o111), int(stat.st_mtime)
    return found


def refused(installer: Installer) -> str:
    """Look once, and return why the environment was refused. Nothing of it is left."""
    assert installer.look() == []
    left = [path.name for path in installer.root.iterdir() if not path.name.startswith((".approved", NEWS))]
    assert left == []
    (why,) = News.read(installer.root).refused.values()
    return why


def test_an_environment_arrives_as_it_was(stick: Stick, tmp_path: Path) -> None:
    installer = stick.installer(tmp_path / "site")
    assert installer.look() == [NAME]
    there = tree(installer.root / NAME)
    assert there.pop("offer.json")
    assert there.pop("environment.json") and (want := tree(stick.source)).pop("environment.json")
    assert there == want
    assert app_environment.named(NAME, installer.root).facts == stick.facts
    # Nothing happens again, and nothing is news.
    assert installer.look() == []
    assert News.read(installer.root) == News()


def test_the_same_folder_is_the_same_archive(stick: Stick) -> None:
    again = io.BytesIO()
    assert archive.pack(stick.source, again) == stick.packed
    assert again.getvalue() == stick.archive.read_bytes()


def test_a_new_description_reaches_an_installed_environment(stick: Stick, tmp_path: Path) -> None:
    installer = stick.installer(tmp_path / "site")
    installer.look()
    stick.facts = {**stick.facts, "keys": ["another app's"]}
    stick.sign()
    assert installer.look() == []
    assert app_environment.named(NAME, installer.root).facts["keys"] == ["another app's"]


def test_a_lead_describes_nothing_again_at_a_site_that_takes_no_code_of_leads(
    stick: Stick, lead: Signer, tmp_path: Path
) -> None:
    installer = stick.installer(tmp_path / "strict", code_of=("project_admin",))
    assert installer.look() == [NAME]
    facts, stick.facts, stick.signer = stick.facts, {**stick.facts, "libraries": ["lib"]}, lead
    stick.sign()
    assert installer.look() == []
    assert "takes no code from that role" in News.read(installer.root).refused[NAME]
    assert app_environment.named(NAME, installer.root).facts == facts


def described_again(installer: Installer, stick: Stick, facts: dict[str, Any], **other: Any) -> str:
    """Let another description come, and return why it is refused, or "" if it is not."""
    stick.facts = facts
    stick.sign(**other)
    assert installer.look() == []
    assert not list(installer.root.glob(".new-*"))
    return News.read(installer.root).refused.get(NAME, "")


@pytest.mark.parametrize("facts", [{}, {"libraries": ["../../lib"]}, {"keys": "text"}, {"flwr": 1}])
def test_a_description_that_is_none_takes_no_place(
    stick: Stick, tmp_path: Path, facts: dict[str, Any]
) -> None:
    installer, good = stick.installer(tmp_path / "site"), stick.facts
    installer.look()
    worse = {**good, **facts} if facts else {}
    assert described_again(installer, stick, worse) == "its description is not an environment's"
    assert app_environment.named(NAME, installer.root).facts == good


def test_an_earlier_description_does_not_come_back(stick: Stick, tmp_path: Path) -> None:
    installer, first, now = stick.installer(tmp_path / "site"), stick.facts, time.time()
    installer.look()
    second = {**first, "keys": ["another app's"]}
    assert described_again(installer, stick, second, signed=now) == ""
    assert "an earlier description" in described_again(installer, stick, first, signed=now - 1)
    assert "an earlier description" in described_again(installer, stick, first, signed=0)
    assert app_environment.named(NAME, installer.root).facts == second
    # One from the future would stop all that come after it.
    assert "in the future" in described_again(installer, stick, first, signed=now + 3600)
    assert app_environment.named(NAME, installer.root).facts == second
    assert described_again(installer, stick, first, signed=now + 1) == ""
    assert app_environment.named(NAME, installer.root).facts == first


@pytest.mark.parametrize("when", ["1", True, None, -1, float("inf"), float("nan")])
def test_a_time_that_is_none_is_refused(stick: Stick, tmp_path: Path, when: object) -> None:
    stick.sign(signed=when)
    assert "expected the statement of an environment" in refused(stick.installer(tmp_path / "site"))


def test_a_description_follows_the_sites_policy(stick: Stick, tmp_path: Path) -> None:
    installer, good = stick.installer(tmp_path / "site"), stick.facts
    installer.look()
    installer.policy = REFUSE
    assert "takes no environments" in described_again(installer, stick, {**good, "keys": ["one"]})
    installer.policy = APPROVE
    assert described_again(installer, stick, {**good, "keys": ["two"]}) == ""
    assert News.read(installer.root).waiting == {NAME: stick.packed.sha256}
    assert app_environment.named(NAME, installer.root).facts == good
    Approvals(installer.root).add(stick.packed.sha256)
    installer.look()
    assert app_environment.named(NAME, installer.root).facts["keys"] == ["two"]


def test_an_environment_is_never_replaced(stick: Stick, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    own = environment(tmp_path / "site", NAME, packages=77)
    installer = stick.installer(tmp_path / "site")
    assert installer.look() == []
    assert json.loads((own / app_environment.DESCRIPTION).read_text())["packages"] == 77


@pytest.mark.parametrize("role", ["member", "org_admin", None])
def test_a_signer_without_the_right_is_refused(
    stick: Stick, ca: CertBuilder, tmp_path: Path, role: str | None
) -> None:
    stick.signer = person(ca, role)
    stick.sign()
    why = refused(stick.installer(tmp_path / "site"))
    assert "expected project_admin or lead" in why if role else "is not a person's" in why
    with pytest.raises(signed.Untrusted, match=r"expected project_admin or lead|is not a person's"):
        signed.verified(stick.statement.read_bytes(), ca.serialized_cert, offers.SIGNERS)


def test_a_site_that_takes_no_code_of_leads_takes_none_of_their_packages(
    stick: Stick, lead: Signer, tmp_path: Path
) -> None:
    stick.signer = lead
    stick.sign()
    why = refused(stick.installer(tmp_path / "strict", code_of=("project_admin",)))
    assert "This site takes no code from that role" in why
    assert stick.installer(tmp_path / "site").look() == [NAME]


def test_another_authority_is_refused(stick: Stick, tmp_path: Path) -> None:
    stranger = authority(tmp_path / "stranger")
    stick.signer = person(stranger, "project_admin")
    stick.sign()
    assert "not from this federation's CA" in refused(stick.installer(tmp_path / "site"))
    # Two authorities are trusted while a federation moves from one to the other.
    with (stick.folder / "rootCA.pem").open("ab") as file:
        file.write(stranger.serialized_cert)
    assert stick.installer(tmp_path / "other").look() == [NAME]


def test_a_changed_statement_is_refused(stick: Stick, tmp_path: Path) -> None:
    content = json.loads(stick.statement.read_text())
    content["statement"] = content["statement"].replace("1.42.0", "1.41.0")
    stick.statement.write_text(json.dumps(content))
    assert "was changed after it was signed" in refused(stick.installer(tmp_path / "site"))


def test_a_signature_for_another_purpose_is_refused(
    stick: Stick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLARE signs the files of jobs with the same key."""
    with monkeypatch.context() as patch:
        patch.setattr(signed, "PURPOSE", b"")
        stick.sign()
    assert "was changed after it was signed" in refused(stick.installer(tmp_path / "site"))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"statement": 1}', b"[" * 100_000, b"x" * (2 << 20)])
def test_no_statement_at_all_is_refused(stick: Stick, tmp_path: Path, text: bytes) -> None:
    stick.statement.write_bytes(text)
    assert "expected a signed statement" in refused(stick.installer(tmp_path / "site"))


def test_a_statement_of_something_else_is_refused(stick: Stick, tmp_path: Path) -> None:
    stick.sign(kind="job")
    assert "expected the statement of an environment" in refused(stick.installer(tmp_path / "a"))
    stick.sign(name="ba9876543210")
    assert "of another environment" in refused(stick.installer(tmp_path / "b"))
    stick.sign(facts={"flwr": 3})
    assert "description is not an environment's" in refused(stick.installer(tmp_path / "c"))


def test_a_changed_archive_is_refused(stick: Stick, tmp_path: Path) -> None:
    content = bytearray(stick.archive.read_bytes())
    content[-5] ^= 1  # In gzip's own checksum.
    stick.archive.write_bytes(content)
    assert "CRC check failed" in refused(stick.installer(tmp_path / "a"))
    # A valid archive with other content.
    (stick.source / "lock.txt").write_text("evil==1.0\n")
    with stick.archive.open("wb") as file:
        archive.pack(stick.source, file)
    why = refused(stick.installer(tmp_path / "b"))
    assert "expected the checksum" in why or "it is longer than" in why
    stick.archive.write_bytes(content[:100])
    assert "whole tar.gz" in refused(stick.installer(tmp_path / "c"))
    stick.archive.write_bytes(b"x" * (stick.packed.bytes + 1))
    assert refused(stick.installer(tmp_path / "d"))


def test_bytes_behind_the_archive_are_refused(stick: Stick, tmp_path: Path) -> None:
    with stick.archive.open("ab") as file:
        file.write(b"more")
    assert "longer than" in refused(stick.installer(tmp_path / "site"))


def entry(name: str, **more: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(found, key, value)
    return found


FOLDER = entry("venv", type=tarfile.DIRTYPE)
BAD: dict[str, list[tarfile.TarInfo]] = {
    "up": [entry("venv/../../x")],
    "absolute": [entry("/etc/x")],
    "top": [entry("environment.json")],
    "no folder": [entry("venv/x")],
    "through a link": [
        FOLDER,
        entry("venv/lib", type=tarfile.DIRTYPE),
        entry("venv/l", type=tarfile.SYMTYPE, linkname="lib"),
        entry("venv/l/x"),
    ],
    "link up": [FOLDER, entry("venv/x", type=tarfile.SYMTYPE, linkname="../../x")],
    "link to the key": [FOLDER, entry("venv/x", type=tarfile.SYMTYPE, linkname="/kit/startup/client.key")],
    "link behind a link": [FOLDER, entry("venv/x", type=tarfile.SYMTYPE, linkname="d/../../../x")],
    "python": [
        FOLDER,
        entry("venv/bin", type=tarfile.DIRTYPE),
        entry("venv/bin/python", type=tarfile.SYMTYPE, linkname="/data/python3"),
    ],
    "hard link": [FOLDER, entry("venv/x", type=tarfile.LNKTYPE, linkname="/kit/startup/client.key")],
    "device": [FOLDER, entry("venv/x", type=tarfile.CHRTYPE, devmajor=1, devminor=5)],
    "pipe": [FOLDER, entry("venv/x", type=tarfile.FIFOTYPE)],
    "twice": [entry("lock.txt"), entry("lock.txt")],
    "control": [FOLDER, entry("venv/\x1b]x")],
}


def tar(entries: list[tarfile.TarInfo], content: bytes = b"") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        for one in entries:
            file.addfile(replace_size(one, len(content)), io.BytesIO(content))
    return out.getvalue()


def replace_size(one: tarfile.TarInfo, size: int) -> tarfile.TarInfo:
    one.size = size if one.isreg() else 0
    return one


@pytest.mark.parametrize("entries", BAD.values(), ids=BAD)
def test_an_archive_that_reaches_out_is_refused(
    stick: Stick, tmp_path: Path, entries: list[tarfile.TarInfo]
) -> None:
    stick.put(tar(entries))
    assert refused(stick.installer(tmp_path / "site"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "site", "stick"]


def test_an_archive_that_grows_is_refused(stick: Stick, tmp_path: Path) -> None:
    stick.put(gzip.compress(gzip.decompress(tar([entry("lock.txt")], bytes(8 << 20))), 9))
    assert len(stick.archive.read_bytes()) < 20_000
    assert "its files take more than" in refused(stick.installer(tmp_path / "site"))
    empty = [entry("venv", type=tarfile.DIRTYPE), *(entry(f"venv/{n}") for n in range(2000))]
    stick.put(tar(empty))
    assert "its files take more than" in refused(stick.installer(tmp_path / "other"))


def header(kind: bytes, size: int) -> bytes:
    return entry("lock.txt", type=kind, size=size).tobuf(tarfile.GNU_FORMAT)


def endless_map() -> bytes:
    """Return a sparse file's header. Each block after it says that another one follows."""
    first = bytearray(header(tarfile.GNUTYPE_SPARSE, 0))
    first[482] = 1
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    part = b"00000000001\0" * 42 + b"\1" + bytes(7)
    return bytes(first) + part * (ENDLESS // len(part))


ENDLESS = 64 << 20
HEADERS: dict[str, Callable[[], bytes]] = {
    "pax": lambda: header(tarfile.XHDTYPE, ENDLESS) + bytes(ENDLESS),
    "global pax": lambda: header(tarfile.XGLTYPE, ENDLESS) + bytes(ENDLESS),
    "long name": lambda: header(tarfile.GNUTYPE_LONGNAME, ENDLESS) + bytes(ENDLESS),
    "long link": lambda: header(tarfile.GNUTYPE_LONGLINK, ENDLESS) + bytes(ENDLESS),
    "sparse": endless_map,
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_an_archive_of_headers_takes_no_memory(
    stick: Stick, tmp_path: Path, content: Callable[[], bytes]
) -> None:
    stick.put(gzip.compress(content(), 1))
    tracemalloc.start()
    try:
        assert "bytes before a file" in refused(stick.installer(tmp_path / "site"))
        assert tracemalloc.get_traced_memory()[1] < ENDLESS / 4
    finally:
        tracemalloc.stop()


def test_an_archive_with_a_name_that_is_too_long_is_not_unpacked_again(
    stick: Stick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stick.put(tar([FOLDER, entry(f"venv/{'a' * 300}")]))
    installer = stick.installer(tmp_path / "site")
    assert "too long a name" in refused(installer)
    monkeypatch.setattr(archive, "unpack", None)
    assert "too long a name" in refused(installer)


def test_no_file_gets_other_rights(stick: Stick, tmp_path: Path) -> None:
    stick.put(tar([entry("lock.txt", mode=0o6777, uid=0)]))
    installer = stick.installer(tmp_path / "site")
    installer.look()
    assert (installer.root / NAME / "lock.txt").stat().st_mode & 0o7777 == 0o755


def test_a_site_takes_what_it_approves(stick: Stick, tmp_path: Path) -> None:
    installer = stick.installer(tmp_path / "site", policy=APPROVE)
    assert installer.look() == []
    assert News.read(installer.root).waiting == {NAME: stick.packed.sha256}
    Approvals(installer.root).add("0" * 64)
    assert installer.look() == []
    Approvals(installer.root).add(stick.packed.sha256)
    assert installer.look() == [NAME]
    assert News.read(installer.root) == News()
    with pytest.raises(ValueError, match="expected a checksum of 64 characters"):
        Approvals(installer.root).add("../x\n")


@pytest.mark.parametrize("policy", [REFUSE, "acept"])
def test_a_site_that_refuses_takes_nothing(stick: Stick, tmp_path: Path, policy: str) -> None:
    assert "environments: refuse" in refused(stick.installer(tmp_path / "site", policy=policy))


def test_a_full_disk_is_looked_at_again(
    stick: Stick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installer = stick.installer(tmp_path / "site", policy=ACCEPT)
    with monkeypatch.context() as patch:
        patch.setattr(keeper, "SPARE", 1 << 60)
        assert "the disk is too small" in refused(installer)
    assert installer.look() == [NAME]


@pytest.mark.parametrize("end", [".json", ".tar.gz"])
def test_links_and_pipes_in_the_spool_are_not_opened(stick: Stick, tmp_path: Path, end: str) -> None:
    path = stick.folder / "environments" / f"{NAME}{end}"
    path.rename(tmp_path / "real")
    path.symlink_to(tmp_path / "real")
    assert stick.installer(tmp_path / "site").look() == []
    assert not (tmp_path / "site" / NAME).exists()


def test_a_file_that_changes_while_it_is_unpacked_is_refused(stick: Stick, tmp_path: Path) -> None:
    """The checksum is that of the bytes that were unpacked."""
    stated = replace(stick.packed, sha256="0" * 64)
    with pytest.raises(BadArchive, match="expected the checksum"):
        archive.unpack(stick.archive.open("rb"), tmp_path / "new", stated)
    assert not (tmp_path / "new").exists()


def test_what_a_killed_run_leaves_is_removed(stick: Stick, tmp_path: Path) -> None:
    installer = stick.installer(tmp_path / "site")
    (installer.root / ".new-x" / NAME).mkdir(parents=True)
    (installer.root / NAME).mkdir()
    keeper.forget_unfinished(installer.root)
    assert not (installer.root / ".new-x").exists()
    assert installer.look() == [NAME]


@pytest.fixture
def federation(tmp_path: Path, ca: CertBuilder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a federation with a site elsewhere, whose people's kits are here, and an environment."""
    participants: list[dict[str, Any]] = [
        {"name": "server", "type": "server", "org": "a"},
        {"name": "site-1", "type": "client", "org": "a", "elsewhere": True, "connect_to": {"host": "h"}},
    ]
    for role in ("lead", "project_admin", "member"):
        name = f"{role}@hospital.example"
        participants.append({"name": name, "type": "admin", "org": "a", "role": role})
        kit = tmp_path / "workspace" / "flowerbed" / "prod_00" / name / "startup"
        kit.mkdir(parents=True)
        key, certificate = person(ca, role)
        (kit / "client.key").write_bytes(key)
        (kit / "client.crt").write_bytes(certificate)
    project = {"api_version": 3, "name": "flowerbed", "participants": participants}
    monkeypatch.setattr(provision, "load", lambda file: project)
    (tmp_path / ".env").write_text("FLOWERBED_COMPOSE=workspace/flowerbed/prod_00/compose.yaml\n")
    house = tmp_path / ".flowerbed"
    monkeypatch.setattr(core, "ROOT", tmp_path)
    monkeypatch.setattr(core, "ENVIRONMENTS", house / "environments")
    monkeypatch.setattr(host, "FOLDER", house / "offers")
    folder = made(house / "environments")
    describe(folder, keys=["some app's"], made=1.0)
    return tmp_path


def describe(folder: Path, **facts: Any) -> None:
    file = folder / app_environment.DESCRIPTION
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


def offered(root: Path, ca: CertBuilder) -> offers.Environment:
    text = (root / ".flowerbed" / "offers" / "environments" / f"{NAME}.json").read_bytes()
    return offers.read(text, NAME, ca.serialized_cert)


def test_the_servers_machine_offers_what_an_app_uses(federation: Path, ca: CertBuilder) -> None:
    assert host.update() == [NAME]
    offer = offered(federation, ca)
    assert offer.signer == "project_admin@hospital.example"
    files = federation / ".flowerbed" / "offers" / "environments"
    assert {path.stat().st_mode & 0o777 for path in files.iterdir()} == {0o644}
    before = [path.stat().st_mtime_ns for path in sorted(files.iterdir())]
    # Nothing changes without a cause.
    assert host.update() == []
    assert [path.stat().st_mtime_ns for path in sorted(files.iterdir())] == before
    site = federation / "site"
    site.mkdir()
    (site / "rootCA.pem").write_bytes(ca.serialized_cert)
    assert Installer(files.parent, site, site / "rootCA.pem").look() == [NAME]


def test_packing_tells_how_far_it_is(
    federation: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", -1)
    assert host.update() == [NAME]
    first, *lines = capsys.readouterr().err.splitlines()
    assert first.strip().startswith(f"packing environment {NAME}")
    # One line for each file, since no time lies between them here.
    assert len(lines) > 3


def test_another_app_needs_a_new_statement_only(federation: Path, ca: CertBuilder) -> None:
    host.update()
    first = offered(federation, ca)
    describe(federation / ".flowerbed" / "environments" / NAME, keys=["one", "two"])
    assert host.update() == []
    assert offered(federation, ca).packed == first.packed
    assert offered(federation, ca).facts["keys"] == ["one", "two"]
    # Made again under the same name, it has other times in it.
    describe(federation / ".flowerbed" / "environments" / NAME, made=2.0)
    assert host.update() == [NAME]


def test_a_renewed_certificate_signs_again(federation: Path, ca: CertBuilder) -> None:
    host.update()
    file = federation / ".flowerbed" / "offers" / "environments" / f"{NAME}.json"
    before = file.read_bytes()
    who = "project_admin@hospital.example"
    renewed = federation / "workspace" / "flowerbed" / "renewed" / who
    renewed.mkdir(parents=True)
    kit = federation / "workspace" / "flowerbed" / "prod_00" / who / "startup"
    (renewed / "client.crt").write_bytes(person(ca, "project_admin")[1])
    (kit / "client.key").write_bytes(person(ca, "project_admin")[0])
    assert host.update() == []
    assert file.read_bytes() != before


def test_what_no_app_uses_is_not_offered(federation: Path) -> None:
    host.update()
    describe(federation / ".flowerbed" / "environments" / NAME, keys=[])
    assert host.update() == []
    assert list((federation / ".flowerbed" / "offers" / "environments").iterdir()) == []


def test_only_the_named_are_packed_then(federation: Path) -> None:
    assert host.update([]) == host.update(["ba9876543210"]) == []
    assert host.update([NAME]) == [NAME]
    # From then on its statement is kept true.
    describe(federation / ".flowerbed" / "environments" / NAME, keys=["one", "two"])
    file = federation / ".flowerbed" / "offers" / "environments" / f"{NAME}.json"
    before = file.read_bytes()
    assert host.update([]) == []
    assert file.read_bytes() != before


def test_nothing_is_packed_without_sites_elsewhere_or_a_signer(
    federation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = provision.load(federation)["participants"]
    for one in people:
        if one["type"] == "admin":
            one["role"] = "member"
    assert host.update() == []
    assert "no kit of a project_admin or lead is here to sign it" in capsys.readouterr().err
    del people[1]
    assert host.update() == []
    assert list((federation / ".flowerbed" / "offers" / "environments").iterdir()) == []


@pytest.mark.parametrize(
    "path", ["../kit", "environments/../x", "environments/0123456789ab.key", "runtime/x", "/etc/passwd", ""]
)
def test_only_offers_are_opened(stick: Stick, path: str) -> None:
    assert offers.opened(stick.folder, path) is None
