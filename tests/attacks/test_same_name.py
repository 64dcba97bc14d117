"""A second checkout with the same project name takes nothing over from the first."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from dev.scratch_federation import ScratchFederation, make
from tests.federation import PROJECT, Federation


@pytest.fixture(scope="module")
def second(federation: Federation) -> Iterator[ScratchFederation]:
    made = make("second", PROJECT, settings={"FLOWERBED_TAG": "dev"})
    made.must("provision")
    yield made
    shutil.rmtree(made.root)


@pytest.mark.parametrize("verbs", [("build",), ("up",), ("down", "--volumes", "--yes"), ("abort", "any")])
def test_it_is_refused_with_the_firsts_folder(
    federation: Federation, second: ScratchFederation, verbs: tuple[str, ...]
) -> None:
    before = federation.compose("ps", "--quiet")
    refused = second.verb(*verbs)
    assert refused.code == 1
    assert refused.value["folder"] == str(federation.root)
    assert "a different `name:` in project.yml" in refused.text
    assert federation.compose("ps", "--quiet") == before


def test_what_goes_into_images_is_readable_whatever_the_umask_of_the_clone(federation: Federation) -> None:
    """The shared federation's files are as such a clone has them (`tests/federation.py`)."""
    assert (federation.root / "bridge" / "relay" / "calls.py").stat().st_mode & 0o077 == 0
    assert federation.exec("site-1", "python", "-c", "import bridge.site.executor; print('read')") == "read\n"
    listing = federation.exec("server", "sh", "-c", "ls -ld /apps && ls /apps && echo seen")
    assert listing.endswith("seen\n")
