"""Jobs that ask for GPUs: which job gets which, and which site refuses. `nvidia-smi` is made up."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import Job
from nvflare.apis.server_engine_spec import ServerEngineSpec
from nvflare.app_common.job_schedulers import job_scheduler
from nvflare.app_common.resource_consumers.gpu_resource_consumer import GPUResourceConsumer
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator
from nvflare.utils.job_launcher_utils import get_resource_manager_spec

from bridge.common import meta
from bridge.flare import contents
from bridge.flare.gpus import SiteGPUs
from bridge.flare.job import FlowerJob
from bridge.flare.submissions import JobPolicy
from tests.unit.test_contents import APP
from tests.unit.test_job import export
from tests.unit.test_submissions import Store

NO_CONTEXT = FLContext()

SMI = """#!/bin/sh
case "$1" in
*=index) printf 'index\\n{index}' ;;
*) printf '{what}\\n{memory}' ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set up a machine with so many GPUs of 80 GiB, some of it the driver's."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)

    def has(number: int) -> SiteGPUs:
        rows = "".join(f"{n}\\n" for n in range(number)), "81559 MiB\\n" * number
        program = tmp_path / "nvidia-smi"
        program.write_text(SMI.format(index=rows[0], what="memory", memory=rows[1].replace("81559", "81004")))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return SiteGPUs()

    return has


def asked(manager: SiteGPUs, number: int, **more: float) -> tuple[bool, str]:
    wanted = {"num_of_gpus": number, **more} if number else {}
    return manager.check_resources(wanted, NO_CONTEXT)


def started(manager: SiteGPUs, number: int) -> dict[int, float]:
    """Start a job at a site like FLARE, and return what the job has to give back."""
    enough, token = asked(manager, number)
    assert enough, token
    allocated = manager.allocate_resources({"num_of_gpus": number} if number else {}, token, NO_CONTEXT)
    if allocated:
        GPUResourceConsumer().consume(allocated)
    return allocated


