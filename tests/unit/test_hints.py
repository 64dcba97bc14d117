"""Some errors of an app lead its user to `egress:`, and others do not."""

from __future__ import annotations

import pytest

from bridge.common import hints

NETWORK = (
    "gaierror: [Errno -3] Temporary failure in name resolution",
    "HTTPSConnectionPool(host='x', port=443): ... NameResolutionError(\"...: Failed to resolve 'x'\")",
    "[Errno -2] Name or service not known",
    "OSError: [Errno 101] Network is unreachable",
    "OSError: [Errno 113] No route to host",
    "PermissionError: [Errno 13] Permission denied",
    "NewConnectionError('... Failed to establish a new connection: [Errno 13] Permission denied'))",
)
FILES = (
    "PermissionError: [Errno 13] Permission denied: '/data/x'",
    "FileNotFoundError: [Errno 2] No such file or directory: '/data/x'",
)
OTHER = (
    "RuntimeError: this ClientApp raises on purpose",
    "",
)


@pytest.mark.parametrize("text", NETWORK)
def test_an_error_of_the_network_names_the_line_and_the_site(text: str) -> None:
    reply = {"event": "reply", "site": "site-2", "error": text}
    assert "`egress: any` for site-2 in project.yml" in hints.of_job("", [reply])
    assert "`egress: any`" in hints.with_hint(text, []).splitlines()[-1]


@pytest.mark.parametrize("text", OTHER)
def test_another_error_stays_as_it_is(text: str) -> None:
    assert hints.with_hint(text, [{"event": "reply", "site": "site-2", "error": text}]) == text


@pytest.mark.parametrize("text", FILES)
def test_a_file_that_is_not_found_leads_to_the_check_of_the_data(text: str) -> None:
    hint = hints.of_job("", [{"event": "reply", "site": "site-2", "error": text}])
    assert "./flowerbed doctor" in hint and "site-2" in hint and "egress" not in hint


def test_a_job_that_wants_gpus_of_sites_without_names_the_option() -> None:
    why = "FLARE could not schedule the job: site-1: the job asks for 1 GPU and the site has none"
    assert "without --gpus" in hints.of_job(why, [])
