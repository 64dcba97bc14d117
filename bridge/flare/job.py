"""Make a FLARE job of a Flower app, for a recipe, `flowerbed submit` and an exported folder."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nvflare.app_common.logging.job_log_streamer import JobLogStreamer
from nvflare.app_common.widgets.metric_relay import MetricRelay
from nvflare.job_config.api import FedJob
from nvflare.job_config.file_source import FileSource

from bridge.common import job_options, meta, versions
from bridge.common.app import ROUNDS_KEY, check_run_config
from bridge.common.job_options import ConfigValue, JobOptions
from bridge.flare.contents import BUILT
from bridge.job import fab
from bridge.launch import environment, plan
from bridge.server.controller import FlowerController
from bridge.server.trackers import RECEIVERS
from bridge.site import supernode
from bridge.site.executor import FlowerExecutor

TASK_REQUEST_INTERVAL = 0.1
"""Seconds that FLARE sleeps before a site's job asks for a task. The executor adds its own delay, and knows
when the run is over (`bridge/site/executor.py`)."""

GET_TASK_WITHIN = 10.0
"""Seconds for the answer to such a question. With FLARE's own 300 a site would miss the end of its job when
the link has lost an answer."""

UNHEARD = 120.0
"""Seconds without heartbeat after which FLARE's server tells a job that a site is gone
(`provisioning/harden.py` sets it). The job decides what follows."""

DEAD_AFTER_GRACE = 30.0
"""Seconds beyond the grace until FLARE ends the job if too few sites are left. Flower has given the site up
by then. A strategy that can continue has done so, and one that cannot would wait without end."""


EACH_SITE = "@default"
"""The key for a job's needs at each site that its `resource_spec` does not name (nvflare 2.9.0
`utils/job_launcher_utils.py`, PORTABLE_RESOURCE_DEFAULT_KEY)."""


class FlowerJob(FedJob):
    """A FLARE job that runs one Flower app."""

    clients: list[str]
    """FLARE's own field: the sites that it names, or all."""

    @job_options.takes(job_options.options())
    def __init__(self, app: Path | None = None, **given: Any) -> None:
        """Make the job.

        Args:
            app: the Flower app's folder, or its FAB. The folder is bundled now, and goes with the job as one
                file (`fab.py`). None: the app is deployed on the server, at `flower_app_path`. Then no code
                goes with the job.
            given: fields of `JobOptions`. With tracking "none" FLARE's own `add_experiment_tracking` may
                still add a receiver.

        Raises:
            BadApp: the folder is not a Flower app, Flower cannot build it, or it has no such configuration.
            ValueError: an option is not allowed, or not one of `app` and `flower_app_path` is given.
            UnsupportedFlower: the installed flwr does not allow such a SuperNode, or such an order.
        """
        options = _checked(JobOptions(**given), app)
        plain, quoted = _split(options.run_config or {})
        options = replace(options, run_config=plain, run_config_quoted=quoted or options.run_config_quoted)
        mandatory = options.mandatory
        if mandatory is None and options.sites is not None and options.min_sites >= len(options.sites):
            mandatory = options.sites
        super().__init__(
            name=options.name,
            min_clients=options.min_sites,
            mandatory_clients=list(mandatory) if mandatory else None,
            meta_props={
                meta.RETRIES: options.retries,
                meta.LATE_SITES: options.late_sites and options.in_order is None,
            },
        )
        if options.gpus:
            self.job.add_resource_spec(EACH_SITE, {"num_of_gpus": options.gpus})
        # The bridge is in every image. It does not travel with the job.
        self.set_app_packages(["bridge"])
        # Sites get the app too. So FLARE asks each site's policy whether it allows custom code, and a site
        # can check that the app which comes through Flower is the one that was signed for it.
        code = [] if app is None else [self._bundled(app)]
        self._fill_server(options, code)
        self._fill_sites(options, code)

    def _fill_server(self, options: JobOptions, code: list[FileSource]) -> None:
        self.to_server(FlowerController(**options.arguments(job_options.SERVER)))
        if options.tracking in RECEIVERS:
            self.to_server(RECEIVERS[options.tracking](), id="tracking")
        self.to_server({"server": {"task_request_interval": TASK_REQUEST_INTERVAL}})
        self.to_server({"dead_client_grace_period": max(0.0, options.grace - UNHEARD) + DEAD_AFTER_GRACE})
        for part in code:
            self.to_server(part)

    def _fill_sites(self, options: JobOptions, code: list[FileSource]) -> None:
        for part in (
            FlowerExecutor(**options.arguments(job_options.SITE)),
            # The points of an app's writers go to the executor, and from there through `metrics_relay.py`.
            MetricRelay(fed_event=False),
            JobLogStreamer(target_parent_server=True),
            {"get_task_timeout": GET_TASK_WITHIN},
            *code,
        ):
            if options.sites is None:
                self.to_clients(part)
            else:
                for site in options.sites:
                    self.to(part, site)

    def _bundled(self, app: Path) -> FileSource:
        """Return the app's FAB, in a file that lives as long as this job, because FLARE copies it at each
        export."""
        folder = tempfile.mkdtemp(prefix="flowerbed-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        file = Path(folder) / fab.NAME
        file.write_bytes(fab.bundled(app))
        return FileSource(str(file), app_folder_type="custom")

    def simulator_run(self, *args: Any, **options: Any) -> Any:
        """Run in FLARE's simulator. See `FedJob.simulator_run`. The job can be run again, also elsewhere."""
        with self._for_simulator():
            return super().simulator_run(*args, **options)

    @contextlib.contextmanager
    def _for_simulator(self) -> Iterator[None]:
        """Remove the parts that stream logs, and restore the sites that FLARE has named.

        The simulator's server accepts no logs, and writes an error for each piece. (The sites' logs are on
        this machine anyway.)
        """
        clients, parts = self.clients, [app.app_config.components for app in self._deploy_map.values()]
        before = [dict(part) for part in parts]
        try:
            for part in parts:
                for name in [n for n, component in part.items() if isinstance(component, JobLogStreamer)]:
                    del part[name]
            yield
        finally:
            self.clients = clients
            for part, components in zip(parts, before, strict=True):
                part.clear()
                part.update(components)


def _checked(options: JobOptions, app: Path | None) -> JobOptions:
    """Check everything that `FlowerJob` raises for. Return the options, with the rounds as a key of the run
    config."""
    supernode.check(options.supernode)
    options.check()
    if options.in_order is not None and not options.environment:
        versions.require_fast_path(plan.WHAT)
    extra_env = options.extra_env or {}
    environment.check_extra(extra_env)
    if (app is None) == (not options.flower_app_path):
        raise ValueError("expected an app's folder or flower_app_path, one of them")
    if extra_env and app is None:
        raise ValueError(environment.NOT_WITHOUT_CODE)
    if options.rounds is not None:
        options = replace(options, run_config={**(options.run_config or {}), ROUNDS_KEY: options.rounds})
    if app is not None:
        check_run_config(fab.config(app), options.run_config or {})
    return options


def _split(run_config: Mapping[str, ConfigValue]) -> tuple[dict[str, ConfigValue], list[str]]:
    """Return the overrides that FLARE passes on unchanged, and the others in quoted form. FLARE would make a
    component of a key such as `path`, and takes braces for references."""
    quoted = {
        key: value
        for key, value in run_config.items()
        if key in BUILT or any(mark in f"{key}{value}" for mark in "{}")
    }
    plain = {key: value for key, value in run_config.items() if key not in quoted}
    return plain, [quote(json.dumps([key, value])) for key, value in quoted.items()]