def test_each_job_has_its_gpus_to_itself(machine: Any) -> None:
    gpus = machine(3)
    first = started(gpus, 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    second = started(gpus, 2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,2"
    assert asked(gpus, 1) == (False, "1 GPU wanted, in use by other jobs")
    gpus.free_resources(first, "", NO_CONTEXT)
    assert asked(gpus, 2)[0] is False, "one is free"
    assert started(gpus, 1) == {0: 0} and os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    gpus.free_resources(second, "", NO_CONTEXT)
    assert asked(gpus, 2)[0]


def test_a_withdrawn_promise_loses_nothing(machine: Any) -> None:
    gpus = machine(1)
    _, token = asked(gpus, 1)
    assert not asked(gpus, 1)[0]
    gpus.cancel_resources({"num_of_gpus": 1}, token, NO_CONTEXT)
    assert asked(gpus, 1)[0]


def test_a_job_that_asks_for_none_sees_all_whatever_ran_before(machine: Any) -> None:
    gpus = machine(2)
    started(gpus, 1)
    assert started(gpus, 0) == {} and "CUDA_VISIBLE_DEVICES" not in os.environ


def test_jobs_may_share_a_gpu_by_memory_as_in_flare(machine: Any) -> None:
    gpus = machine(1)
    assert asked(gpus, 1, mem_per_gpu_in_GiB=30)[0] and asked(gpus, 1, mem_per_gpu_in_GiB=30)[0]
    assert not asked(gpus, 1, mem_per_gpu_in_GiB=30)[0] and not asked(gpus, 1)[0]
    assert asked(gpus, 1, mem_per_gpu_in_GiB=90)[1].startswith(f"{meta.NEVER}the job asks for 90 GiB")


@pytest.mark.parametrize("has", [0, None])
def test_a_site_without_gpus_says_that_it_never_will(
    machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has: int | None
) -> None:
    if has is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    gpus = SiteGPUs() if has is None else machine(has)
    assert asked(gpus, 1) == (False, f"{meta.NEVER}the job asks for 1 GPU and the site has none")
    assert asked(gpus, 0)[0]


def test_a_site_with_a_failing_driver_goes_on_without_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert not asked(SiteGPUs(), 1)[0] and "cannot be counted" in caplog.text


# The job


def test_a_job_asks_each_site_in_flares_words(tmp_path: Path) -> None:
    folder = export(tmp_path, gpus=2)
    known = json.loads((folder / "meta.json").read_text())
    for site in ("site-1", "any"):
        assert get_resource_manager_spec(known, site) == {"num_of_gpus": 2}
    archive = Path(shutil.make_archive(str(tmp_path / "add"), "zip", tmp_path, "add"))
    assert JobMetaValidator().validate("add", archive.read_bytes())[:2] == (True, "")
    assert contents.of_job(archive.read_bytes(), "add").fab
    FlowerJob(APP, name="none").export_job(str(tmp_path / "b"))
    assert json.loads((tmp_path / "b/none/meta.json").read_text())["resource_spec"] == {}


# The server


def answered(answers: dict[str, tuple[bool, str]], **known: Any) -> tuple[Store, dict[str, Any]]:
    """Let sites answer what FLARE's scheduler asks."""
    store = Store(None)
    job = {"job_id": "j-1", "min_clients": 2, **known}
    context = FLContext()
    context.get_engine = lambda *_, **__: SimpleNamespace(get_component=lambda name: store)
    context.set_prop(FLContextKey.JOB_META, job, private=True, sticky=False)
    context.set_prop(FLContextKey.RESOURCE_CHECK_RESULT, answers, private=True, sticky=False)
    JobPolicy().handle_event(EventType.AFTER_CHECK_CLIENT_RESOURCES, context)
    return store, job


NONE = (False, f"{meta.NEVER}the job asks for 1 GPU and the site has none")
WHY = "the job asks for 1 GPU and the site has none"


def test_a_job_that_too_few_sites_can_run_ends_at_once_with_their_names() -> None:
    store, _ = answered({"site-1": (True, "t"), "site-2": NONE})
    assert store.status == "FINISHED:FAILED_TO_RUN"
    assert store.noted == {meta.REASON: f"site-2 refused the job: {WHY}", meta.REFUSED: {"site-2": WHY}}


def test_so_does_one_that_must_have_that_site() -> None:
    answers = {"site-1": (True, "t"), "site-2": (True, "t"), "site-3": NONE}
    store, _ = answered(answers, mandatory_clients=["site-3"])
    assert store.status == "FINISHED:FAILED_TO_RUN"


def test_one_that_others_can_run_goes_on_and_the_site_is_named() -> None:
    store, _ = answered({"site-1": (True, "t"), "site-2": (True, "t"), "site-3": NONE})
    assert store.status == "" and store.noted == {meta.REFUSED: {"site-3": WHY}}


def test_one_that_waits_for_a_busy_site_waits() -> None:
    busy = (False, "1 GPU wanted, in use by other jobs")
    store, job = answered(
        {"site-1": busy, "site-2": (True, "t")}, schedule_count=9, schedule_history=["x"] * 50
    )
    assert store.status == "" and store.noted == {}
    # FLARE's scheduler counts this try too, waits twice as long after each, and gives up at ten.
    assert job["schedule_count"] == 2 and len(job["schedule_history"]) == 20
    _, job = answered({"site-1": (False, ""), "site-2": (True, "t")}, schedule_count=9)
    assert job["schedule_count"] == 9, "that is FLARE's own affair"


def test_flares_scheduler_goes_on_asking_for_it() -> None:
    """FLARE's own one, as the server has it, with the events that it fires."""
    known: dict[str, Any] = {"job_id": "j", "min_clients": 1, "submit_time": 1.0}
    job = Job("j", {"num_of_gpus": 1}, {"app": ["site-1"]}, known, min_sites=1)
    engine = MagicMock(spec=ServerEngineSpec)
    engine.get_clients.return_value = [SimpleNamespace(name="site-1")]
    engine.check_client_resources.return_value = {"site-1": (False, "1 GPU wanted, in use by other jobs")}
    context = FLContext()
    context.get_engine = lambda *_, **__: engine
    engine.new_context.return_value.__enter__.return_value = context
    engine.fire_event.side_effect = lambda event, fl_ctx: (
        JobPolicy().handle_event(event, fl_ctx) if event == EventType.AFTER_CHECK_CLIENT_RESOURCES else None
    )
    scheduler = job_scheduler.DefaultJobScheduler(max_jobs=3)
    for number in range(15):
        known["last_schedule_time"] = 0.0
        assert scheduler.schedule_job(MagicMock(), [job], context) == (None, None)
        assert known["schedule_count"] == min(number + 1, 3), "the next try is 40 s later at most"
    assert (
        engine.check_client_resources.call_count == 15
        and "in use by other jobs" in known["schedule_history"][-1]
    )
