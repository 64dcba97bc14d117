"""A Flower app as a FLARE job: what a recipe, `flowerbed submit` and an exported folder have in common."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nvflare.app_common.logging.job_log_streamer import JobLogStreamer
from nvflare.app_common.widgets.metric_relay import MetricRelay
from nvflare.job_config.api import FedJob
from nvflare.job_config.file_source import FileSource

from bridge.flare import meta
from bridge.flare.contents import BUILT
from bridge.flare.controller import SITES_WITHIN, FlowerController
from bridge.flare.executor import FlowerExecutor
from bridge.flare.trackers import CHOICES, NONE, RECEIVERS
from bridge.flower import environment, fab, versions
from bridge.flower.app import ConfigValue, check_run_config, read_app
from bridge.flower.heartbeat import LONGEST, SHORTEST
from bridge.flower.superlink import READY_WITHIN
from bridge.flower.supernode import PROCESS, STOP_GRACE, check

TASK_REQUEST_INTERVAL = 5.0
"""Seconds between two questions of a site's job after a task; each costs about 10 ms. There is none, and of
the job's end the site is told (`bell.py`): only if that is lost does it learn of it so."""

GET_TASK_WITHIN = 10.0
"""Seconds for the answer to such a question. FLARE's own 300 would let a site sit out the end of its job when
the link has lost an answer."""

UNHEARD = 120.0
"""Seconds without heartbeat after which FLARE's server tells a job that a site is gone
(`provisioning/harden.py` sets it). What becomes of that is the job's to say."""

DEAD_AFTER_GRACE = 30.0
"""Seconds beyond the grace until FLARE ends the job if fewer sites are left than it must have. Flower has
given the site up by then: a strategy that can go on has done so, and one that cannot would wait for ever."""

SILENCE_SHORTEST = 60.0
"""The fewest seconds without a call from any site that can mean that all have stopped: a SuperNode that has
nothing to do makes one every 20 to 30 s."""

RETRIES_MOST = 100
"""The most times that a job can be submitted again by itself."""


