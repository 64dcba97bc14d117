"""Undocumented behaviour of FLARE and Flower that Flowerbed relies on: one test for each.

Each test names the version it was read in. When one fails after an upgrade, look at the module it names.
"""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
import threading
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.server import server
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supernode import start_client_internal
from nvflare.apis.app_validation import AppValidationKey
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.job_def_manager import SimpleJobDefManager
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.signal import Signal
from nvflare.app_common.job_schedulers.job_scheduler import DefaultJobScheduler
from nvflare.app_opt.flower.defs import Constant as FlowerConstant
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.drivers.driver_manager import DriverManager
from nvflare.fuel.f3.drivers.grpc_driver import GRPC_DEFAULT_OPTIONS
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.fuel.f3.streaming.byte_streamer import TxTask
from nvflare.fuel.f3.streaming.stream_types import StreamFuture
from nvflare.job_config.api import FedJob
from nvflare.job_config.fed_job_config import FedJobConfig
from nvflare.private.defs import CellMessageHeaderKeys
from nvflare.private.fed.authenticator import validate_auth_headers
from nvflare.private.fed.client import fed_client_base
from nvflare.private.fed.client.client_executor import JobExecutor
from nvflare.private.fed.client.fed_client import FederatedClient
from nvflare.private.fed.server.admin import FedAdminServer
from nvflare.private.fed.server.client_manager import ClientManager
from nvflare.private.fed.server.fed_server import FederatedServer
from nvflare.private.fed.server.job_cmds import CLONED_META_KEYS
from nvflare.private.fed.server.job_runner import JobRunner
from nvflare.private.fed.server.server_engine import ServerEngine
from nvflare.private.fed.utils.app_authz import AppAuthzService
from nvflare.private.fed.utils.app_deployer import AppDeployer
from nvflare.recipe import SimEnv
from nvflare.recipe.spec import Recipe
from nvflare.tool.poc import poc_commands
from uvicorn.protocols.http.h11_impl import H11Protocol

from bridge.common.versions import Transport
from bridge.flare import flare_server, job_store
from bridge.fleet import wire
from bridge.flower import long_poll
from bridge.job import channel, ending
from bridge.server import controller
from bridge.server.controller import FlowerController
from bridge.site.connection import BoundedConnection
from bridge.site.executor import FlowerExecutor
from dev.benchmarks import clock, plain, processes
from provisioning import harden


def test_the_versions_are_the_ones_that_were_read() -> None:
    assert version("nvflare") == "2.9.0"
    assert version("flwr") == "1.42.0"


def test_wire_knows_every_fleet_call() -> None:
    paths = {path for method, path in PROTOBUF_REQUEST_TYPES if path.startswith(wire.PREFIX)}
    assert wire.PATHS[Transport.HTTP].keys() == paths


def test_a_confirmation_releases_the_pull_of_the_same_node() -> None:
    node = Node(node_id=1234567890123456789)
    confirm = ConfirmMessageReceivedRequest(node=node, run_id=5, message_object_id="abc").SerializeToString()
    pull = PullMessagesRequest(node=node).SerializeToString()

    def released(body: bytes) -> str | None:
        return wire._released_pull("key", wire.FleetCall(wire.PREFIX + wire.CONFIRM, (), body))

    assert released(confirm) == wire._key(wire.PULL, "key", pull)
    assert released(b"\xff\xff") is None


def test_holding_names_calls_of_the_runtime_fleet_and_control_apis() -> None:
    """flwr 1.41 `supercore/protobuf/translation.py`."""
    known = {path for method, path in PROTOBUF_REQUEST_TYPES if method == "POST"}
    assert {*long_poll.SUPERLINK_HOLDS, *long_poll.SUPERNODE_HOLDS, *long_poll.CHANGES} <= known
    exec_loop = inspect.getsource(import_module("flwr.supercore.superexec.run_superexec"))
    assert "time.sleep(task_poll_interval)" in exec_loop


