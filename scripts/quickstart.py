"""Go from nothing to a trained model in one command. The federation stays up.

It installs or starts Docker, makes certificates, images and the app's environment, divides Fashion-MNIST over
the sites, starts the federation, trains apps/pytorch-quickstart and downloads the results. It keeps what is
already there, so a second run is quick. Sites on other machines, and those with data elsewhere, do not take
part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from provisioning import places
from scripts import app as apps
from scripts import (
    app_builds,
    build,
    console,
    core,
    data,
    engine,
    ownership,
    provision,
    results,
    submit,
    up,
    wait,
)
from scripts.core import ROOT, say
from scripts.json_object import JsonObject

APP = places.TEMPLATE / "apps" / "pytorch-quickstart"


JSON = JsonObject(
    {
        **results.JSON.keys,
        "steps": "the seconds of each step, by its name",
        "quickstart_seconds": "the seconds of all steps",
    },
    like={"": "summary.json"},
)


def run(
    rounds: Annotated[int, typer.Option(metavar="N", help="How many rounds to train.")] = 3,
    alpha: data.Alpha = None,
    seed: data.Seed = 0,
) -> dict[str, Any]:
    """Do all steps in order. A step's verb skips it if nothing has to be done."""
    begin = time.monotonic()
    app = apps.read(APP)
    sites = data.sites_without_data()
    given: dict[str, Any] = {"run_config": [f"min-available-clients={len(sites)}"], "rounds": rounds}
    if sites != provision.site_names():
        given["sites"] = ",".join(sites)
    request = submit.job_request(app, given)  # Reports the user's mistakes before minutes of work.
    steps: dict[str, float] = {}

    def step(title: str, work: Callable[[], Any]) -> Any:
        say(f"\n[{len(steps) + 1}/8] {title}")
        start = time.monotonic()
        with core.led():
            outcome = work()
        steps[title] = round(time.monotonic() - start, 1)
        say(f"  done in {steps[title]:.1f} s")
        return outcome

    def divide() -> None:
        say(data.table(data.prepare(sites, alpha=alpha, seed=seed)))

    step("A Docker engine with Compose", engine.ensure)
    ownership.check(str(provision.load(provision.DEFAULT_PROJECT).get("name", "")))
    step("Certificates and startup kits", provision.run)
    step("Images", build.run)
    step("The app's environment", lambda: app_builds.make([APP], app_builds.Choice()))
    step("Fashion-MNIST, a part for each site", divide)
    step("The federation: server, sites, consoles", up.run)
    service = console.service(None)

    def train() -> str:
        job = str(submit.submit(service, app, submit.in_environment(app, request))["job_id"])
        wait.follow(service, job)
        return job

    how_many = f"{rounds} round{'' if rounds == 1 else 's'}"
    job = step(f"Training {app.name}: {how_many} on {len(sites)} sites", train)
    outcome = step("Results", lambda: results.collect(service, job))
    results.tell(outcome)
    return {**outcome, "steps": steps, "quickstart_seconds": _farewell(outcome, begin)}


def _farewell(outcome: dict[str, Any], begin: float) -> float:
    seconds = round(time.monotonic() - begin, 1)
    accuracy = outcome["rounds"][-1]["metrics"].get("accuracy")
    reached = f"{accuracy:.1%} test accuracy" if accuracy is not None else "A trained model"
    curves = Path(outcome["folder"]).relative_to(ROOT) / "curves.png"
    say(f"\n{reached} after {seconds:.0f} s in all. The curves: {curves}")
    say("The federation is still up. Now try:")
    say("  ./flowerbed status                            containers, sites and running jobs")
    say("  ./flowerbed submit APP --wait                 your own Flower app, unchanged")
    say("  ./flowerbed up --tracking tensorboard         the curves of this and every job, live")
    say("  ./flowerbed quickstart --alpha 0.3            the same with uneven data")
    say("  docker compose run --rm admin                 FLARE's own admin console")
    say("  ./flowerbed down                              stop it; ./flowerbed up starts it again")
    return seconds
