"""`./site doctor` runs the preflight as the site would run, and leaves nothing behind. A program in the place
of docker answers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from provisioning import join
from tests.unit.faking import Program

RUNTIME = "sha256:abc"
LINES = "ok    engine        28.2.2\n"
RUN, PLAIN, DOWN = "compose run", "run --rm --read-only", "compose down"
"""The beginnings of calls: with the site's settings, without them, and the one that cleans up."""


class Site:
    """A site's folder, and what docker says there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "hospital-c"
        self.folder.mkdir()
        (self.folder / "site").write_text((join.FOLDER / "site.sh").read_text())
        (self.folder / "site.yml").touch()
        (self.folder / ".env").write_text(
            f"COMPOSE_PROJECT_NAME=fb-hospital-c\nSITE_NAME=hospital-c\nSITE_RUNTIME={RUNTIME}\n"
            "SITE_SERVER=fl.example.org:8002\nSITE_ROLE=site\n"
        )
        self.docker = Program(
            folder / "bin",
            answers={
                "version": {"out": "28.2.2\n"},
                "compose version": {"out": "2.37.1\n"},
                "image inspect": {"out": f"{RUNTIME}\n"},
                "volume inspect": {},
                "run --rm --network none": {"out": "services: {}\n"},
                RUN: {"out": LINES},
                DOWN: {},
            },
        )

    def doctor(self, *words: str) -> tuple[int, str, str]:
        """Return the exit code and what it says."""
        return self.verb("doctor", *words)

    def verb(self, *words: str) -> tuple[int, str, str]:
        """Run a verb of the site. Return the exit code and what it says."""
        process = subprocess.run(
            ["sh", "site", *words],
            cwd=self.folder,
            env={**os.environ, "PATH": f"{self.docker.folder}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        return process.returncode, process.stdout, process.stderr

    def calls(self, beginning: str) -> list[str]:
        """Return the calls that begin so."""
        return [call for call in self.docker.calls if call.startswith(beginning)]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_the_checks_run_as_the_site_runs(site: Site) -> None:
    assert site.doctor("--json") == (0, LINES, "")
    (call,) = site.calls(RUN)
    assert call == (
        "compose run --rm --no-deps -T doctor preflight --engine=28.2.2 --compose=2.37.1 "
        f"--image={RUNTIME} --expected={RUNTIME} --json"
    )
    assert site.calls(PLAIN) == [] and site.calls(DOWN) == []


def test_a_relay_has_no_gate_and_is_checked_as_it_is(site: Site) -> None:
    file = site.folder / ".env"
    file.write_text(file.read_text().replace("SITE_ROLE=site", "SITE_ROLE=relay"))
    assert site.doctor()[0] == 0
    (call,) = site.calls(RUN)
    assert call.startswith("compose run --rm --no-deps -T hospital-c preflight")


def test_a_volume_that_was_not_there_is_removed_again(site: Site) -> None:
    site.docker.answer("volume inspect", code=1)
    assert site.doctor()[0] == 0
    assert site.calls(DOWN) == ["compose down --volumes"]
    assert site.docker.calls.index("compose down --volumes") == len(site.docker.calls) - 1


def test_a_failed_check_is_a_failure_and_nothing_is_tried_twice(site: Site) -> None:
    site.docker.answer(RUN, code=1, out=LINES, err="Container x Creating\ndoctor: failed: route.\n")
    assert site.doctor() == (1, LINES, "doctor: failed: route.\n")
    assert site.calls(PLAIN) == []


def test_a_site_that_does_not_start_is_checked_without_its_settings(site: Site) -> None:
    site.docker.answer(RUN, code=1, err="bind source path does not exist: /srv/x\n")
    site.docker.answer(PLAIN, code=1, out="FAIL\n", err="doctor: failed: container.\n")
    assert site.doctor() == (1, "FAIL\n", "doctor: failed: container.\n")
    (call,) = site.calls(PLAIN)
    assert "--broken=bind source path does not exist: /srv/x" in call
    assert "--cap-drop ALL --security-opt no-new-privileges" in call and "target=/kit,readonly" in call


def test_a_wrong_site_yml_is_a_failure_and_all_else_is_checked(site: Site) -> None:
    site.docker.answer("run --rm --network none", code=1, err="settings of hospital-c: unknown key x.\n")
    site.docker.answer(PLAIN, code=1)
    assert site.doctor()[0] == 1
    (call,) = site.calls(PLAIN)
    assert "--broken=settings of hospital-c: unknown key x." in call
    assert site.calls(RUN) == []


def test_without_an_engine_or_the_image_it_says_so(site: Site) -> None:
    site.docker.answer("image inspect", code=1)
    code, _, said = site.doctor()
    assert code == 1 and f"the runtime image {RUNTIME} is not on this machine" in said
    site.docker.answer("version", code=1, err="permission denied while trying to connect\n")
    code, _, said = site.doctor()
    assert code == 1 and "does not answer: permission denied while trying to connect" in said
    assert site.calls(RUN) == []


def test_an_option_that_there_is_not(site: Site) -> None:
    code, _, said = site.doctor("--fix")
    assert code == 2 and "only --json" in said and site.docker.calls == []
