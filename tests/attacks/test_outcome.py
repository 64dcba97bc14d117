"""Reports to FLARE about a job count only from the job's sites."""

from __future__ import annotations

from tests import absent
from tests.attacks import hostile
from tests.federation import Federation

REPORTS = """
from nvflare.fuel.common.exit_codes import ProcessExitCode
from nvflare.private.defs import CellChannel, CellChannelTopic, JobFailureMsgKey
me = Impostor()
told = []
for code in (ProcessExitCode.EXCEPTION, ProcessExitCode.INFRASTRUCTURE_ERROR) * 4:
    payload = {JobFailureMsgKey.JOB_ID: WORDS[0], JobFailureMsgKey.CODE: code}
    told.append(me.request("server", CellChannel.SERVER_MAIN, CellChannelTopic.REPORT_JOB_FAILURE, payload))
tell(told)
"""


def test_forged_reports_neither_fail_a_job_nor_start_the_forger_in_it(larger: Federation) -> None:
    """Six such reports would fail the job. In a job for all sites, one would let the forger in."""
    config = ("--run-config", "train-seconds=6", "--run-config", "min-available-clients=2")
    hostile.registered(larger, "site-3")
    job = larger.submit("numpy-add", "--rounds", "2", "--sites", "site-1,site-2", *config)
    hostile.running(larger, job)
    for who in ("site-3", "member"):
        hostile.act(larger, who, REPORTS, job)
    outcome = larger.must("wait", job)
    assert outcome["status"] == "FINISHED:COMPLETED", outcome
    assert [sorted(entry["sites"]) for entry in outcome["rounds"]] == [["site-1", "site-2"]] * 2
    log = larger.exec("server", "cat", "/workspace/log.txt")
    assert job in log, "not the log that would tell of it"
    assert f"site-3 {absent.SITE_LEFT.format(job=job)}" not in log
    assert absent.NOT_STARTED.format(job=job) not in log
    # It had to register again to act: restart the site itself.
    larger.compose("restart", "site-3")
    hostile.registered(larger, "site-3")
