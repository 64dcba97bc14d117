"""The keys of project.yml that Flowerbed reads: its own, and those of FLARE's that it asks more of.

`checks.py` takes from here who may have a key, and `docs/reference/project.md` the rest. What a site gives to
apps is in `bridge/common/site_settings.py`.
"""

from __future__ import annotations

from bridge.common import site_settings
from bridge.common.project_key import ADMIN, RELAY, SERVER, SITE, Key

CUSTOM_CODE = "custom_code"

DEFAULT_PORT = "default_port"
"""The port that participants on other machines dial."""

SANDBOX, SANDBOXES = "sandbox", ("required", "best-effort", "off")
"""How strictly a server or site confines processes that run an app's code (`bridge/job/settings.py`)."""

EGRESS, EGRESSES = "egress", ("server", "any")
"""Where an app may connect to from a server or site."""

ELSEWHERE, ALLOWED_APPS, REVOKED = "elsewhere", "allowed_apps", "revoked"

OWN_KEY = "own_key"
"""Whether a site makes its key itself, and the centre never has it."""

LIMITS = "limits"
SIZES, NUMBERS = ("job_files", "log", "audit"), ("kept_jobs",)
"""What it may hold: sizes such as 20GB, and numbers."""

SCHEMES = ("grpc", "tcp", "http")
"""What connections speak, each in mutual TLS. FLARE takes any other word for a driver that somebody brings,
and fails when the first container starts."""

ROLES = ("project_admin", "org_admin", "lead", "member")

PORT = 8002
"""The server's, where project.yml names none."""

PROJECT = (
    Key("api_version", "3", "FLARE's format of this file."),
    Key(
        "name",
        "a-z, 0-9, `-` and `_`, at most 63 characters",
        "The project's name. It is also the name of the Compose project, and the first part of every image's "
        "name.",
    ),
    Key("description", "text", "For people."),
    Key(
        "connection_security",
        "`mtls`",
        "Every connection is mutual TLS. Keep the line: without it, FLARE leaves the choice open for relays.",
    ),
    Key("participants", "a list", "Who takes part. See [participants](#participants)."),
    Key(
        REVOKED,
        "a list of names",
        "Sites, relays and people that [stay "
        "out](../how-to/remove-a-site.md). A name cannot be here and among "
        "the participants. Provisioning writes the names to `workspace/PROJECT/policy/revoked.json`, which "
        "the server and relays read again when it changes. While that file cannot be read, they accept no "
        "new connection.",
        default="none",
    ),
    Key("builders", "a list", "What makes the kits. See [builders](#builders)."),
    Key("include", "a path", "Another file with further keys, beside this one."),
)
"""At the top of the file."""

_ALL = (SERVER, SITE, RELAY, ADMIN)

