"""Flower's run ids and FLARE's job ids lead to each other."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.common.run_ids import job_or_prefix, job_prefix, run_id

JOB = "1fd0980e-eb5e-437f-b897-3ecd3187e779"
RUN = 2292499400177369983


def test_a_job_has_one_run_id_and_it_leads_back() -> None:
    assert run_id(JOB) == RUN
    assert job_prefix(RUN) == "1fd0980e-eb5e-437f-"
    assert JOB.startswith(job_prefix(RUN))


@given(st.uuids(version=4))
def test_every_job_leads_to_its_run_and_back(job: uuid.UUID) -> None:
    run = run_id(str(job))
    assert 0 < run < 2**64
    assert str(job).startswith(job_prefix(run))
    if run > 10**8:
        assert str(job).startswith(job_or_prefix(str(run)))


def test_an_id_that_is_not_a_uuid_has_a_run_id_too() -> None:
    assert 0 < run_id("a job of somebody's own") < 2**64


@pytest.mark.parametrize("text", ["latest", JOB, "1fd0980e", "12345678", "0", "99999999999999999999"])
def test_other_ids_than_run_ids_stay_unchanged(text: str) -> None:
    assert job_or_prefix(text) == text


def test_a_number_that_no_run_has_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a run id"):
        job_prefix(2**64)
