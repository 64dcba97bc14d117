"""Draw the diagrams of the documentation: the same colours, the same fonts, light and dark.

  python -m dev.diagrams             write them
A test compares them (`tests/unit/test_diagrams.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dev.drawing import Picture

DOCS = Path(__file__).resolve().parents[1] / "docs"

FLOWER, BED, FLARE = "Flower, unchanged", "Flowerbed", "NVIDIA FLARE"


def road() -> Picture:
    """The road of a message."""
    picture = Picture(
        "The road of a message",
        "In a site's container a SuperNode calls the gateway on loopback. The gateway is part of "
        "FLARE's job process, which admits the call, carries it until it is answered, and sends it as"
        " a FLARE message. It crosses to the server's one port over mutual TLS. FLARE's job process "
        "there carries the call out once, checks that the site speaks for its own node, and asks the "
        "SuperLink on loopback. The response goes the same way back.",
        720,
        496,
    )
    for offset in (14, 7):
        picture.box("behind", 14 + offset, 30 - offset, 282, 394)
    picture.box("container", 14, 30, 282, 394)
    picture.text(155, 56, "a site's container", kind="name")
    picture.box("container", 424, 30, 282, 394)
    picture.text(565, 56, "the server's container", kind="name")

    for x, left, right in ((30, "ClientApp", "SuperNode"), (440, "SuperLink", "ServerApp")):
        first = picture.box("flower", x, 74, 108, 46, left)
        second = picture.box("flower", x + 142, 74, 108, 46, right)
        picture.arrow(first.right, second.left, both=True)

    picture.box("flare", 30, 178, 250, 232)
    picture.box("flare", 440, 178, 250, 162)
    picture.text(46, 201, "FLARE job process", kind="name", align="left")
    picture.text(674, 201, "FLARE job process", kind="name", align="right")
    picture.box("bed", 46, 212, 218, 54, "gateway", "knows its SuperNode by key")
    picture.box("bed", 46, 280, 218, 54, "relay", "retries until answered")
    picture.box("bed", 46, 348, 218, 50, "link", "FLARE messages")
    picture.box("bed", 456, 212, 218, 74, "forwarder", "ledger: each call once", "identity: own node only")
    picture.box("bed", 456, 296, 218, 34, "link")
    for x, align, text in ((228, "right", 216), (492, "left", 504)):
        picture.arrow((x, 120), (x, 212), both=True, dashed=True)
        picture.text(text, 146, "Fleet API, 127.0.0.1", "HTTP or gRPC", align=align)

    port = picture.box("flare", 440, 376, 250, 36, "FLARE server")
    picture.arrow((565, 340), port.top, both=True, gap=2)
    picture.arrow((280, 394), port.left, both=True, tls=True, gap=2)
    picture.text(367, 372, "mutual TLS", kind="name", colour="tls-ink")
    picture.text(367, 424, "one port", "sites dial out")
    picture.legend(456, ("flower", FLOWER, 150), ("bed", BED, 330), ("flare", FLARE, 450))
    return picture


def processes() -> Picture:
    """Processes and environments."""
    picture = Picture(
        "Processes and environments",
        "A verb on your machine runs a small client in a console's container, where a daemon holds "
        "FLARE sessions over mutual TLS. Flower's command reaches the same daemon over TLS, with a token. "
        "In a site's container the FLARE client starts a job process,"
        " which starts a reaper. All three run from FLARE's environment. The reaper starts the "
        "SuperNode, which has a fork server, which becomes one ClientApp for each message. These run "
        "from the app's environment, each step under a narrower policy. The server's container is "
        "alike, with a SuperLink and a ServerApp.",
        720,
        614,
    )
    verb = picture.box("bed", 14, 10, 232, 48, "./flowerbed VERB", "on your machine")
    command = picture.box("flower", 14, 70, 232, 48, "flwr run", "on yours, or another")
    picture.box("container", 390, 10, 316, 108)
    picture.text(548, 32, "a console's container", kind="name")
    daemon = picture.box("bed", 424, 44, 248, 62, "console daemon", "keeps FLARE sessions open")
    picture.arrow((verb.x + verb.width, 54), (daemon.x, 54), gap=2)
    picture.text(318, 46, "docker exec")
    picture.arrow((command.x + command.width, 94), (daemon.x, 94), gap=2)
    picture.text(318, 86, "TLS, token")
    picture.arrow((548, 106), (548, 150), both=True, tls=True, gap=2)
    picture.text(566, 139, "mutual TLS", kind="name", colour="tls-ink", align="left")
    _participant(
        picture, 14, "a site's container", "client", "SuperNode", "ClientApp", "one copy for", "each message"
    )
    _participant(
        picture, 390, "the server's container", "server", "SuperLink", "ServerApp", "one copy", "for the run"
    )
    picture.arrow((318, 252), (402, 252), both=True, tls=True, gap=2)
    picture.text(360, 236, "mTLS", kind="name", colour="tls-ink")
    picture.legend(580, ("flower", FLOWER, 150), ("bed", BED, 330), ("flare", FLARE, 450))
    return picture


def _participant(
    picture: Picture, x: float, title: str, long_lived: str, link: str, app: str, *copies: str
) -> None:
    """Draw the processes of one participant."""
    picture.box("container", x, 150, 316, 412)
    picture.text(x + 158, 176, title, kind="name")
    picture.box("zone", x + 12, 190, 292, 160)
    picture.text(x + 24, 212, "FLARE's environment", align="left")
    parent = picture.box("flare", x + 24, 228, 118, 48, "FLARE", long_lived)
    job = picture.box("flare", x + 172, 228, 120, 48, "FLARE", "job process")
    picture.arrow(parent.right, job.left)
    reaper = picture.box("bed", x + 172, 302, 120, 36, "reaper")
    picture.arrow(job.bottom, reaper.top)
    picture.box("zone", x + 12, 360, 292, 190)
    picture.text(x + 24, 382, "the app's environment", align="left")
    node = picture.box("flower", x + 172, 396, 120, 50, link, "policy 1")
    picture.arrow(reaper.bottom, node.top)
    server = picture.box("bed", x + 24, 396, 118, 50, "fork server", "policy 2")
    picture.arrow(node.left, server.right)
    for offset in (8, 4) if app == "ClientApp" else ():
        picture.box("flower", x + 24 + offset, 484 + offset - 4, 118, 50)
    copy = picture.box("flower", x + 24, 480, 118, 50, app, "policy 3")
    picture.arrow(server.bottom, copy.top)
    picture.text(x + 166, 502, *copies, align="left")


def trust() -> Picture:
    """Who holds which key."""
    picture = Picture(
        "Who holds which key",
        "Where you provision, the CA's key signs a kit for each console, the server and each site. "
        "Console and site connect to the server over mutual TLS, each with its own key. A person's "
        "key signs each job, and each site checks the signature over its own part. A SuperNode makes "
        "its own key in memory and signs each call, which the SuperLink checks. No app reads a key.",
        720,
        500,
    )
    picture.box("container", 196, 10, 328, 96)
    picture.text(360, 32, "where you provision", kind="name")
    picture.box("key", 226, 44, 268, 50, "the CA's key", "and everybody's, in state/")
    picture.arrow((196, 60), (94, 60), (94, 150), dashed=True)
    picture.arrow((360, 106), (360, 150), dashed=True)
    picture.arrow((524, 60), (624, 60), (624, 150), dashed=True)
    for x in (106, 372, 636):
        picture.text(x, 130, "kit", align="left")

    for x, width, title in ((14, 160, "a console"), (260, 200, "the server"), (542, 164, "a site")):
        picture.box("container", x, 150, width, 250)
        picture.text(x + width / 2, 176, title, kind="name")
    person = picture.box("key", 26, 190, 136, 50, "person's key", "signs jobs")
    server = picture.box("key", 274, 190, 172, 50, "server's key", "for one port")
    site = picture.box("key", 554, 190, 140, 50, "site's key", "dials out")
    picture.arrow(person.right, server.left, both=True, tls=True)
    picture.arrow(site.left, server.right, both=True, tls=True)
    for x in (217, 500):
        picture.text(x, 196, "mTLS", kind="name", colour="tls-ink")

    job = picture.box("bed", 26, 262, 136, 50, "job", "app and options")
    link = picture.box("flower", 274, 262, 172, 50, "SuperLink", "checks signatures")
    node = picture.box("key", 554, 262, 140, 50, "SuperNode", "its key in memory")
    picture.arrow(node.left, link.right, dashed=True)
    picture.text(500, 278, "signed")
    picture.box("flower", 274, 334, 172, 50, "ServerApp", "reads no key")
    picture.box("flower", 554, 334, 140, 50, "ClientApp", "reads no key")
    picture.arrow(job.bottom, (94, 444), (624, 444), (624, 400), dashed=True)
    picture.text(360, 434, "each site's part has the person's signature")
    picture.legend(466, ("key", "holds a private key", 90), ("flower", FLOWER, 290), ("bed", BED, 470))
    return picture


def life() -> Picture:
    """A site's life."""
    picture = Picture(
        "A site's life",
        "A site that is away registers. When a job starts, it takes part until the job ends. A site "
        "that registers while a job runs is late, and is let in unless it has refused that job or was"
        " removed from it. A site with a process that ends is started again, up to five times, and the "
        "sixth time the job fails. A site out of reach has the job's grace to come back. A site that "
        "is revoked or disabled is removed, until its name leaves the list or it is enabled again.",
        720,
        426,
    )
    picture.box("zone", 232, 14, 474, 398)
    picture.text(250, 42, "known to the server", align="left")
    away = picture.box("container", 14, 64, 120, 54, "away")
    out = picture.box("key", 14, 318, 120, 54, "removed")
    registered = picture.box("flare", 250, 64, 130, 54, "registered", "heartbeat: 10 s")
    late = picture.box("flare", 250, 170, 130, 54, "late", "job runs already")
    stays = picture.box("container", 250, 318, 130, 54, "stays out", "of this job")
    picture.box("bed", 490, 64, 200, 160, "in a job", "its SuperNode is a", "node of the run")
    picture.box("bed", 414, 318, 136, 54, "starts again", "up to 5 times")
    picture.box("bed", 562, 318, 134, 54, "out of reach", "900 s of grace")

    picture.arrow(away.right, registered.left)
    picture.text(183, 82, "registers")
    picture.arrow((380, 80), (490, 80))
    picture.text(435, 72, "job starts")
    picture.arrow((490, 104), (380, 104))
    picture.text(435, 124, "job ends")
    picture.arrow(registered.bottom, late.top)
    picture.arrow(late.right, (490, 197))
    picture.text(435, 189, "let in")
    picture.arrow(late.bottom, stays.top)
    picture.text(326, 276, "refused", align="left")
    picture.arrow((522, 224), (522, 318), both=True)
    picture.text(511, 276, "process ends", align="right")
    picture.arrow((664, 224), (664, 318), both=True)
    picture.text(653, 276, "line is cut", align="right")
    picture.text(482, 396, "6th: job fails")
    picture.text(629, 396, "then given up")
    picture.arrow((232, 345), out.right)
    picture.text(183, 316, "revoked", "or disabled")
    picture.arrow(out.top, away.bottom)
    picture.text(86, 214, "off the list,", "or enabled again", align="left")
    return picture


DIAGRAMS: dict[str, Callable[[], Picture]] = {
    "road.svg": road,
    "processes.svg": processes,
    "trust.svg": trust,
    "life.svg": life,
}
"""By file below `docs/`."""


def main() -> None:
    """Write them into the documentation of this checkout."""
    for name, draw in DIAGRAMS.items():
        (DOCS / name).write_text(draw().svg())


if __name__ == "__main__":
    main()
