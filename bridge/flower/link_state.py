"""Keep a SuperLink's unfinished replies for as long as a site may be away, and end them with their node.

flwr 1.41 drops a reply if none of its objects came for 180 s (`supercore/constant.py`,
OBJECT_PUSH_SESSION_TTL_SECONDS), without an error to anybody, and the run hangs. If a node is removed while
it sends a reply, a ServerApp waits that long for the rest.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any


def lasting(state: type[Any], seconds: float) -> type[Any]:
    """Return a kind of `state` with unfinished replies that wait `seconds` for their next object."""
    if not hasattr(state, "_cleanup_push_session"):
        return state  # This flwr knows no unfinished replies.

    class LastingLinkState(state):  # type: ignore[misc]
        def start_session(self, run_id: int) -> str:
            session_id: str = super().start_session(run_id)
            self._lengthen(session_id)
            return session_id

        def store_object(self, run_id: int, session_id: str, *args: Any, **options: Any) -> Any:
            # A SuperNode that names no session is an older one, with one reply at a time.
            asked = [session_id] if session_id else list(self._object_push_sessions)
            stored = super().store_object(run_id, session_id, *args, **options)
            if stored:
                self._lengthen(*asked)
            return stored

        def store_message_and_object_tree(self, message: Any, object_tree: Any, session_id: str) -> Any:
            # Noted here, because only the objects remain of a reply that the ServerApp has begun to fetch.
            self._object_push_sessions[session_id].node_id = message.metadata.src_node_id
            return super().store_message_and_object_tree(message, object_tree, session_id)

        def delete_node(self, owner_aid: str, node_id: int) -> None:
            super().delete_node(owner_aid, node_id)
            with self._lock_object_push_sessions:
                for session in self._object_push_sessions.values():
                    if getattr(session, "node_id", None) == node_id:
                        session.expires_at = datetime.now(UTC)

        def _lengthen(self, *session_ids: str) -> None:
            with self._lock_object_push_sessions:
                for session_id in session_ids:
                    session = self._object_push_sessions.get(session_id)
                    if session is not None:
                        session.expires_at = datetime.now(UTC) + timedelta(seconds=seconds)

    return LastingLinkState
