"""The diagrams of the documentation: drawn by `dev/diagrams.py`, with no text on another."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from dev import diagrams
from dev.drawing import STYLE, Box, Picture


@pytest.mark.parametrize("name", diagrams.DIAGRAMS)
def test_the_committed_file_is_what_the_script_draws(name: str) -> None:
    drawn = diagrams.DIAGRAMS[name]().svg()
    assert (diagrams.DOCS / name).read_text() == drawn, "run: python -m dev.diagrams"


@pytest.mark.parametrize("name", diagrams.DIAGRAMS)
def test_it_has_a_title_a_description_and_only_known_styles(name: str) -> None:
    root = ElementTree.fromstring((diagrams.DOCS / name).read_text())
    space = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{space}title") and root.findtext(f"{space}desc")
    used = {word for part in root.iter() for word in part.get("class", "").split()}
    assert used <= set(re.findall(r"\.([a-z-]+)", STYLE))


def test_every_colour_has_a_dark_one() -> None:
    light, dark = STYLE.split("@media")
    coloured = set(re.findall(r"\.([a-z-]+)[^{\n]*\{[^}]*#", light))
    assert coloured and coloured <= set(re.findall(r"\.([a-z-]+)", dark))


def test_a_text_that_leaves_its_box_is_an_error() -> None:
    picture = Picture("a", "b", 400, 200)
    with pytest.raises(ValueError, match="leaves its box"):
        picture.box("flower", 10, 10, 80, 40, "far too long for it")


def test_a_text_on_another_is_an_error() -> None:
    picture = Picture("a", "b", 400, 200)
    picture.text(200, 100, "the first")
    with pytest.raises(ValueError, match="lies on 'the first'"):
        picture.text(220, 105, "the second")


def test_a_line_is_level_or_upright() -> None:
    picture = Picture("a", "b", 400, 200)
    picture.arrow(Box(0, 0, 10, 10).right, (50, 5))
    with pytest.raises(ValueError, match="neither level nor upright"):
        picture.arrow((0, 0), (50, 5))