PARTICIPANT = (
    Key("name", "text", "One participant's only. See [names](#names).", of=_ALL),
    Key("type", "`server`, `client`, `relay` or `admin`", "`client` is a site.", of=_ALL),
    Key("org", "letters, digits and `_`", "The organization, for FLARE's policy.", of=_ALL),
    Key(
        "fed_learn_port",
        "1 to 65535",
        "The one port on which the server listens.",
        default=str(PORT),
        of=(SERVER,),
    ),
    Key("admin_port", "the same port", "Leave it out: only one port is published.", of=(SERVER,)),
    Key(
        "host_names",
        "a list of names",
        "The names in the certificate, by which the server may be dialled. Its own name, `localhost`, "
        "`127.0.0.1` and every host in a `connect_to` are added.",
        of=(SERVER,),
    ),
    Key(
        "default_host",
        "a name",
        "The name that everybody's kit dials. [It may change](../how-to/move-the-server.md). For an address, "
        "[use `connect_to`](../how-to/site-elsewhere.md).",
        default="the participant's own name",
        of=(SERVER, RELAY),
    ),
    Key(
        DEFAULT_PORT,
        "1 to 65535",
        "The port that kits of participants on other machines dial, such as 443. The container listens on "
        "its own port all the same, and is [published](settings.md#yours) on this one.",
        default="the port on which it listens",
        of=(SERVER, RELAY),
    ),
    Key(
        CUSTOM_CODE,
        "true or false",
        "With `false`, [jobs that bring "
        "code](../how-to/pre-deployed-apps.md#forbid-custom-code-at-a-site) are refused here.",
        default="true",
        of=(SERVER, SITE),
    ),
    Key(
        SANDBOX,
        "`best-effort`, `required` or `off`",
        "How apps are [confined](../architecture/what-may-an-app-do.md). `best-effort` confines as far as "
        "the kernel can, and `off` not at all. `required` refuses a job where the kernel cannot confine "
        "files (Linux 5.13), TCP ports (6.7), signals (6.12) and system calls (seccomp).",
        default="best-effort",
        of=(SERVER, SITE),
    ),
    Key(
        EGRESS,
        "`server` or `any`",
        "Where apps may connect to. `server`: to their own job. `any`: also to ports 1 to "
        f"{site_settings.LAST_PORT} of other machines, but to no other site. See "
        "[what a container reaches](#what-a-container-reaches).",
        default="server",
        of=(SERVER, SITE),
    ),
    Key(
        LIMITS,
        "`job_files`, `log`, `audit`, `kept_jobs`",
        "How much jobs may put on the disk. See [limits](#limits).",
        of=(SERVER, SITE),
    ),
    Key(
        ALLOWED_APPS,
        "a list of SHA-256 hashes",
        "The [deployed apps](../how-to/pre-deployed-apps.md#list-the-apps-that-a-site-runs) that the "
        "site runs, by the hashes that `./flowerbed hash` prints.",
        default="all",
        of=(SITE,),
    ),
    Key(
        "connect_to",
        "a relay's name, or `{name: NAME, host: HOST, port: PORT}`",
        "What the site dials, as in FLARE.",
        default="the server",
        of=(SITE,),
    ),
    Key(
        "listening_host",
        "`{port: PORT}`",
        "Where the relay listens. The port is fixed. It is published if another machine connects to it. "
        "`scheme` may be `grpc`, `tcp` or `http`. `default_host` "
        "and `connection_security` become the relay's name and `mtls` where they are not given.",
        of=(RELAY,),
    ),
    Key(
        ELSEWHERE,
        "true or false",
        "With `true` the container runs [on another "
        "machine](../how-to/site-elsewhere.md), so `up` does not start it here.",
        default="false",
        of=(SITE, RELAY, ADMIN),
    ),
    Key(
        OWN_KEY,
        "true or false",
        "With `true` the site, on another machine, [makes its key](../how-to/own-key.md) there. The key "
        "never leaves it.",
        default="false",
        of=(SITE,),
    ),
    Key(
        "role",
        "`project_admin`, `lead`, `org_admin` or `member`",
        "[Who may do what](../how-to/submit-by-console.md#who-may).",
        of=(ADMIN,),
    ),
)
"""Of each item of `participants:`. What a site gives to apps is not among them."""

LIMIT = (
    Key(
        "job_files",
        "a size",
        "All files of one running job here. At the server they include [what its app "
        "keeps](../how-to/keep-files.md). A job that has more ends with the reason. "
        "At a site its part of the job ends. The files are counted every 5 s, each file or folder as 4 KB "
        "at least.",
        default="20GB",
    ),
    Key(
        "log",
        "a size",
        "Each log that a site streams to the server for one job. The rest is dropped, and a line says so. "
        "For the server.",
        default="64MB",
    ),
    Key(
        "audit",
        "a size",
        "FLARE's audit log: the file, and one older file `audit.log.1`, together.",
        default="64MB",
    ),
    Key(
        "kept_jobs",
        "a whole number from 1",
        "Folders of jobs that have ended. Older ones are removed. Results are in the server's job store, and "
        "stay. At the server it also counts the folders that outlive jobs and that no job uses.",
        default="50",
    ),
)
"""Of `limits:`."""

BUILDER = (
    Key(
        "scheme",
        "`grpc`, `tcp` or `http`",
        "`StaticFileBuilder`: the protocol of all connections, each in mutual TLS. "
        "[Why tcp](../performance/2026-11.md#one-message-through-the-relay).",
        default="http, FLARE's own. The file that comes with Flowerbed says tcp",
    ),
    Key(
        "max_jobs",
        "a whole number from 1",
        "`HardenBuilder`: how many jobs run at once. Others wait.",
        default="3. FLARE's own is 4",
    ),
    Key(
        "root_valid_days",
        "a number of days",
        "`CertificateBuilder`: the CA's life, fixed when it is made. The file that comes with Flowerbed says "
        "3650.",
    ),
    Key(
        "valid_days",
        "a number of days",
        "`CertificateBuilder`: the life of everybody else's certificates. "
        "[They are renewed](../how-to/renew-certificates.md) at half of it.",
        default="360",
    ),
)
"""Arguments of the builders, below `args:` of one."""

OURS = {
    key.name: key
    for key in (*PARTICIPANT, *site_settings.TABLE.values())
    if key.name in (CUSTOM_CODE, SANDBOX, EGRESS, ALLOWED_APPS, LIMITS, ELSEWHERE, OWN_KEY, DEFAULT_PORT)
    or key.check is not None
}
"""Flowerbed's own keys of a participant."""
