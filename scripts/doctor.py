"""Check what the federation needs, and say how to fix what is wrong. Changes nothing.

It looks at the engine and what it lacks, Compose, the builder, the disk, the base image, wheels and images.
It looks at the kits with their keys and certificates, at what sites give to apps, and whether the containers'
user can read their data. It looks at ports, the containers' clocks, how far their kernel confines apps, and
disks near a limit. It looks at what each site reports, wherever the site runs.

Each line is ok, warn or fail. With a warning, the federation works. The exit code is 1 if any check fails.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

from cryptography.exceptions import InvalidSignature

from bridge.common.finding import Finding, Level
from bridge.common.text import shown
from provisioning import dotenv
from provisioning.names import is_carrier, service_name
from scripts import (
    base_image,
    certificates,
    compose,
    core,
    engine,
    engine_checks,
    federation_checks,
    images,
    provision,
    results,
    site_checks,
    terminal,
    wheelhouse,
)
from scripts.json_object import JsonObject

SKEW_WARN, SKEW_FAIL = 1.0, 5.0
"""Seconds between this machine's clock and a container's. Flower refuses a site with a clock 5 s ahead."""
SANDBOX = "/opt/flowerbed/bridge/launch/sandbox.py"
"""The program in a container that tells how far apps can be confined there."""
EXPIRY_WARN_DAYS = 30.0
"""Warn of a certificate that ends sooner."""
NEAR = 0.8
"""Warn from this fraction of a limit on."""
USAGE_WITHIN, AT_ONCE = 20.0, 4
"""Seconds for a container to report its disk use, and how many are asked at once: each starts a Python."""
ROOMY = 2.0
"""Warn below this many times the free disk that a build needs."""


JSON = JsonObject(
    {
        "checks": "a list, in the order in which they were made",
        "checks[].check": "its name",
        "checks[].level": "`ok`, `warn` or `fail`",
        "checks[].found": "what it found",
        "checks[].mend": "how to fix it, empty if it is ok",
    }
)


def run() -> dict[str, Any]:
    """Check, tell, and fail if any check does."""
    findings = []
    for finding in examine():
        findings.append(finding)
        _tell(finding)
    failed = [finding.check for finding in findings if finding.level == "fail"]
    checks = [asdict(finding) for finding in findings]
    if failed:
        text = f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}."
        raise core.Failure(text, checks=checks)
    return {"checks": checks}


def _tell(finding: Finding) -> None:
    """Show each line once it is known: all of them take some seconds."""
    from rich.table import Table
    from rich.text import Text

    found = Text(core.as_called(shown(finding.found)))
    if finding.mend:
        found.append(core.as_called(f"\n-> {shown(finding.mend)}"), "bold")
    line = Table.grid(padding=(0, 1))
    line.add_column(width=5)
    line.add_column(width=13)
    line.add_row(terminal.cell(finding.level), finding.check, found)
    terminal.show(line)


def examine() -> Iterator[Finding]:
    """Yield all findings. A check is left out if it needs what an earlier one missed."""
    answer = engine.ask()
    yield from engine_checks.check(answer)
    yield engine_checks.check_compose()
    alive = not answer.problem
    if alive:
        yield engine_checks.check_builder(answer)
        yield check_disk()
        yield check_base()
        yield check_wheels(answer.architecture)
    name = federation_checks.check_name() if alive else None
    if name is not None:
        yield name
        alive = name.level != "fail"  # Otherwise the containers are another folder's.
    config = _config()
    if isinstance(config, Finding):
        yield config
        yield from federation_checks.check_port()
        return
    yield check_project()
    yield from check_kits(config)
    containers = compose.containers() if alive else []
    running = {c["Service"]: c["Name"] for c in containers if c["State"] == "running"}
    yield from check_settings()
    yield from site_checks.check_data(config, running)
    yield from site_checks.check_gpus(config, running)
    if alive:
        yield check_images(config)
        yield from federation_checks.check_containers(config, containers)
        yield from federation_checks.check_sites(running, federation_checks.not_open(config, containers))
        yield from federation_checks.check_ports(config, set(running))
        yield check_clocks(list(running.values()))
        yield from check_sandboxes(running)
        yield from check_usage(config, running)
    yield check_results()


def check_disk() -> Finding:
    """Check that there is room for the next build."""
    places = [path for path in (images.storage(), core.ROOT) if path is not None]
    free, path = min((images.free_gb(path), path) for path in places)
    needed = images.REBUILD_GB if engine.has(base_image.name()) else images.FIRST_BUILD_GB
    found = f"{free:.1f} GB free at {path}, a build needs about {needed:.0f}"
    level: Level = "fail" if free < needed else "warn" if free < ROOMY * needed else "ok"
    return Finding("disk", level, found, "" if level == "ok" else "docker system df shows what Docker holds")


def check_base() -> Finding:
    """Check that the base image is here."""
    base = base_image.name()
    if not engine.has(base):
        return Finding("base image", "warn", f"no {base} yet", "./flowerbed build pulls or makes it")
    made = " (a stand-in, made here from Debian packages)" if base_image.is_stand_in() else ""
    return Finding("base image", "ok", base + made)


def check_wheels(architecture: str) -> Finding:
    """Check that a build could run without network."""
    if wheelhouse.RUNTIME.is_complete(architecture):
        return Finding("wheels", "ok", "complete: a build needs no network")
    return Finding("wheels", "warn", "not all are there", "./flowerbed build fetches what is missing")


def check_images(config: dict[str, Any]) -> Finding:
    """Check that everybody's image is built."""
    if lost := images.lost(config):
        return Finding("images", "warn", f"missing: {', '.join(lost)}", "./flowerbed build")
    return Finding("images", "ok", f"{len(config['services'])} built")