def test_a_site_rests_between_two_questions_after_a_task_until_the_run_is_over() -> None:
    """nvflare 2.9.0 `private/fed/client`: what `executor._rest` goes by."""
    loop = inspect.getsource(import_module("nvflare.private.fed.client.client_runner"))
    assert "time.sleep(task_fetch_interval)" in loop and "self.run_abort_signal.trigger(True)" in loop
    assert "while not self.run_abort_signal.triggered" in loop
    assert "fl_ctx.set_prop(ReservedKey.RUN_ABORT_SIGNAL, self.run_abort_signal" in loop
    fetch = inspect.getsource(FederatedClient.fetch_task)
    assert fetch.index("self.pull_task(") < fetch.index("fire_event(EventType.AFTER_PULL_TASK, self.handlers")
    signal, context = Signal(), FLContext()
    context.set_prop(ReservedKey.RUN_ABORT_SIGNAL, signal, private=True)
    executor = FlowerExecutor()
    rests = threading.Thread(target=executor.handle_event, args=(EventType.AFTER_PULL_TASK, context))
    rests.start()
    rests.join(0.5)
    assert rests.is_alive()
    signal.trigger(True)
    rests.join(1)
    assert not rests.is_alive()
    # The simulator tells nobody: there a question has to find out, as soon as the relay knows of the end.
    assert "topic != ReservedTopic.END_RUN" in inspect.getsource(
        import_module("nvflare.private.fed.simulator.simulator_server")
    )
    signal.reset()
    executor._ending = Mock()
    began = time.monotonic()
    executor.handle_event(EventType.AFTER_PULL_TASK, context)
    assert time.monotonic() - began < 1


def test_flares_scheduler_asks_the_store_for_jobs_that_were_not_scheduled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvflare 2.9.0 `apis/impl/job_def_manager.py`: what `JobStore.list_objects` goes by."""
    monkeypatch.setattr(job_store, "WAIT", 10.0)
    store = job_store.JobStore("/")
    manager = SimpleJobDefManager(uri_root=str(tmp_path / "jobs"))
    monkeypatch.setattr(manager, "_get_job_store", lambda fl_ctx: store)
    found: list[object] = []
    asks = threading.Thread(target=lambda: found.extend(manager.get_jobs_to_schedule(FLContext())))
    asks.start()
    asks.join(0.3)
    assert asks.is_alive(), "it has not waited"
    (tmp_path / "job.zip").write_bytes(b"zip")
    manager.create({JobMetaKey.JOB_NAME.value: "a"}, str(tmp_path / "job.zip"), FLContext())
    asks.join(2)
    assert len(found) == 1
    assert "job_manager.get_jobs_to_schedule(fl_ctx)" in inspect.getsource(JobRunner.run)
    # And nobody else has to wait.
    began = time.monotonic()
    manager.get_all_jobs(FLContext())
    assert time.monotonic() - began < 1


def test_heartbeat_a_node_is_given_up_after_twice_its_own_interval() -> None:
    state = import_module("flwr.server.superlink.linkstate.in_memory_linkstate").InMemoryLinkState
    for method in (state.acknowledge_node_heartbeat, state.activate_node):
        assert "HEARTBEAT_PATIENCE * heartbeat_interval" in inspect.getsource(method)


def test_channel_cells_stream_blobs_and_tell_when_they_are_whole() -> None:
    sends = inspect.signature(Cell.send_blob).parameters
    assert list(sends)[1:] == ["channel", "topic", "target", "message", "secure", "optional", "reliable"]
    assert list(inspect.signature(Cell.register_blob_cb).parameters)[1:4] == ["channel", "topic", "blob_cb"]
    told: list[object] = []
    future = StreamFuture(1, {"header": 1})
    future.add_done_callback(told.append, "whole")
    future.set_result(b"")
    assert told == ["whole"] and future.error is None and future.headers == {"header": 1}


class _SignsFor:
    """A verifier that takes each client's name for its token."""

    def verify(self, client_name: str, token: str, signature: str) -> bool:
        return client_name == token == signature


