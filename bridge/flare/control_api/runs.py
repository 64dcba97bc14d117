"""Jobs, sites and the federation as Flower's messages.

Every job is a run, also one that `./flowerbed submit` has handed in. Every registered site is a SuperNode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID
from flwr.proto.federation_pb2 import Account, Federation, Member
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import Run, RunStatus

from bridge.common.run_ids import run_id
from bridge.common.text import shown
from bridge.flare.console.waiting import SILENT
from bridge.flare.control_api import access

STATUSES: Mapping[str, tuple[str, str]] = {
    "SUBMITTED": ("pending", ""),
    "APPROVED": ("pending", ""),
    "DISPATCHED": ("starting", ""),
    "RUNNING": ("running", ""),
    "FINISHED:COMPLETED": ("finished", "completed"),
    "FINISHED:ABORTED": ("finished", "stopped"),
}
"""Flower's status and sub-status (flwr 1.42 `common/constant.py`) of a job, by FLARE's. Others failed."""


def federation_id() -> str:
    """Return the federation's id, in Flower's form."""
    return f"@flowerbed/{access.project()}"


def run_of(job: Mapping[str, Any]) -> Run:
    """Return a job as a run. The argument is an entry of the console's verb `runs`."""
    status = str(job["status"])
    name, detail = STATUSES.get(status, ("finished", "failed"))
    app = job.get("app") or {}
    submitter = str(job.get("submitter") or "")
    return Run(
        run_id=run_id(str(job["job_id"])),
        fab_id=str(app.get("id") or job.get("name") or "unknown"),
        fab_version=str(app.get("version") or ""),
        fab_hash=str(app.get("hash") or ""),
        pending_at=iso(job.get("submitted")),
        starting_at=iso(job.get("started")),
        running_at=iso(job.get("started") if name in ("running", "finished") else None),
        finished_at=iso(job.get("ended")),
        status=RunStatus(status=name, sub_status=detail, details=shown(str(job.get("reason") or ""))),
        flwr_aid=submitter,
        federation=federation_id(),
        account_name=submitter,
    )


def node_of(site: Mapping[str, Any], now: float) -> NodeInfo:
    """Return a site as a SuperNode. The argument is an entry of `sites` of the console's verb `status`.

    FLARE tells when it last heard of a site, and no time before that.
    """
    silence = float(site["last_seen_seconds"])
    online, seen = silence <= SILENT, iso(now - silence)
    return NodeInfo(
        node_id=node_id(str(site["name"])),
        name=str(site["name"]),
        owner_name=str(site["name"]),
        status="online" if online else "offline",
        registered_at=seen,
        last_activated_at=seen,
        last_deactivated_at=None if online else seen,
    )


def node_id(site: str) -> int:
    """Return the number under which a site is listed. In each job its SuperNode has another."""
    return int.from_bytes(hashlib.sha256(f"{access.project()} {site}".encode()).digest()[:8], "big") >> 1


def federation(nodes: Iterable[NodeInfo] = (), runs: Iterable[Run] = ()) -> Federation:
    """Return the federation, with its SuperNodes and runs as far as they are given."""
    account = Account(id=access.user(), name=access.user())
    role = _role() or "member"
    return Federation(
        name=federation_id(),
        description="Flower apps on NVIDIA FLARE, by Flowerbed",
        members=[Member(account=account, role=role)],
        nodes=list(nodes),
        runs=list(runs),
    )


def _role() -> str:
    """The person's role in FLARE, from the certificate. Empty: the certificate has none."""
    certificate = x509.load_pem_x509_certificate((access.WORKSPACE / "startup" / "client.crt").read_bytes())
    found = certificate.subject.get_attributes_for_oid(NameOID.UNSTRUCTURED_NAME)
    return str(found[0].value) if found else ""


def iso(moment: float | None) -> str:
    """Return a Unix time as ISO 8601. Empty: it is not known."""
    return "" if moment is None else datetime.fromtimestamp(moment, UTC).isoformat()