def _config() -> dict[str, Any] | Finding:
    """Return the resolved Compose file, or a finding that says why there is none."""
    if not compose.is_provisioned():
        return Finding("kits", "warn", "nothing is provisioned yet", "./flowerbed provision")
    try:
        return compose.config(tag=dotenv.read(core.ROOT / ".env").get("FLOWERBED_TAG", "none"))
    except core.Failure as failure:
        return Finding("compose file", "fail", str(failure), "./flowerbed provision writes it again")


def check_project() -> Finding:
    """Check that project.yml is valid and provisioned, and that nobody outside it can take part."""
    try:
        project = provision.load(provision.DEFAULT_PROJECT)
        changes, left = provision.changes(), provision.still_valid(project)
    except core.Failure as failure:
        return Finding("project.yml", "fail", str(failure), "correct it, then ./flowerbed provision")
    if changes:
        return Finding("project.yml", "warn", changes, provision.what_follows(changes))
    if left:
        who = ", ".join(left)
        found = f"{who} can still take part: not in the file, but with a certificate that is valid"
        return Finding("project.yml", "warn", found, f"revoked: [{who}] there, then ./flowerbed provision")
    return Finding("project.yml", "ok", f"{project['name']}: {len(project['participants'])} participants")


def check_settings() -> Iterator[Finding]:
    """Show what server and sites give to apps."""
    with contextlib.suppress(core.Failure):  # `check_project` reports it.
        yield from site_checks.check_settings(provision.load(provision.DEFAULT_PROJECT)["participants"])


def check_kits(config: dict[str, Any]) -> Iterator[Finding]:
    """Check that each kit's files belong together, and how long it is valid."""
    found: dict[str, certificates.Validity] = {}
    for kit in filter(None, map(compose.kit, config["services"].values())):
        try:
            found[kit.name] = certificates.validity(kit / "startup")
        except (OSError, ValueError, TypeError, InvalidSignature) as error:
            why = f"{kit.relative_to(core.ROOT)}: {str(error) or 'its certificate is not signed by its CA'}"
            yield Finding("kits", "fail", why, "./flowerbed provision writes new kits and keeps the CA")
    if not found:
        return
    first = min(found, key=lambda name: found[name].end)
    left = (found[first].end - datetime.datetime.now(datetime.UTC)).total_seconds() / 86400
    overdue = [name for name, kit in found.items() if kit.is_overdue]
    mend = "./flowerbed renew. A timer can run it: docs/how-to/renew-certificates.md"
    if left < 0:
        yield Finding("certificates", "fail", f"{first}'s expired {-left:.0f} days ago", mend)
    elif left < EXPIRY_WARN_DAYS:
        yield Finding("certificates", "warn", f"{first}'s expires in {left:.0f} days", mend)
    elif overdue:
        due = f"nobody has renewed those of {', '.join(overdue)}: a third of their life is left"
        yield Finding("certificates", "warn", due, mend)
    else:
        yield Finding("certificates", "ok", f"{len(found)} kits, valid for {left:.0f} days at least")