@pytest.mark.parametrize(
    ("client", "token", "origin", "passes"),
    [
        ("site-1", "site-1", "site-1.0b1c", True),
        ("site-2", "site-1", "site-1.0b1c", False),
        ("site-1", "site-1", "site-2.0b1c", False),
        # Why `channel.site_of` does not go by the address: all of site-1's cells are its own to name.
        ("site-1", "site-1", "site-1.site-2.0b1c", True),
    ],
)
def test_flare_ties_a_client_name_to_its_token_and_an_address_only_to_its_beginning(
    client: str, token: str, origin: str, passes: bool
) -> None:
    message = Message(
        {
            CellMessageHeaderKeys.CLIENT_NAME: client,
            CellMessageHeaderKeys.TOKEN: token,
            CellMessageHeaderKeys.TOKEN_SIGNATURE: token,
            MessageHeaderKey.ORIGIN: origin,
            MessageHeaderKey.DESTINATION: "server.0b1c",
        }
    )
    refusal = validate_auth_headers(
        message, _SignsFor(), logging.getLogger("test"), lambda name, token: name, "server"
    )
    assert (refusal is None) is passes
    assert channel.site_of(message) == client


def test_in_the_simulator_the_jobs_cell_is_beside_the_servers() -> None:
    """nvflare 2.9.0 `private/fed/app/simulator/simulator_runner.py` and `server/fed_server.py`."""
    simulator = inspect.getsource(import_module("nvflare.private.fed.app.simulator.simulator_runner"))
    assert "self.server.job_cell = self.server.create_job_cell(" in simulator
    assert ".job_cell =" not in inspect.getsource(FederatedServer)
    engine = SimpleNamespace(get_cell=lambda: "server", server=SimpleNamespace(job_cell="job"))
    context = SimpleNamespace(get_engine=lambda: engine)
    assert channel.cell_of(context) == "job"
    del engine.server.job_cell
    assert channel.cell_of(context) == "server"


def test_a_recipe_sees_the_environment_before_the_job_goes_there() -> None:
    """nvflare 2.9.0 `recipe`: what `bridge/flare/recipe.py` and `FlowerJob.simulator_run` hook into."""
    run = inspect.getsource(Recipe.run)
    assert run.index("self.process_env(env)") < run.index("env.deploy(self._job)")
    assert "job.simulator_run(" in inspect.getsource(SimEnv.deploy)
    assert "self.clients = [" in inspect.getsource(FedJob.simulator_run)
    # The processes that are started inherit this one's environment.
    assert "os.environ.copy()" in inspect.getsource(FedJobConfig.simulator_run)
    assert "os.environ.copy()" in inspect.getsource(poc_commands._env_with_cli_python_path)


def test_channel_releases_flares_copy_of_a_message() -> None:
    """`fuel/f3/streaming/byte_streamer.py` and `stream_types.py`: which object refers to which."""
    assert "StreamFuture(self.sid, task_handle=self)" in inspect.getsource(TxTask)
    future = StreamFuture(1, task_handle=object())
    called: list[str] = []
    future.add_done_callback(channel.release_buffers, future)
    future.add_done_callback(called.append, "the other callback")
    future.set_result(b"body")
    assert called == ["the other callback"]
    assert future.task_handle is None and future.done_callbacks == [] and future.value == b"body"


def test_connection_overrides_what_uvicorn_calls() -> None:
    """`bridge/site/connection.py`, read in uvicorn 0.49.0: hooks, and undocumented attributes."""
    own = {name for name in vars(BoundedConnection) if not name.startswith("_")}
    assert own == {
        "connection_made",
        "connection_lost",
        "data_received",
        "on_response_complete",
        "send_400_response",
        "timeout_keep_alive_handler",
    }
    assert own <= vars(H11Protocol).keys()
    source = inspect.getsource(H11Protocol)
    for name in ("connections", "conn", "cycle", "loop", "scope", "timeout_keep_alive"):
        assert f"self.{name}" in source
    assert "on_response=self.on_response_complete" in source
    assert "self.timeout_keep_alive, self.timeout_keep_alive_handler" in source


