"""`Pushes`: what functions and clients of `@connections` do with an open connection. Implements
`faas.connections.Connections`.
"""

from __future__ import annotations

from typing import Any

from faas.connections import Wanted
from faas.errors import Gone, PayloadTooLarge
from gateway.control.operations import stamp
from gateway.edge.websocket.apis import WebSocketApis
from gateway.edge.websocket.frames import NORMAL
from gateway.edge.websocket.session import Session


class Pushes:
    """Over the connections of `apis`."""

    def __init__(self, apis: WebSocketApis) -> None:
        self._apis = apis

    def session(self, connection_id: str, stage: str | None = None) -> Session:
        """The open connection of that id, of any namespace. Raises Gone."""
        session = self._apis.connections.get(connection_id)
        if session is None or not session.is_open or stage not in (None, session.api.stage):
            raise Gone
        return session

    def send(self, session: Session, payload: bytes) -> None:
        """Raises PayloadTooLarge, Throttled, Gone."""
        most = session.api.max_message
        if len(payload) > most:
            raise PayloadTooLarge(f"a message has {most} bytes at most")
        self._apis.connections.check_room(len(payload))
        if not session.is_open:
            raise Gone
        session.send(payload)

    # Connections

    def limit(self, wanted: Wanted) -> int:
        return self._wanted(wanted).api.max_message

    def post(self, wanted: Wanted, body: bytes) -> None:
        self.send(self._wanted(wanted), body)

    def look(self, wanted: Wanted) -> dict[str, Any]:
        return seen(self._wanted(wanted))

    def close(self, wanted: Wanted) -> None:
        end(self._wanted(wanted))

    def _wanted(self, wanted: Wanted) -> Session:
        session = self.session(wanted.connection_id, wanted.stage)
        if session.api.namespace != wanted.namespace:
            raise Gone
        return session


def seen(session: Session) -> dict[str, Any]:
    """A connection as Amazon's management API tells it."""
    return {
        "connectedAt": stamp(session.peer.connected_at),
        "identity": {"sourceIp": session.peer.source_ip, "userAgent": session.peer.user_agent},
        "lastActiveAt": stamp(session.last_active_at),
    }


def end(session: Session) -> None:
    session.close(NORMAL, "closed by the server")
