"""Define the options of a job: the one place that knows their types, defaults, bounds and help.

The command line, the console, `FlowerRecipe`, `FlowerJob`, the job's files, the controller, the executor and
the tables in `docs/reference/` come from `JobOptions`. A new option is a field here, and the line that acts
on it. The tables follow by `python -m dev.reference`. Only the standard library is imported, because the host
has nothing else.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bridge.common.option import Option

ConfigValue = bool | int | float | str
"""A value of an app's run config."""

SERVER, SITE, JOB = "server", "site", "job"
"""The code that acts on an option: `FlowerController`, `FlowerExecutor`, or `FlowerJob`, which makes the
folder."""

HOUR = 3600

PROCESS, INLINE = "process", "inline"
"""The kinds of SuperNode: a process, or a thread of FLARE's process of the job."""

TENSORBOARD, MLFLOW, NO_TRACKING = "tensorboard", "mlflow", "none"

Made = TypeVar("Made", bound=Callable[..., Any])


def _option(
    default: Any, help: str, *users: str, **facts: Any
) -> Any:  # `Any`, so that a field has its own type for mypy.
    return field(default=default, metadata={"help": help, "users": frozenset(users), **facts})


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """The settings of a Flower app that runs as a job. The first text of each field is its help."""

    name: str = _option(
        "", "the job's name", JOB, flag="--name", metavar="NAME", submit_default_text="the app's"
    )
    flower_app_path: str = _option(
        "",
        "an app that is deployed on the server, `local/custom/NAME` in FLARE's workspace",
        SERVER,
        more="Empty: the job's `custom/app.fab`. FLARE asks the server and every site for the right "
        "`server-predeployed-flwr`",
    )
    rounds: int | None = _option(
        None, "set num-server-rounds in the app's run config", JOB, flag="--rounds", metavar="N", at_least=1
    )
    run_config: Mapping[str, ConfigValue] | None = _option(
        None,
        "override the app's run config, as for `flwr run`: pairs, or a TOML file",
        SERVER,
        more=(
            "In a job's file: keys of `[tool.flwr.app.config]` with dots. Values are true, false, numbers or "
            "strings"
        ),
        flag="--run-config",
        metavar="K=V",
    )
    run_config_quoted: Sequence[str] | None = _option(
        None,
        'more overrides, each `["KEY", VALUE]` in JSON, quoted as in a URL',
        SERVER,
        more="Those that FLARE would take for its own",
    )
    sites: Sequence[str] | None = _option(
        None,
        "the sites that take part, separated by commas",
        JOB,
        flag="--sites",
        metavar="A,B",
        submit_default_text="all there are",
    )
    mandatory: Sequence[str] | None = _option(None, "the sites without which the job does not start", JOB)
    min_sites: int = _option(
        1,
        "the fewest sites that the job needs",
        SERVER,
        JOB,
        more="The run starts when all are there, or with these `sites_within` after the job's start. A site "
        "whose flwr cannot talk to the server's "
        "([versions](../architecture/which-flower-versions-work.md)) is not waited for",
        flag="--min-sites",
        metavar="N",
        submit_default_text="those of --sites, or all that are registered",
    )
    late_sites: bool = _option(
        True,
        "let sites that come up while the job runs take part",
        JOB,
        more="Otherwise they take part from the next round on, except with `--in-order`, whose plan names "
        "the sites at the start",
        flag="--no-late-sites",
        flag_help="leave out sites that come up while the job runs",
    )
    gpus: int = _option(
        0,
        "how many GPUs the app needs at each site",
        JOB,
        more="A site with fewer refuses the job. Each job has its GPUs to itself. A job that asks for none "
        "sees all that a site [gives](project.md#what-a-site-gives-to-apps)",
        flag="--gpus",
        metavar="N",
        at_least=0,
        at_most=64,
        recipe=True,
    )
    grace: float = _option(
        900.0,
        "seconds that a site may be out of reach before it is given up",
        SERVER,
        flag="--grace",
        metavar="TIME",
        # At least Flower's own minute, below which a slightly late heartbeat would count. At most the time
        # that a SuperLink accepts (`heartbeat.py`).
        at_least=60,
        at_most=3600,
        unit="seconds",
        recipe=True,
    )
    retries: int = _option(
        0,
        "how often the job is submitted again if the server restarts while it runs",
        JOB,
        flag="--retries",
        metavar="N",
        at_least=0,
        at_most=100,
        recipe=True,
    )
    warm: bool = _option(
        True,
        "fork the app's processes from one that has already imported what they need",
        SERVER,
        SITE,
        more="See [why rounds are fast](../architecture/why-are-rounds-fast.md)",
        flag="--cold",
        flag_help="start a new interpreter for each message, as plain Flower does. Slower, with the same "
        "results",
        recipe=True,
    )
    supernode: str = _option(
        PROCESS,
        "run the SuperNode as a process, or as a thread of FLARE's process, which takes less memory",
        SITE,
        more="[Inline](../architecture/what-is-an-inline-supernode.md) is about 0.1 s a round slower, with "
        "the same results, and needs flwr 1.40 to 1.43",
        flag="--supernode",
        choices=(PROCESS, INLINE),
        recipe=True,
    )
    in_order: int | None = _option(
        None,
        "give the ServerApp its replies in the order of the sites, and random numbers from this seed, and "
        "record what passes it",
        SERVER,
        more="See [the order of replies](../reproducibility.md#the-order-of-replies). It needs flwr 1.40 "
        "to 1.43",
        flag="--in-order",
        metavar="SEED",
        recipe=True,
    )
    tracking: str = _option(
        NO_TRACKING,
        "where to send the curves of each reply, and of what the app logs with FLARE's writers",
        JOB,
        more="See [tracking](../how-to/tracking.md)",
        flag="--tracking",
        choices=(TENSORBOARD, MLFLOW, NO_TRACKING),
        submit_default=TENSORBOARD,
        recipe=True,
    )
    environment: str = _option(
        "",
        "the app's environment, by its name in `./flowerbed apps`",
        SERVER,
        SITE,
        more="Empty: the one that was made for what the app's pyproject.toml asks for",
        flag="--environment",
        metavar="NAME",
        submit_default_text="the one that was made for the app",
        recipe=True,
    )
    superlink_ready_timeout: float = _option(
        60.0, "seconds for the SuperLink to answer", SERVER, at_least=0, at_most=HOUR, unit="seconds"
    )
    sites_within: float = _option(
        60.0,
        # It takes 4 to 6 on a quiet machine.
        "seconds for all sites' SuperNodes to appear",
        SERVER,
        more="Then the run starts without those that are missing, if `min_sites` are there",
        at_least=0,
        at_most=24 * HOUR,
        unit="seconds",
    )
    progress_timeout: float | None = _option(
        None,
        "seconds without a call from any site after which the run has failed",
        SERVER,
        # An idle SuperNode makes a call every 20 to 30 s.
        at_least=60,
        at_most=7 * 24 * HOUR,
        unit="seconds",
    )
    client_shutdown_timeout: float = _option(
        # The run is over by then: nothing is left to save, and a SuperNode's normal end takes 3 s.
        0.5,
        "seconds for SuperNode and ClientApp to end by themselves when the job is over",
        SITE,
        # A process that ignores the signal delays the site this long.
        at_least=0,
        at_most=10,
        unit="seconds",
    )
    extra_env: Mapping[str, str] | None = _option(
        None,
        "[variables](#variables-of-a-job) for SuperLink, SuperNodes and apps",
        SERVER,
        SITE,
    )

    def check(self) -> None:
        """Check that each value is of its type and within its bounds.

        Raises:
            ValueError: one is not.
        """
        for option in options():
            if problem := option.problem(getattr(self, option.name)):
                raise ValueError(f"{option.name} {problem}")

    def arguments(self, user: str) -> dict[str, Any]:
        """Return the values for `user`, in the types that FLARE writes into a job's files."""
        plain = {option.name: getattr(self, option.name) for option in options(user)}
        return {
            name: dict(value)
            if isinstance(value, Mapping)
            else list(value)
            if isinstance(value, Sequence) and not isinstance(value, str)
            else value
            for name, value in plain.items()
        }


