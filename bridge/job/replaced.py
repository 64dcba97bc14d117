"""List every name inside FLARE that Flowerbed replaces.

All else goes by FLARE's seams: components, subclasses that a configuration names, handlers of messages,
events, variables.

Recovery and security need these. Only `SHUTDOWN` is for speed. Each is replaced in the process that needs it,
and in no file. A FLARE that lacks one is an error, because a defence must not vanish silently. The constants'
docstrings name the test of each.
"""

from __future__ import annotations

from bridge.common.replaced import Name, replace

__all__ = ["ALL", "replace"]

CONFIG_WALK = Name(
    "nvflare.fuel.utils.config_factory",
    "os",
    "2.9.0",
    "It looks for its configuration in the whole workspace, where an app may write (`kit_search.py`).",
)
"""`test_kit_search.py`."""

FILE_WALK = Name("nvflare.fuel.utils.config_service", "os", "2.9.0", CONFIG_WALK.why)
"""`test_kit_search.py`."""

JOB_VALIDATOR = Name(
    "nvflare.private.fed.server.job_cmds",
    "JobMetaValidator",
    "2.9.0",
    "Its event for a submitted job shows the job's meta, but not its files (`submissions.py`).",
)
"""`test_submissions.py`."""

APP_COMMAND = Name(
    "nvflare.private.fed.server.server_engine",
    "ServerEngine.send_app_command",
    "2.9.0",
    "It holds the engine's lock until the job's process has answered, so no call may wait (`news.py`).",
)
"""`test_news.py`."""

LIVE_LOG = Name(
    "nvflare.private.fed.server.job_cmds",
    "JobCommandModule._read_live_client_job_log",
    "2.9.0",
    "It shows `NAME/log.txt` in a job's folder to everyone who may read the job's log, under any name, and "
    "follows links, which a ServerApp may have made there (`log_receiver.py`).",
)
"""`test_disk.py`."""

MISSING_OUTCOME = Name(
    "nvflare.private.fed.server.fed_server",
    "FederatedServer._resolve_missing_client_outcome",
    "2.9.0",
    "A job that has succeeded fails if a site then restarts before it has reported (`flare_server.py`).",
)
"""`test_flare_server.py`."""

AUDIT_FILE = Name(
    "nvflare.fuel.sec.audit",
    "Auditor.audit_file",
    "2.9.0",
    "The audit log is unbounded, and each poll of a waiting console adds a line (`audit.py`).",
)
"""`test_disk.py`."""

DRIVERS = Name(
    "nvflare.fuel.f3.communicator",
    "driver_mgr.drivers",
    "2.9.0",
    "It accepts more drivers, but no second one for a scheme (`drivers/flowerbed_drivers.py`).",
)
"""`test_drivers.py`, `test_revocation.py`."""

TRUST = Name(
    "nvflare.fuel.f3.drivers.net_utils",
    "ssl",
    "2.9.0",
    "A connection over TCP or HTTP trusts every public authority (`drivers/flowerbed_drivers.py`).",
)
"""`test_drivers.py`."""

CA_STORE = Name(
    "nvflare.lighter.utils",
    "Store",
    "2.9.0",
    "It trusts the first CA of `rootCA.pem` only, and the one that was there at the start. While the CA is "
    "replaced, two are trusted (`certificates.py`).",
)
"""`test_renewed.py`."""

OWN_IDENTITY = Name(
    "nvflare.private.fed.server.cred_keeper",
    "IdentityAsserter",
    "2.9.0",
    "The server shows sites the certificate that it had at the start, past its last day (`certificates.py`).",
)
"""`test_renewed.py`."""

GRPC_LISTENER = Name(
    "nvflare.fuel.f3.drivers.grpc_driver",
    "get_grpc_server_credentials",
    "2.9.0",
    "A listener keeps the certificate that it had at the start (`certificates.py`).",
)
"""`test_renewed.py`."""

HANDSHAKE = Name(
    "nvflare.fuel.f3.sfm.conn_manager",
    "ConnManager.update_endpoint",
    "2.9.0",
    "A site that connects again while its old connection ends may count as disconnected from then on "
    "(`endpoints.py`).",
)
"""`test_endpoints.py`."""

CONNECTION_END = Name(
    "nvflare.fuel.f3.sfm.conn_manager", "ConnManager.close_connection", "2.9.0", HANDSHAKE.why
)
"""`test_endpoints.py`."""

SHUTDOWN = Name(
    "nvflare.fuel.f3.mpm",
    "MainProcessMonitor._start_shutdown",
    "2.9.0",
    "A job's process sleeps 3 s before its last clean-up, and the job's end waits for it (`ending.py`). "
    "Without this each job ends 2.8 s later.",
)
"""`test_internals.py`."""

ALL = (
    CONFIG_WALK,
    FILE_WALK,
    JOB_VALIDATOR,
    APP_COMMAND,
    LIVE_LOG,
    MISSING_OUTCOME,
    AUDIT_FILE,
    DRIVERS,
    TRUST,
    CA_STORE,
    OWN_IDENTITY,
    GRPC_LISTENER,
    HANDSHAKE,
    CONNECTION_END,
    SHUTDOWN,
)
