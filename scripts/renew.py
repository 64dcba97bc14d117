"""Renew the certificates of a federation that runs. Nothing restarts, and no job notices.

A certificate is renewed once half of its life is over, for the same key. Server, relays and sites here take
it at once. A site on another machine takes it within a minute, over its own connection. Let a timer run this
verb once a day: docs/how-to/renew-certificates.md.

With --new-ca, each call takes one step to replace the CA itself, and says which comes next.

  ./flowerbed renew           renew what is due
  ./flowerbed renew --all     renew everything
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from provisioning import ca_key, dotenv, keys, renewed, state
from scripts import console, core, provision
from scripts.json_object import JsonObject

JSON = JsonObject(
    {
        "renewed": "the participants with a new certificate",
        "kept": "the others",
        "until": "the last day of each participant's certificate, by name",
        "ca": "`one`, or during a replacement `both trusted` or `reissued`",
        "ca_until": "the last day of the CA that signs",
    },
    on_error={"waits_for": "the participants that have not taken the previous step"},
)

STEPS = {
    "none": "The CA has been replaced. Everybody trusts the new one only.",
    "both trusted": "Step 1 of 3: everybody is told to trust a new CA besides the old one. Next, in a minute "
    "or later: ./flowerbed renew --new-ca",
    "reissued": "Step 2 of 3: the new CA has reissued every certificate. Jobs submitted before this can "
    "start until step 3. Next, when they have: ./flowerbed renew --new-ca",
}
"""What to tell after each step."""

All = Annotated[bool, typer.Option("--all", help="Renew every certificate, due or not.")]
NewCA = Annotated[bool, typer.Option("--new-ca", help="Take the next step to replace the CA.")]
Force = Annotated[
    bool,
    typer.Option(help="Take the step even if somebody has not taken the previous one. They are cut off."),
]
Days = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        min=0.001,
        help="The life of the new certificates in days.",
        show_default="valid_days in project.yml, or 360",
    ),
]


def run(every: All = False, new_ca: NewCA = False, force: Force = False, days: Days = None) -> dict[str, Any]:
    """Renew what is due, or take a step to a new CA.

    Raises:
        core.UsageError: project.yml is missing or wrong.
        core.Failure: nothing is provisioned, or somebody has not taken the step before.
    """
    project = provision.load(provision.DEFAULT_PROJECT)
    with _opened(project) as known:
        if new_ca:
            _step(known, project, force=force)
        reasons = _renew(known, project, every=every, days=days)
        outcome = _outcome(known, project, reasons)
    for name in outcome["renewed"]:
        core.say(f"{name}: renewed until {outcome['until'][name][:10]} ({reasons[name]}).")
    for name in sorted(_by_hand(project) & {*outcome["renewed"]}):
        core.say(f"{name} gets it on the other machine with a new join file: ./flowerbed site add {name}")
    if outcome["kept"] and not new_ca:
        core.say(f"Not due: {', '.join(outcome['kept'])}.")
    if new_ca:
        core.say(STEPS[outcome["ca"] if outcome["ca"] != "one" else "none"])
        if ca_key.setting(ca_key.FILE) and (known.get(ca_key.KEY) or outcome["ca"] == "both trusted"):
            core.say(
                "The new CA's key is on this machine, unencrypted. After step 2 move it to another file: "
                "./flowerbed ca export FILE"
            )
    return outcome


def _by_hand(project: Mapping[str, Any]) -> set[str]:
    """Return the people whose consoles run on other machines. These consoles fetch nothing."""
    return {
        item["name"]
        for item in project["participants"]
        if item["type"] == "admin" and item.get(keys.ELSEWHERE)
    }


def due() -> list[str]:
    """Renew what is due, if anything is, without a word. Returns the names.

    Where the CA's key is elsewhere, it asks nobody for it. It names who is due, and renews nothing.

    Raises:
        core.Failure: the CA's file cannot be read.
    """
    from provisioning import ca_key

    project = provision.load(provision.DEFAULT_PROJECT)
    with _opened(project) as known:
        if ca_key.is_elsewhere(known) and (waiting := _due(known, project)):
            core.say(
                f"{', '.join(waiting)}: the certificates are due. ./flowerbed renew asks for the CA's key."
            )
            return []
        return sorted(_renew(known, project, every=False, days=None))


@contextmanager
def _opened(project: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the content of the CA's file. Afterwards it is saved, and the certificates are handed out."""
    name = project["name"]
    folder = core.ROOT / "workspace" / name / "state"
    if not (folder / state.FILE).is_file():
        raise core.Failure(f"{name} has no certificates yet. First: ./flowerbed provision")
    lock = state.Lock(folder, lambda: core.say("Waiting for another provisioning of this project to end."))
    try:
        known = state.read(folder)
        yield known
        state.save(folder, known)
        _hand_out(known, project)
    except (state.Unreadable, ca_key.NoKey) as error:
        raise core.Failure(str(error)) from None
    finally:
        lock.release()