def options(user: str | None = None) -> list[Option]:
    """Return all options, or those that `user` acts on."""
    found = _all()
    return found if user is None else [option for option in found if user in option.users]


def of_submit() -> list[Option]:
    """Return the options that have a flag of `flowerbed submit`."""
    return [option for option in options() if option.flag]


def of_recipe() -> list[Option]:
    """Return the options that `FlowerRecipe` takes beside the arguments of FLARE's own."""
    return [option for option in options() if option.recipe]


def submit_defaults() -> dict[str, Any]:
    """Return the defaults of `flowerbed submit` that differ from a job's own."""
    return {o.name: o.submit_default for o in options() if o.submit_default is not None}


_known: list[Option] = []


def _all() -> list[Option]:
    if not _known:
        hints = typing.get_type_hints(JobOptions)
        _known.extend(
            Option(name=f.name, type=_kind(hints[f.name]), default=f.default, **f.metadata)
            for f in dataclasses.fields(JobOptions)
        )
    return _known


def _kind(hint: Any) -> Any:
    """Return the type without `None` and without the type of its items."""
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return typing.get_origin(hint) or hint


def takes(chosen: Iterable[Option]) -> Callable[[Made], Made]:
    """Give a function with `**given` these options in its signature. FLARE reads from it the arguments of a
    component, and writes a job's files. The function must check `given` (`given_to`)."""

    def mark(function: Made) -> Made:
        signature = inspect.signature(function)
        named = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = {parameter.name for parameter in named}
        named += [
            inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default)
            for option in chosen
            if option.name not in taken
        ]
        function.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
        return function

    return mark


def given_to(user: str, given: Mapping[str, Any]) -> JobOptions:
    """Return the options of a component of the job.

    Raises:
        TypeError: one is given that is not this user's.
        ValueError: a value is not of its type, or out of bounds.
    """
    foreign = sorted(set(given) - {option.name for option in options(user)})
    if foreign:
        raise TypeError(f"unexpected options for the {user}: {', '.join(foreign)}")
    made = JobOptions(**given)
    made.check()
    return made
