"""`FlowerRecipe`: a Flower app as a FLARE recipe, with the arguments of FLARE's own.

FLARE's recipe (nvflare 2.9.0 `app_opt/flower/recipe.py`) uses TIE, its framework for third-party systems.
Some of its arguments set options that only TIE has. `tests/unit/test_recipe.py` fails when FLARE changes one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.private.fed.utils.fed_utils import split_gpus
from nvflare.recipe import PocEnv, ProdEnv, SimEnv
from nvflare.recipe.spec import ExecEnv, Recipe

from bridge.common import job_options, versions
from bridge.common.app import check_packages, read_app
from bridge.common.job_options import ConfigValue, JobOptions
from bridge.flare.job import FlowerJob
from bridge.launch import environment

log = logging.getLogger(__name__)

DRIVERS = Path(__file__).with_name("drivers")
"""The folder that FLARE loads before its first connection. The module there gives the reason."""

TASK_TIMEOUT, CLIENT_OP_INTERVAL, PROGRESS_TIMEOUT = 10, 90.0, 3600.0
PER_MSG_TIMEOUT, TX_TIMEOUT, SHUTDOWN_TIMEOUT, READY_TIMEOUT = 10.0, 100.0, 5.0, 10.0
"""FLARE's own defaults, in seconds."""

DEFAULTS = JobOptions()

NO_EFFECT = {
    "database": ("", "a SuperLink lives as long as its job, and keeps its state in memory"),
    "per_msg_timeout": (PER_MSG_TIMEOUT, "no response has a deadline"),
    "tx_timeout": (TX_TIMEOUT, "a call is resent for as long as the job lives"),
}
"""Arguments that mean nothing here: FLARE's default, and the reason."""

EITHER = "expected either flower_content or flower_app_path, found {found}"

NOTHING_IS_INSTALLED = (
    "expected False, found True. Nothing is installed while a job runs: sites run what is in their images. "
    "Put the app's packages there (./flowerbed build --app APP). For SimEnv and PocEnv, put them into this "
    "environment."
)