def _renew(
    known: dict[str, Any], project: Mapping[str, Any], *, every: bool, days: float | None
) -> dict[str, str]:
    """Reissue certificates. Returns the reason for each participant's name."""
    # Here, since it takes a while to import, and `up` imports this module.
    from provisioning import ca_key, renewal

    revoked = set(project.get(keys.REVOKED) or ())
    kinds = {name: kind for name, kind in _kinds(project).items() if name not in revoked}
    life = days if days is not None else _valid_days(project)
    try:
        reasons = renewal.renew(known, kinds, days=life, every=every)
    except ca_key.NoKey as error:
        raise core.Failure(str(error)) from None
    except RuntimeError as error:
        raise core.Failure(f"{error} ./flowerbed renew --new-ca replaces it.") from None
    return {subject.removesuffix(renewal.LISTENER): reason for subject, reason in reasons.items()}


def _due(known: Mapping[str, Any], project: Mapping[str, Any]) -> list[str]:
    """Return the participants with a certificate that is due."""
    from provisioning import renewal

    names = {*_kinds(project)} - {*(project.get(keys.REVOKED) or ())}
    found = [(name, certificate) for name, _, certificate in renewal.certificates(known) if name in names]
    return sorted({name for name, certificate in found if renewal.is_due(certificate)})


def _step(known: dict[str, Any], project: Mapping[str, Any], *, force: bool) -> None:
    """Take the next step to a new CA."""
    from provisioning import renewal

    step = renewal.step(known)
    if step is renewal.Step.NONE:
        renewal.begin(known)
        return
    late = [] if force else _late(known, project)
    if late:
        raise core.Failure(
            f"Not everybody is known to have taken the previous step: {', '.join(late)}. "
            "Try again in a minute. Or go on without them: ./flowerbed renew --new-ca --force. "
            "They then need a new join file.",
            waits_for=late,
        )
    if step is renewal.Step.BOTH_TRUSTED:
        renewal.switch(known)
    else:
        renewal.finish(known)


def _late(known: Mapping[str, Any], project: Mapping[str, Any]) -> list[str]:
    """Return the participants on other machines that are not known to have taken the last step.

    Those of this machine see each step at once. Sites and relays report. A person's console elsewhere does
    not, and nobody waits for it: it gets each step by hand.
    """
    from provisioning import renewal

    people = _by_hand(project)
    elsewhere = [
        item["name"]
        for item in project["participants"]
        if item.get(keys.ELSEWHERE) and item["name"] not in people
    ]
    wanted = [name for name in elsewhere if name not in set(project.get(keys.REVOKED) or ())]
    if not wanted:
        return []
    try:
        told = console.ask(console.service(None), "status")
    except core.Failure as failure:
        raise core.Failure(
            f"The server cannot be asked whether everybody has taken the previous step: {failure} "
            "To go on without it: ./flowerbed renew --new-ca --force",
            waits_for=wanted,
        ) from None
    reports = {item["name"]: item["report"].get("certificate") or {} for item in told.get("reports") or ()}
    return [name for name in wanted if not renewal.has_taken(known, name, reports.get(name, {}))]


def _hand_out(known: Mapping[str, Any], project: Mapping[str, Any]) -> None:
    """Put the certificates into the kits in use and beside them."""
    from provisioning import renewal

    file = dotenv.read(core.ROOT / ".env").get("FLOWERBED_COMPOSE", "")
    prod = (core.ROOT / file).parent
    if not file or prod.parent.name != project["name"]:
        raise core.Failure("The certificates are made, but .env names no kits. Next: ./flowerbed provision")
    renewed.put(prod, renewal.files(known, _kinds(project)))
    # Environments are signed with a person's certificate, which a site without the old CA no longer takes.
    from scripts import offers

    offers.update(())


def _kinds(project: Mapping[str, Any]) -> dict[str, str]:
    return {item["name"]: item["type"] for item in project["participants"]}


def _valid_days(project: Mapping[str, Any]) -> float:
    from provisioning import renewal

    for builder in project.get("builders") or ():
        if str(builder.get("path", "")).endswith(".CertificateBuilder"):
            return float((builder.get("args") or {}).get("valid_days", renewal.VALID_DAYS))
    return renewal.VALID_DAYS


def _outcome(
    known: Mapping[str, Any], project: Mapping[str, Any], reasons: Mapping[str, str]
) -> dict[str, Any]:
    from provisioning import renewal, signing

    kinds = _kinds(project)
    until: dict[str, str] = {}
    for name, _, certificate in renewal.certificates(known):
        end = certificate.not_valid_after_utc.isoformat()
        if name in kinds:
            until[name] = min(end, until.get(name, end))
    step = renewal.step(known)
    return {
        "renewed": [name for name in kinds if name in reasons],
        "kept": [name for name in kinds if name not in reasons and name in until],
        "until": until,
        "ca": "one" if step is renewal.Step.NONE else step.value,
        "ca_until": signing.load(known[renewal.ROOT]).not_valid_after_utc.isoformat(),
    }
