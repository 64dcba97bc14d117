"""Run an app twice, in plain Flower and through a federation, and compare every value to the last bit.

  ./flowerbed compare apps/pytorch-quickstart
  ./flowerbed compare apps/pytorch-quickstart --sites 5 --rounds 5 --seed 7
  ./flowerbed compare my-app --data my-data      one folder for each site in it: site-1, site-2, ...
Both runs have the same sites, data, seed and packages. Plain Flower's SuperLink and SuperNodes run in one
container of the same image, in the app's environment, without FLARE and without any network. The federation
is a separate one in containers, which is removed afterwards.

In both runs the ServerApp gets nodes and replies in the order of the sites. A sum of three or more numbers
depends on their order, and Flower's own order is random. App and Flower stay as they are. The comparison
covers loss and metrics of every site and on average, and the SHA-256 of the parameters that each site sent
and that the ServerApp made of them.

If the runs differ, plain Flower runs once more: an app that differs from itself is not deterministic. The
picture, the report and both records go to results/compare-APP-TIME/. The exit code is 1 if the two runs
differ.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from bridge.common import app_environment
from bridge.common.app import ROUNDS_KEY
from bridge.launch import plan
from dev import differences, scratch_federation
from dev.scratch_federation import ScratchFederation
from scripts import app as apps
from scripts import app_builds, base_image, core, data, engine, images, provision, uv, wheelhouse
from scripts.build import TAG
from scripts.json_object import JsonObject

PROJECT = "flowerbedcompare"
"""The name of the federation made for the comparison."""

PLAIN = Path(__file__).with_name("plain_flower.py")
"""The program that runs plain Flower in a container. No image has it."""

LOCK = core.HOUSE / "compare.lock"

MOST_SITES = 9
"""Most sites. With ten, site-10 would come before site-2 in the sites' order, with its part of the data."""

SEED_KEY, DATA_KEY = "seed", "data-dir"
"""Keys of a run config for an app's seed and its folder with data, if it has them."""

BUILD_WITHIN, JOB_WITHIN, UP_WITHIN = 1800.0, 3600.0, 180.0
"""Seconds. Each step takes a small part of its limit, which only keeps it from hanging."""

Events = list[dict[str, Any]]


JSON = JsonObject(
    {
        "identical": "true if no value differs",
        "first_difference": "null, or where the first difference is",
        "first_difference.round": "its round",
        "first_difference.site": "the site, or null for the average",
        "first_difference.metric": "the metric",
        "first_difference.by": "by how much, or null",
        "app": "the app's name",
        "sites": "the number of sites",
        "seed": "the seed",
        "values": "the number of values",
        "rounds": "a list",
        "rounds[].round": "its number",
        "rounds[].plain": "loss, metrics and sites of plain Flower, as in `summary.json`, with hashes",
        "rounds[].flowerbed": "the same of the federation",
        "rounds[].parameters_sha256": "of both",
        "plain_differs_from_itself?": "like `first_difference`, if the two runs differ",
        "picture": "the file, or null if there is nothing to draw",
    }
)