def test_parent_finds_what_it_uses_of_flares_server() -> None:
    """nvflare 2.9.0 `private/fed/server`: `bridge/flare/flare_server.py` says what for."""
    source = inspect.getsource(FederatedServer)
    for name in (
        "client_heartbeat",
        "process_job_failure",
        "register_client",
        "_resolve_missing_client_outcome",
    ):
        assert f"def {name}(self" in source
        assert f"self.{name}" in source
    assert list(inspect.signature(FederatedServer._resolve_missing_client_outcome).parameters)[1:] == [
        "client",
        "job_id",
        "reason",
    ]
    heartbeat = inspect.getsource(FederatedServer.client_heartbeat)
    assert "CellMessageHeaderKeys.TOKEN" in heartbeat and "CellMessageHeaderKeys.CLIENT_NAME" in heartbeat
    assert "CellMessageHeaderKeys.JOB_IDS" in inspect.getsource(FederatedServer._sync_client_jobs)
    # People log in by the same message as sites register.
    assert "self.client_manager.authenticate(request, fl_ctx)" in inspect.getsource(
        FederatedServer.register_client
    )
    assert callable(ClientManager.is_client_disabled)
    for owner, name in ((ClientManager, "remove_client"), (FederatedServer, "remove_client_data")):
        assert callable(getattr(owner, name))
    assert callable(FedAdminServer.client_dead)
    runner = JobRunner("")
    assert runner.running_jobs == {} and runner._pending_client_outcomes == {}
    with runner.lock:
        pass
    for name in (
        "is_client_outcome_pending",
        "resolve_client_outcome",
        "fail_run",
        "_save_workspace",
        "_make_deploy_message",
    ):
        assert callable(getattr(runner, name))
    for name in (
        "get_client_from_name",
        "check_client_resources",
        "start_client_job",
        "send_app_command",
        "sync_clients_from_main_process",
    ):
        assert callable(getattr(ServerEngine, name))
    assert callable(FedAdminServer.send_requests_and_get_reply_dict)
    engine = inspect.getsource(ServerEngine)
    assert "self.run_processes[job.job_id] = {" in engine and "self.exception_run_processes" in engine
    # A handler that is registered again takes the place of the first.
    assert "self.req_reg.set(" in inspect.getsource(CoreCell.register_request_cb)


def test_parent_reads_who_refused_a_job_where_flare_writes_it() -> None:
    """nvflare 2.9.0 `private/fed/server/job_runner.py`, `private/fed/utils/app_authz.py`."""
    source = inspect.getsource(JobRunner._deploy_job)
    for line in ("server: {err}", "server: OK", "{client_name}: {reply.body}", "{client_name}: OK"):
        assert f'deploy_detail.append(f"{line}")' in source or f'deploy_detail.append("{line}")' in source
    run = inspect.getsource(JobRunner.run)
    # FLARE writes this before the status, and before the event at which the keeper looks for it.
    started, failed = run.index("self._start_run("), run.index("RunStatus.FAILED_TO_RUN")
    detail = "JobMetaKey.JOB_DEPLOY_DETAIL.value: deploy_detail"
    assert run.index(detail) < started
    assert failed < run.index(detail, failed) < run.index("EventType.JOB_ABORTED", failed)
    assert "EventType.JOB_STARTED" in inspect.getsource(JobRunner._start_run)
    for words in flare_server.DEPLOY_ERRORS:
        assert f'"{words}"' in inspect.getsource(AppAuthzService.authorize_app_info)
    # When this fails, `Parent.clone` need not add it any more.
    assert FlowerConstant.FLOWER_PREDEPLOYED not in CLONED_META_KEYS