class FlowerRecipe(Recipe):  # type: ignore[misc]
    """A Flower app as a job, for FLARE's environments `SimEnv`, `PocEnv` and `ProdEnv`.

    The arguments of FLARE's recipe that are missing below have no effect. A warning says so if one is set.

    Args:
        flower_content: the app's folder.
        flower_app_path: an app that is deployed on the server, `local/custom/NAME`, instead of a folder. For
            `ProdEnv` and `export`.
        name: the job's name.
        min_clients: the fewest sites with which the job may run.
        mandatory_clients: the sites without which the job does not start.
        superlink_ready_timeout: seconds for the SuperLink to answer, if more than Flowerbed's 60.
        configure_task_timeout: together with `start_task_timeout`, the seconds for all sites' SuperNodes to
            appear, if more than Flowerbed's 60.
        start_task_timeout: see `configure_task_timeout`.
        max_client_op_interval: another value than the default is taken for `grace`, unless that is given.
        progress_timeout: seconds without a call from any site after which the job fails, at least 60.
        client_shutdown_timeout: seconds for SuperNodes and ClientApps to end by themselves when the job is
            over. The default means Flowerbed's own 0.5.
        extra_env: variables for SuperLink, SuperNodes and apps, with names that begin with `APP_`. FLARE's
            recipe gives them to SuperNodes and ClientApps only. Not with `flower_app_path`.
        run_config: overrides of the app's run config.
        allow_runtime_dependency_installation: true is refused, since nothing is installed while a job runs.
        options: those of `JobOptions` that are marked for the recipe.
    """

    @job_options.takes(job_options.of_recipe())
    def __init__(
        self,
        flower_content: str | None = None,
        flower_app_path: str | None = None,
        name: str = "flower_job",
        min_clients: int = 1,
        mandatory_clients: list[str] | None = None,
        database: str = "",
        superlink_ready_timeout: float = READY_TIMEOUT,
        configure_task_timeout: float = TASK_TIMEOUT,
        start_task_timeout: float = TASK_TIMEOUT,
        max_client_op_interval: float = CLIENT_OP_INTERVAL,
        progress_timeout: float = PROGRESS_TIMEOUT,
        per_msg_timeout: float = PER_MSG_TIMEOUT,
        tx_timeout: float = TX_TIMEOUT,
        client_shutdown_timeout: float = SHUTDOWN_TIMEOUT,
        extra_env: dict[str, str] | None = None,
        run_config: dict[str, ConfigValue] | None = None,
        allow_runtime_dependency_installation: bool = False,
        **options: Any,
    ) -> None:
        """Make the recipe. The class describes the arguments.

        Raises:
            BadApp: the folder is not a Flower app, or has no such configuration.
            ValueError: an argument is out of range, or asks for something that does not exist here.
            UnsupportedFlower: the installed flwr does not allow an inline SuperNode.
        """
        if allow_runtime_dependency_installation:
            raise ValueError(f"allow_runtime_dependency_installation: {NOTHING_IS_INSTALLED}")
        if bool(flower_content) == bool(flower_app_path):
            raise ValueError(EITHER.format(found="both" if flower_content else "neither"))
        _tell_what_has_no_effect(
            {"database": database, "per_msg_timeout": per_msg_timeout, "tx_timeout": tx_timeout}
        )
        if options.get("grace") is None:
            options["grace"] = _or(DEFAULTS.grace, max_client_op_interval, CLIENT_OP_INTERVAL)
        if foreign := sorted(set(options) - {option.name for option in job_options.of_recipe()}):
            raise TypeError(f"FlowerRecipe got unexpected arguments: {', '.join(foreign)}")
        # FLARE searches these for possible passwords.
        self.extra_env = extra_env
        self.run_config = run_config
        self._app = Path(flower_content) if flower_content else None
        job = FlowerJob(
            self._app,
            name=name,
            flower_app_path=flower_app_path or "",
            run_config=run_config,
            min_sites=min_clients,
            mandatory=mandatory_clients,
            superlink_ready_timeout=max(DEFAULTS.superlink_ready_timeout, superlink_ready_timeout),
            sites_within=max(DEFAULTS.sites_within, configure_task_timeout + start_task_timeout),
            progress_timeout=progress_timeout,
            client_shutdown_timeout=_or(
                DEFAULTS.client_shutdown_timeout, client_shutdown_timeout, SHUTDOWN_TIMEOUT
            ),
            extra_env=extra_env,
            **options,
        )
        super().__init__(job)

    def process_env(self, env: ExecEnv) -> None:
        """Called by FLARE before the job goes to `env`. Check that it can run there.

        Raises:
            BadApp: this environment runs the app itself, and lacks packages that it needs.
            UnsupportedFlower: the same for flwr.
            ValueError: the environment cannot run it at all.
        """
        if isinstance(env, ProdEnv):
            # Otherwise a connection over TCP or HTTP would not check the server's name.
            os.environ.setdefault("NVFLARE_COMM_DRIVER_PATH", str(DRIVERS))
        if not isinstance(env, (SimEnv, PocEnv)):
            return
        kind = type(env).__name__
        if self._app is None:
            raise ValueError(
                f"flower_app_path: expected an environment with a server that has the app, found {kind}, "
                "which starts with a new server. Use flower_content."
            )
        versions.generation()
        check_packages(read_app(self._app))
        if isinstance(env, SimEnv):
            _see_that_all_run_at_once(env)
        # FLARE's processes are started by this one, in other folders.
        os.environ["PYTHONPATH"] = environment.with_bridge(os.environ.get("PYTHONPATH", ""))


def _or(ours: float, given: float, flares: float) -> float:
    """Return the given value, unless it is FLARE's own default. Then return ours."""
    return ours if given == flares else given


def _tell_what_has_no_effect(given: Mapping[str, Any]) -> None:
    vain = [f"{name} ({NO_EFFECT[name][1]})" for name, value in given.items() if value != NO_EFFECT[name][0]]
    if vain:
        log.warning("FlowerRecipe: these arguments have no effect in Flowerbed: %s", ", ".join(vain))


def _see_that_all_run_at_once(env: SimEnv) -> None:
    """Refuse a simulator with fewer threads than clients. It runs its clients by turns, and each turn would
    end a SuperNode."""
    groups = len(split_gpus(env.gpu_config)) if env.gpu_config else 1
    at_once = groups if groups > 1 else env.num_threads
    if at_once < env.num_clients:
        raise ValueError(
            f"SimEnv: expected as many threads as clients ({env.num_clients}), found {at_once}. A SuperNode "
            "lives as long as the job: leave num_threads out, and name a group of GPUs for each client or "
            "one for all."
        )
