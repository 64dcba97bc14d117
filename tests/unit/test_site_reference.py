"""The reference page of the join file and of `./site` has what the two scripts take, and nothing else."""

from __future__ import annotations

import re

import pytest

from provisioning.join import FOLDER
from scripts.core import ROOT

PAGE = (ROOT / "docs" / "reference" / "site.md").read_text()


def usage(script: str) -> str:
    """What a script prints with `--help`."""
    found = re.search(r"cat <<'?END'?\n(.*?)^END$", (FOLDER / script).read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def on_page(script: str) -> set[str]:
    """The first words of the page's table of a script."""
    found = re.search(rf"<!-- \w+ of provisioning/join/{script} -->\n((?:\|.*\n)+)", PAGE)
    assert found
    return set(re.findall(r"(?m)^\| `(\S+?)[ `]", found[1]))


@pytest.mark.parametrize("script", ["join.sh", "site.sh"])
def test_the_page_has_each_word_of_the_usage(script: str) -> None:
    words = set(re.findall(r"(?m)^  ([a-z-]+)\b", usage(script)))
    assert len(words) >= 7
    assert on_page(script) == words


def test_the_usage_has_each_option_and_verb_that_the_scripts_take() -> None:
    join, site = ((FOLDER / name).read_text() for name in ("join.sh", "site.sh"))
    options = set(re.findall(r"(?m)(--[a-z-]+)(?= \||\))", join[join.index("while [ $# -gt 0 ]") :]))
    assert options - {"--help"} == on_page("join.sh")
    verbs = set(re.findall(r"(?m)^    ([a-z]+)\)", site[site.index("case $verb in") :]))
    # `own` is for the join file alone.
    assert verbs - {"own"} == on_page("site.sh")


@pytest.mark.parametrize(("verb", "option"), [("logs", "-f"), ("doctor", "--json"), ("leave", "--yes")])
def test_options_of_verbs_are_on_the_page(verb: str, option: str) -> None:
    assert f"`{verb} [{option}]`" in PAGE
    assert option == "-f" or option in (FOLDER / "site.sh").read_text()


def test_the_default_of_memory_that_a_sites_settings_name_is_composes() -> None:
    told = re.search(r"# memory: .*a site's default is (\d+)GB", (FOLDER / "site.yml").read_text())
    compose = re.search(r"mem_limit: .*:-(\d+)g}", (ROOT / "compose" / "site.yaml").read_text())
    assert told and compose and told[1] == compose[1]
    page = (ROOT / "docs" / "how-to" / "site-elsewhere.md").read_text()
    assert f"{compose[1]} GB of memory" in page