def run(
    app: Annotated[Path, typer.Argument(metavar="APP", help="A Flower app's folder.")],
    sites: Annotated[int, typer.Option(metavar="N", help="How many sites, at most 9.")] = 2,
    rounds: Annotated[int | None, typer.Option(metavar="N", help="Rounds (default: the app's own).")] = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="S",
            help="The seed for the ServerApp's random numbers, and for the run config's `seed` if the app "
            "has one.",
        ),
    ] = 42,
    run_config: Annotated[
        list[str] | None,
        typer.Option(
            metavar="K=V",
            help="Override the app's run config, as for `flwr run`. May be given more than once.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder with one folder of data for each site (default: Fashion-MNIST, divided).",
        ),
    ] = None,
) -> dict[str, Any]:
    """Run both, compare, draw."""
    found = apps.read(app)
    if found.ready:
        raise core.UsageError(f"{app} is a job folder: expected a Flower app's folder.")
    if not 1 <= sites <= MOST_SITES:
        raise core.UsageError(f"--sites {sites}: expected 1 to {MOST_SITES}.")
    names = [f"site-{number}" for number in range(1, sites + 1)]
    pairs = list(run_config or ())
    if file := next((text for text in pairs if text.endswith(".toml")), None):
        raise core.UsageError(
            f"--run-config {file}: expected key=value, since `compare` sets keys beside yours."
        )
    if SEED_KEY in found.config:
        pairs.insert(0, f"{SEED_KEY}={seed}")
    config: list[str] = apps.run_config(found, pairs, rounds).get("run_config", [])
    config += [] if rounds is None else [f"{ROUNDS_KEY}={rounds}"]
    if data is not None:
        _check_data(data, names)
    core.HOUSE.mkdir(exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise core.Failure(
                "Another comparison runs in this checkout: wait for its end, or end it."
            ) from None
        plain, federated, again = _both(found, data, names, config, seed)
    outcome = _report(found, sites, seed, plain, federated, again)
    if not outcome["identical"]:
        raise core.Failure(_where(outcome), **outcome)
    return outcome


def _both(
    app: apps.App, folder: Path | None, sites: Sequence[str], config: Sequence[str], seed: int
) -> tuple[Events, Events, Events | None]:
    """Run the app in plain Flower, in a federation, and if these differ, in plain Flower again."""
    _prepare()
    reads = DATA_KEY in app.config
    made = app_builds.make([app.folder], app_builds.Choice())[0]
    federation = _federation(sites, folder, divide=reads and folder is None)
    spec = {
        "sites": sites,
        "seed": seed,
        "run_config": " ".join(config),
        "data": reads or folder is not None,
    }
    try:
        core.say("Plain Flower")
        plain = _plain(federation, app, made, spec)
        core.say("The federation")
        federated = _federated(federation, app, config, sites, seed)
        again = None
        if differences.first(differences.rounds(plain), differences.rounds(federated)) is not None:
            core.say("They differ. Plain Flower once more, to see whether it differs from itself")
            again = _plain(federation, app, made, spec)
        return plain, federated, again
    finally:
        _remove(federation)


def _check_data(folder: Path, sites: Sequence[str]) -> None:
    missing = [site for site in sites if not (folder / site).is_dir()]
    if missing:
        raise core.UsageError(
            f"--data {folder}: expected a folder for each site, found none for {missing[0]}."
        )


def _prepare() -> None:
    engine.ensure()
    base_image.ensure()
    wheelhouse.RUNTIME.fill(engine.ask().architecture)


def _federation(sites: Sequence[str], folder: Path | None, *, divide: bool) -> ScratchFederation:
    """Make a separate federation with these sites. Its images are built, and nothing is started."""
    core.say(f"A federation of {len(sites)} sites: kits, images" + (", data" if divide else ""))
    if divide:
        data.fetch()
    settings = {} if folder is None else {"FLOWERBED_DATA": str(folder.resolve())}
    more = [site for site in sites if site not in provision.site_names()]
    federation = scratch_federation.make("compare", PROJECT, more, settings)
    federation.must("provision")
    if divide:
        data.prepare(sites, data=federation.root / "data", originals=data.fetch)
    for site in provision.site_names() + more:
        # Compose mounts each of them, even if the app needs no data.
        if folder is None:
            (federation.root / "data" / site).mkdir(parents=True, exist_ok=True)
    federation.must("build", timeout=BUILD_WITHIN)
    return federation


def _plain(
    federation: ScratchFederation, app: apps.App, made: Mapping[str, Any], spec: dict[str, Any]
) -> Events:
    """Run the app in plain Flower, in the environment made for it, and return the events."""
    environment = app_environment.ROOT / made["name"]
    libraries = ":".join(str(environment / app_environment.SYSTEM / path) for path in made["libraries"])
    python = environment / app_environment.VENV / "bin" / "python"
    folder = federation.compose("config", "--format", "json")
    mounts = json.loads(folder)["services"][spec["sites"][0]]["volumes"]
    (source,) = (mount["source"] for mount in mounts if mount["target"] == "/data")
    name = f"{PROJECT}-plain"
    command = [
        *(engine.docker(), "run", "--rm", "--interactive", "--init", "--name", name, "--network", "none"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *("--volume", f"{Path(source).parent}:/data:ro", "--entrypoint", str(python)),
        *("--volume", f"{uv.ENVIRONMENTS}:{app_environment.ROOT}:ro"),
        *(("--env", f"LD_LIBRARY_PATH={libraries}") if libraries else ()),
        *(images.runtime(PROJECT, TAG), "-P", "-c", PLAIN.read_text(), json.dumps(spec)),
    ]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        lines: list[str] = []
        watching = threading.Thread(target=_watch, args=(process.stderr, lines), daemon=True)
        watching.start()
        process.stdin.write(app.pack())
        process.stdin.close()
        said = process.stdout.read().decode()
        code = process.wait()
        watching.join()
    except BaseException:
        core.run([engine.docker(), "rm", "--force", name], timeout=60)
        raise
    if code:
        raise core.Failure("\n".join(["Plain Flower did not run the app:", *lines[-40:]]))
    return [json.loads(line) for line in said.splitlines()]


def _watch(stream: IO[bytes], lines: list[str]) -> None:
    for raw in stream:
        line = raw.decode(errors="replace").rstrip()
        lines.append(line)
        if "[ROUND " in line:
            core.say(f"  round {line.split('[ROUND ', 1)[1].split(']')[0].replace('/', ' of ')}")


def _federated(
    federation: ScratchFederation, app: apps.App, config: Sequence[str], sites: Sequence[str], seed: int
) -> Events:
    """Run the app through the federation, and return the events."""
    federation.compose("up", "--detach", "--wait", "server", "admin", *sites, timeout=UP_WITHIN)
    try:
        words = ["submit", str(app.folder.resolve()), "--build", "--wait", "--sites", ",".join(sites)]
        words += [f"--run-config={pair}" for pair in config]
        job = federation.must(*words, f"--in-order={seed}", timeout=JOB_WITHIN, shown=True)
        results = Path(federation.must("results", str(job["job_id"]))["folder"])
        record = results / "serverapp" / plan.TRACE_FILE
        if not record.is_file():
            raise core.Failure("The ServerApp sent no message to any site: there is nothing to compare.")
        return [json.loads(line) for line in record.read_text().splitlines()]
    finally:
        federation.compose("down", "--volumes", "--remove-orphans", check=False)


def _remove(federation: ScratchFederation) -> None:
    """Remove its containers, networks, volumes, images and files."""
    core.say("Removing the federation")
    federation.compose("down", "--volumes", "--remove-orphans", "--rmi", "all", check=False)
    core.run([engine.docker(), "image", "rm", images.runtime(PROJECT, TAG)], timeout=60)
    shutil.rmtree(federation.root, ignore_errors=True)


def _report(
    app: apps.App,
    sites: int,
    seed: int,
    plain: Events,
    federated: Events,
    again: Events | None,
) -> dict[str, Any]:
    """Write the report, the records and the picture, and return the report."""
    # Imported here, since it takes a second.
    from dev import compare_picture

    one, other = differences.rounds(plain), differences.rounds(federated)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = core.ROOT / "results" / f"compare-{app.name}-{stamp}"
    folder.mkdir(parents=True)
    for name, events in (("plain", plain), ("flowerbed", federated), ("plain-again", again)):
        if events is not None:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    numbers = sorted({entry["round"] for entry in (*one, *other)})
    by_round = [{entry["round"]: entry for entry in found} for found in (one, other)]
    first = differences.first(one, other)
    outcome: dict[str, Any] = {
        "identical": first is None,
        "first_difference": first,
        "app": app.name,
        "sites": sites,
        "seed": seed,
        "values": differences.count(one),
        "rounds": [
            {
                "round": number,
                "plain": by_round[0].get(number, {}),
                "flowerbed": by_round[1].get(number, {}),
                "parameters_sha256": [found.get(number, {}).get(differences.HASH) for found in by_round],
            }
            for number in numbers
        ],
    }
    itself = None if again is None else differences.rounds(again)
    if itself is not None:
        outcome["plain_differs_from_itself"] = differences.first(one, itself)
    picture = folder / "compare.png"
    drawn = compare_picture.draw(outcome, itself, picture)
    outcome["picture"] = str(picture) if drawn else None
    (folder / "compare.json").write_text(json.dumps(outcome, indent=2) + "\n")
    _tell(outcome, folder)
    return outcome


def _tell(outcome: dict[str, Any], folder: Path) -> None:
    core.say(f"\n{'round':>5}  {'loss, plain':>22}  {'loss, Flowerbed':>22}  parameters (SHA-256)")
    for entry in outcome["rounds"]:
        losses = (entry[side].get("loss") for side in ("plain", "flowerbed"))
        shown = "  ".join(f"{'none' if loss is None else repr(loss):>22}" for loss in losses)
        a, b = (hashed and hashed[:16] for hashed in entry["parameters_sha256"])
        hashes = f"{a}" if a == b else f"{a} / {b}"
        core.say(f"{entry['round']:>5}  {shown}  {hashes}")
    if outcome["identical"]:
        core.say(f"Identical: all {outcome['values']} values of both runs, to the last bit.")
    core.say(f"The picture, the report and both records: {folder}")


def _where(outcome: dict[str, Any]) -> str:
    first = outcome["first_difference"]
    where = f"{first['site']}'s {first['metric']}" if first["site"] else first["metric"]
    by = "" if first["by"] is None else f", by {first['by']:g}"
    text = f"The runs differ, from round {first['round']} on: {where}{by}."
    if outcome["plain_differs_from_itself"] is not None:
        return (
            f"{text} So does plain Flower from itself: the app is not deterministic (seeds, threads, times)."
        )
    return f"{text} Plain Flower does not differ from itself."
