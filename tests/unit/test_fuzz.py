"""A quick pick of `tests/fuzz.py`: a hundred made-up inputs, always the same."""

from __future__ import annotations

import pytest

from tests import fuzz


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_made_up_input_breaks_nothing(target: str) -> None:
    assert fuzz.fuzz(target, inputs=100, start=1) >= 100