class FlowerJob(FedJob):
    """A FLARE job that runs one Flower app."""

    clients: list[str]
    """FLARE's own: the sites that it names, or all."""

    def __init__(
        self,
        app: Path | None = None,
        *,
        name: str,
        flower_app_path: str = "",
        run_config: Mapping[str, ConfigValue] | None = None,
        min_sites: int = 1,
        sites: Sequence[str] | None = None,
        mandatory: Sequence[str] | None = None,
        grace: float = meta.GRACE,
        retries: int = 0,
        warm: bool = True,
        supernode: str = PROCESS,
        in_order: int | None = None,
        tracking: str = NONE,
        superlink_ready_timeout: float = READY_WITHIN,
        sites_within: float = SITES_WITHIN,
        progress_timeout: float | None = None,
        client_shutdown_timeout: float = STOP_GRACE,
        extra_env: Mapping[str, str] = environment.NO_EXTRA,
    ) -> None:
        """Make the job.

        Args:
            app: the Flower app's folder. It is bundled now, and goes with the job as one file (`fab.py`).
            name: the job's name.
            flower_app_path: instead of `app`, one that is deployed on the server: `local/custom/NAME`, from
                FLARE's workspace. No code goes with the job, and the server looks at the app only then.
            run_config: overrides of the app's configuration.
            min_sites: the fewest sites with which the job may run.
            sites: the sites that take part; None: all there are.
            mandatory: sites without which the job does not start.
            grace: seconds for which a site may be out of reach before it is given up.
            retries: how often the job is submitted again by itself, should the server restart meanwhile.
            warm: whether the app's processes are copies of one that has imported much, which saves the time
                of the imports; else each is a new interpreter, as Flower starts it.
            supernode: "process" for a SuperNode that is a process of its own at each site, "inline" for one
                in a thread of FLARE's process of the job.
            in_order: a seed, for a ServerApp that can be compared with another run's (`FlowerController`).
            tracking: what the job's points are written for, one of `CHOICES`. With "none" FLARE's own
                `add_experiment_tracking` may still add a receiver.
            superlink_ready_timeout: seconds for the SuperLink to answer.
            sites_within: seconds for all sites' SuperNodes to appear.
            progress_timeout: seconds without a call from any site after which the job fails; None: for ever.
            client_shutdown_timeout: seconds for SuperNodes and ClientApps to end by themselves.
            extra_env: variables for SuperLink, SuperNodes and apps, whose names begin with `APP_`. Not with
                `flower_app_path`.

        Raises:
            BadApp: the folder is no Flower app, Flower cannot build it, or it has no such configuration.
            ValueError: a number is out of range, there is no such SuperNode or tracking, a variable is not a
                job's to set, or not one of `app` and `flower_app_path` is given.
            UnsupportedFlower: the installed flwr does not allow such a SuperNode, or such an order.
        """
        check(supernode)
        if in_order is not None:
            versions.require_prompt("a job whose ServerApp keeps the sites' order (in order)")
        if not SHORTEST <= grace <= LONGEST:
            raise ValueError(f"grace {grace:g}: expected {SHORTEST:.0f} to {LONGEST:.0f} seconds")
        if progress_timeout is not None and progress_timeout < SILENCE_SHORTEST:
            raise ValueError(
                f"progress_timeout {progress_timeout:g}: expected at least {SILENCE_SHORTEST:.0f} seconds"
            )
        environment.check_extra(extra_env)
        if not 0 <= retries <= RETRIES_MOST:
            raise ValueError(f"retries {retries}: expected 0 to {RETRIES_MOST}")
        if tracking not in CHOICES:
            raise ValueError(f"tracking {tracking!r}: expected {', '.join(CHOICES)}")
        if (app is None) == (not flower_app_path):
            raise ValueError("expected an app's folder or flower_app_path, one of them")
        if extra_env and app is None:
            raise ValueError(environment.NOT_WITHOUT_CODE)
        if app is not None:
            check_run_config(read_app(app), run_config or {})
        plain, quoted = _split(run_config or {})
        if mandatory is None and sites is not None and min_sites >= len(sites):
            mandatory = sites
        super().__init__(
            name=name,
            min_clients=min_sites,
            mandatory_clients=list(mandatory) if mandatory else None,
            meta_props={meta.RETRIES: retries},
        )
        # The bridge is in every image; it does not travel with the job.
        self.set_app_packages(["bridge"])
        self.to_server(
            FlowerController(
                flower_app_path=flower_app_path,
                run_config=plain,
                run_config_quoted=quoted or None,
                min_sites=min_sites,
                grace=grace,
                warm=warm,
                in_order=in_order,
                superlink_ready_timeout=superlink_ready_timeout,
                sites_within=sites_within,
                progress_timeout=progress_timeout,
                extra_env=dict(extra_env) or None,
            )
        )
        if tracking in RECEIVERS:
            self.to_server(RECEIVERS[tracking](), id="tracking")
        # How often a site's job asks for a task, and so how soon it sees END_RUN (FLARE's own: 2 s).
        self.to_server({"server": {"task_request_interval": TASK_REQUEST_INTERVAL}})
        self.to_server({"dead_client_grace_period": max(0.0, grace - UNHEARD) + DEAD_AFTER_GRACE})
        # Sites get the app too: so FLARE asks each site's policy whether it allows custom code, and a site
        # can see that the app which comes through Flower is the one that was signed for it.
        code = [] if app is None else [self._bundled(app)]
        for part in code:
            self.to_server(part)
        timeouts = {"get_task_timeout": GET_TASK_WITHIN}
        for part in (
            FlowerExecutor(
                warm=warm,
                supernode=supernode,
                client_shutdown_timeout=client_shutdown_timeout,
                extra_env=dict(extra_env) or None,
            ),
            # What an app's writers log goes to the executor; from there on it is the relay's (`points.py`).
            MetricRelay(fed_event=False),
            JobLogStreamer(target_parent_server=True),
            timeouts,
            *code,
        ):
            if sites is None:
                self.to_clients(part)
            else:
                for site in sites:
                    self.to(part, site)

    def _bundled(self, app: Path) -> FileSource:
        """The app's FAB, in a file that lives as long as this job: FLARE copies it at each export."""
        folder = tempfile.mkdtemp(prefix="flowerbed-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        file = Path(folder) / fab.NAME
        file.write_bytes(fab.build(app))
        return FileSource(str(file), app_folder_type="custom")

    def simulator_run(self, *args: Any, **options: Any) -> Any:
        """Run in FLARE's simulator; see `FedJob.simulator_run`. The job can be run again, also elsewhere."""
        with self._for_simulator():
            return super().simulator_run(*args, **options)

    @contextlib.contextmanager
    def _for_simulator(self) -> Iterator[None]:
        """Leave out what streams logs: the simulator's server takes none, and writes an error for each piece.
        (The sites' logs lie on this machine anyway.) And put back the sites that FLARE has named."""
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


def _split(run_config: Mapping[str, ConfigValue]) -> tuple[dict[str, ConfigValue], list[str]]:
    """Return the overrides that FLARE hands on as they are, and the others so that it does: of a key such as
    `path` it would make a component, and braces it takes for references."""
    quoted = {
        key: value
        for key, value in run_config.items()
        if key in BUILT or any(mark in f"{key}{value}" for mark in "{}")
    }
    plain = {key: value for key, value in run_config.items() if key not in quoted}
    return plain, [quote(json.dumps([key, value])) for key, value in quoted.items()]
