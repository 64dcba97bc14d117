"""Open a stream over gRPC as FLARE does, to learn whether the server keeps it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from bridge.preflight.kit import Kit
from bridge.preflight.reach import ANSWER_WITHIN, Way

STREAM = "/streamer.Streamer/Stream"
"""FLARE's method over gRPC (nvflare 2.9.0 `fuel/f3/drivers/grpc/streamer_pb2_grpc.py`)."""


def is_closed(line: Way, kit: Kit, within: float) -> bool:
    """Return whether the server ends a new stream within some seconds, as for a removed participant.

    Raises:
        OSError: there is no stream.
    """
    import grpc  # Imported here, because only this scheme needs it, and it takes a while.

    authorities, key, certificate = (
        Path(kit.files[what]).read_bytes() for what in ("authorities", "key", "certificate")
    )
    credentials = grpc.ssl_channel_credentials(authorities, key, certificate)
    # Without the option, gRPC would take a proxy from its variables.
    options = [("grpc.http_proxy", line.proxy.url)] if line.proxy else [("grpc.enable_http_proxy", 0)]
    waiting = threading.Event()

    def nothing() -> Iterator[bytes]:
        waiting.wait()
        yield from ()

    with grpc.secure_channel(str(line.to), credentials, options) as channel:
        try:
            grpc.channel_ready_future(channel).result(ANSWER_WITHIN)
            stream = channel.stream_stream(STREAM)(nothing(), timeout=within)
            next(iter(stream), None)
        except grpc.FutureTimeoutError:
            raise TimeoutError(f"no gRPC within {ANSWER_WITHIN:.0f} s") from None
        except grpc.RpcError as error:
            # Time is over, and the server has kept the stream.
            return bool(error.code() != grpc.StatusCode.DEADLINE_EXCEEDED)
        finally:
            waiting.set()
    return True