def test_flare_asks_for_custom_code_only_in_a_sites_own_part_of_a_job() -> None:
    """nvflare 2.9.0 `private/fed/utils/app_deployer.py`: why there is `bridge/flare/policy.py`."""
    source = inspect.getsource(AppDeployer.deploy)
    assert "job_meta.pop(AppValidationKey.BYOC, None)" in source
    assert "derive_local_app_info(app_info, job_meta, workspace.site_name)" in source
    message = inspect.getsource(JobRunner._make_deploy_message)
    assert "AdminCommandNames.SUBMIT_JOB" in message and "set_message_security_data(" in message
    assert AppValidationKey.BYOC in CLONED_META_KEYS


def test_a_job_process_that_was_killed_is_reported_as_an_exception() -> None:
    """nvflare 2.9.0 `client_executor.py`: what `site_messages.DIED` goes by."""
    source = inspect.getsource(JobExecutor._wait_child_process_finish)
    assert "return_code = ProcessExitCode.EXCEPTION" in source
    assert "return_code = ProcessExitCode.INFRASTRUCTURE_ERROR" in source
    assert "CellChannelTopic.REPORT_JOB_FAILURE" in source


def test_a_blocked_job_stays_in_the_queue() -> None:
    """nvflare 2.9.0 `job_scheduler.py`: what `keeper` goes by when a job is submitted again."""
    source = inspect.getsource(DefaultJobScheduler._try_job)
    event = source.index("EventType.BEFORE_CHECK_CLIENT_RESOURCES")
    block = source.index("FLContextKey.JOB_BLOCK_REASON")
    assert event < block < source.index("SCHEDULE_RESULT_NO_RESOURCE, None, block_reason")
    assert "JobMetaKey.SCHEDULE_COUNT" in inspect.getsource(DefaultJobScheduler._do_schedule_job)


def test_teardown_shortens_the_last_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    run = inspect.signature(MainProcessMonitor.run).parameters
    assert run["shutdown_grace_time"].default == 3
    monkeypatch.setattr(MainProcessMonitor, "_start_shutdown", MainProcessMonitor._start_shutdown)
    monkeypatch.setattr(MainProcessMonitor, "_cleanup_cbs", [(lambda: None, (), {})])
    ending.shorten_shutdown_grace()
    began = time.monotonic()
    MainProcessMonitor._start_shutdown(3, 3)
    assert time.monotonic() - began < 1.5


def test_kits_keep_the_grpc_options_that_naming_any_replaces() -> None:
    assert set(GRPC_DEFAULT_OPTIONS) <= set(harden.GRPC_OPTIONS.items())


def test_teardown_flares_communicator_imports_torch_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    source = inspect.getsource(WFCommServer._cleanup_inflight_tensor_downloads)
    assert f"from {controller.TENSORS} import" in source
    # FLARE hands over its own.
    given = FlowerController()
    given.set_communicator(WFCommServer())
    assert given.communicator.controller is given
    asked: list[str] = []
    # Here there may be no torch: what counts is that it is not looked for.
    looks = SimpleNamespace(find_spec=lambda name, path, target=None: asked.append(name))
    monkeypatch.setattr(sys, "meta_path", [looks, *sys.meta_path])
    given.communicator.finalize_run(FLContext())
    assert not [name for name in asked if name.startswith(controller.TENSORS.rpartition(".")[0])]


def test_a_variable_says_how_long_a_job_waits_for_its_sites() -> None:
    """nvflare 2.9.0 `private/fed/server/job_runner.py`: `images/Dockerfile` sets it."""
    variable = "NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT"
    assert f"{variable}=15 " in (Path(__file__).parents[2] / "images" / "Dockerfile").read_text()
    said = "from nvflare.private.fed.server.job_runner import JobRunner as R"
    command = [sys.executable, "-c", f"{said}; print(R('').client_outcome_wait_timeout)"]
    for environment, seconds in (({}, "900.0"), ({variable: "15"}, "15.0")):
        run = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == seconds


def test_flower_logs_the_lines_that_the_benchmark_times() -> None:
    """flwr 1.41.0 `server/server.py`. `test_bench.py` times the lines of `serverapp/strategy`."""
    source = inspect.getsource(server)
    begin, end = 'log(INFO, "[ROUND %s]", current_round)', 'log(INFO, "[SUMMARY]")'
    assert source.count(begin) == source.count(end) == 1
    assert clock.BEGIN.match("[ROUND 3]") and clock.END.match("[SUMMARY]")