def check_clocks(containers: list[str]) -> Finding:
    """Compare the containers' clocks with this machine's, or the engine's clock if no container runs."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        read = pool.map(lambda name: _skew(partial(_clock_of, name)), containers)
        skews = dict(zip(containers, read, strict=True))
    skews = skews or {"the engine": _skew(_engine_clock)}
    name = max(skews, key=lambda name: abs(skews[name]))
    skew = skews[name]
    whose = "the containers'" if containers else "the engine's"
    level: Level = "fail" if abs(skew) > SKEW_FAIL else "warn" if abs(skew) > SKEW_WARN else "ok"
    if level == "ok":
        return Finding("clocks", "ok", f"{whose} are within {max(abs(skew), 0.1):.1f} s of this machine's")
    found = f"{name} is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
    return Finding("clocks", level, found, "turn on that machine's time synchronization (timedatectl)")


def check_usage(config: dict[str, Any], running: dict[str, str]) -> Iterator[Finding]:
    """Check how near the disks and running jobs of server and sites are to their limits."""
    asked = {
        name: container
        for name, container in running.items()
        if name in config["services"]
        and not is_carrier(name)
        and "console" not in (config["services"][name].get("command") or ())
    }
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = dict(zip(asked, pool.map(_usage_of, asked.values()), strict=True))
    near: list[str] = []
    for name, usage in answers.items():
        if usage is None:
            near.append(f"could not ask {name}")
            continue
        disk = usage["disk"]
        taken = [("its disk", disk["total"] - disk["free"], disk["total"])]
        taken += [(use["what"], use["used"], use["limit"]) for use in usage["uses"]]
        near += [f"{name}: {_near(*use)}" for use in taken if use[1] > NEAR * use[2]]
    if near:
        mend = "see limits in project.yml, and docker system df. A job that exceeds its limit is ended"
        yield Finding("limits", "warn", "; ".join(near), mend)
    elif answers:
        store = sum(usage["store"] for usage in answers.values() if usage is not None)
        found = f"no participant is near its limits. The job store has {core.in_words(store)}"
        yield Finding("limits", "ok", found)


def check_results() -> Finding:
    """Check how near the folder of fetched results is to its limit."""
    try:
        limit = results.limit()
    except core.Failure as failure:
        return Finding("results", "fail", str(failure), f"correct {results.LIMIT} in .env")
    use = ("results/", results.used(), limit)
    if use[1] > NEAR * limit:
        return Finding(
            "results", "warn", _near(*use), f"remove what you do not need, or raise {results.LIMIT} in .env"
        )
    return Finding("results", "ok", f"{core.in_words(use[1])} of {core.in_words(limit)} in results/")


def _near(what: str, used: float, limit: float) -> str:
    return f"{what} has {core.in_words(used)} of {core.in_words(limit)} ({used / limit:.0%})"


def _usage_of(container: str) -> dict[str, Any] | None:
    command = [engine.docker(), "exec", container, "python", "-P", "-m", "bridge.flare.usage"]
    try:
        process = core.run(command, timeout=USAGE_WITHIN)
        value = json.loads(process.stdout.strip().splitlines()[-1])
        return dict(value) if process.returncode == 0 else None
    except (core.Failure, ValueError, IndexError, TypeError):
        return None


def check_sandboxes(running: dict[str, str]) -> Iterator[Finding]:
    """Report how far apps are confined: a line for each server and site in `running`, containers by
    service."""
    with contextlib.suppress(core.Failure), ThreadPoolExecutor(AT_ONCE) as pool:  # `check_project` tells.
        participants = provision.load(provision.DEFAULT_PROJECT)["participants"]
        asked = [(item, running.get(service_name(item["name"]))) for item in participants]
        for found in pool.map(lambda pair: list(check_sandbox(*pair)) if pair[1] else [], asked):
            yield from found


def check_sandbox(participant: dict[str, Any], container: str) -> Iterator[Finding]:
    """Report how far the kernel can confine the apps of a running server or site."""
    if participant.get("type") not in ("server", "client"):
        return
    name, asked = participant["name"], participant.get("sandbox", "best-effort") or "off"
    if asked == "off":
        yield Finding("sandbox", "ok", f"{name}: off, so apps are not confined")
        return
    command = [engine.docker(), "exec", container, "python", "-I", "-S", SANDBOX]
    process = core.run(command, timeout=engine.ANSWER_TIMEOUT)
    if process.returncode:
        why = (process.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        found = f"{name}: could not determine how far apps are confined ({why})"
        yield Finding("sandbox", "warn", found, "./flowerbed build, then ./flowerbed up")
        return
    told = json.loads(process.stdout)
    if not told["missing"]:
        yield Finding("sandbox", "ok", f"{name}: {asked} confines {told['level']}")
        return
    found = f"{name}: {asked}, and its kernel cannot confine {told['missing']}"
    level: Level = "fail" if asked == "required" else "warn"
    yield Finding("sandbox", level, found, "a newer kernel with Landlock enabled confines more")


def _skew(clock: Callable[[], float]) -> float:
    """Return how far a clock is ahead of ours, in seconds, without the time that asking takes."""
    before = time.time()
    theirs = clock()
    after = time.time()
    return 0.0 if before <= theirs <= after else theirs - after if theirs > after else theirs - before


def _clock_of(container: str) -> float:
    process = core.run([engine.docker(), "exec", container, "date", "+%s.%N"], timeout=engine.ANSWER_TIMEOUT)
    return float(core.must(process, f"Reading the clock of {container}"))


def _engine_clock() -> float:
    return datetime.datetime.fromisoformat(engine.info()["SystemTime"]).timestamp()