def test_a_supernode_and_a_site_log_that_they_are_registered() -> None:
    """flwr 1.41.0 `supernode/start_client_internal.py`, nvflare 2.9.0 `private/fed/client/`. The benchmark
    waits for these lines, and the health check for the site's."""
    assert f'log(INFO, "{plain.REGISTERED}%s", node_id)' in inspect.getsource(start_client_internal)
    assert processes.REGISTERED in inspect.getsource(fed_client_base)


def test_drivers_change_what_flare_uses() -> None:
    """nvflare 2.9.0 `fuel/f3`: `bridge/flare/drivers/flowerbed_drivers.py` says what for."""
    source = {
        module: inspect.getsource(import_module(f"nvflare.fuel.f3.{module}"))
        for module in ("communicator", "drivers.socket_conn", "drivers.tcp_driver", "drivers.aio_http_driver")
    }
    assert "get_comm_driver_path(None)" in source["communicator"]
    in_image = Path(harden.DRIVERS).relative_to("/opt/flowerbed") / "flowerbed_drivers.py"
    assert (Path(__file__).parents[2] / in_image).is_file()
    connection = source["drivers.socket_conn"]
    assert "get_streaming_send_timeout(30.0)" in connection
    assert "self._send_with_timeout(frame, self.send_timeout)" in connection
    # Else the listener would not shake hands in `accept`, and need not be kept from it.
    assert "self.ssl_context.wrap_socket(self.socket, server_side=True)" in source["drivers.tcp_driver"]
    assert source["drivers.aio_http_driver"].count("await self._connection_handler(") == 2
    # `offers_door.HttpListening` does the same, and serves more paths.
    assert 'add_get(f"/{WS_PATH}", self._websocket_handler)' in source["drivers.aio_http_driver"]
    # The certificate has to be for the name that was dialled.
    assert "net_utils.get_ssl_context(self.connector.params, False)" in source["drivers.aio_http_driver"]
    # When this fails, a driver can be had by its scheme, and none needs to be replaced.
    assert "is already registered, ignored" in inspect.getsource(DriverManager.register)


def test_points_come_from_flares_relay_and_go_to_flares_receivers() -> None:
    """nvflare 2.9.0: what `bridge/job/metrics_relay.py` and `trackers.py` take for granted."""
    relay = inspect.getsource(import_module("nvflare.app_common.widgets.metric_relay"))
    # The point is an event at the site, and the app's writer has its answer when all who hear it are done.
    assert "send_analytic_dxo(self, dxo, fl_ctx, self._event_type, fire_fed_event=self._fed_event)" in relay
    assert "get_app_config_dir(fl_ctx.get_job_id()), self._bootstrap_file_name)" in relay
    # As the tracker does.
    posting = inspect.getsource(import_module("nvflare.widgets.fed_event"))
    assert "request.set_header(FedEventHeader.DIRECTION, " in posting
    assert "self.engine.fire_event(event_type=event_type, fl_ctx=fl_ctx)" in posting
    receiver = inspect.getsource(import_module("nvflare.app_common.widgets.streaming"))
    assert "with self._save_lock:" in receiver and "get_peer_prop(ReservedKey.IDENTITY_NAME" in receiver
    # (Neither can be imported here: they need packages that the images have.)
    folder = Path(str(import_module("nvflare.app_opt.tracking").__path__[0]))
    tensorboard = (folder / "tb" / "tb_receiver.py").read_text()
    assert "self.writers_table[record_origin] = writer" in tensorboard and "self.root_log_dir" in tensorboard
    mlflow = (folder / "mlflow" / "mlflow_receiver.py").read_text()
    assert "site_buffer = self.buffer[record_origin]" in mlflow
    assert "def flush_buffers(self, record_origin)" in mlflow
