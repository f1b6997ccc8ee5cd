"""`PushDoor`: the way from one instance to the clients of its namespace's WebSocket APIs, through its Runtime API.

    POST   /@connections/{id}    200; the body is the message
    GET    /@connections/{id}    200; JSON
    DELETE /@connections/{id}    204

The same below `/{stage}`, as Amazon API Gateway's management API has it. Signatures and tokens are not looked at: the
instance is who it is. It decides nothing of connections; `faas.connections.Connections` does.
"""

from __future__ import annotations

import json
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from faas.connections import Connections, NoConnections, Wanted, amazon_error
from faas.errors import FaasError, Gone, PayloadTooLarge

DOOR = b"@connections"
UNWANTED_BYTES = 1  # kept of a message to nobody. It is read and dropped: a client whose body is cut off hears no 410
METHODS = (b"POST", b"GET", b"DELETE")


class Answer(NamedTuple):
    """`error_type`: for `x-amzn-ErrorType`; empty where it went well."""

    status: int
    body: bytes = b""
    error_type: str = ""


class PushDoor:
    """One instance's. `namespace` is its function's."""

    def __init__(self, connections: Connections, namespace: str) -> None:
        self._connections = connections
        self._namespace = namespace

    def wanted(self, path: bytes) -> Wanted | None:
        """The connection that a request's path names, each of its parts percent-encoded; None where it is no such."""
        parts = path.split(b"/", 4)
        if len(parts) not in (3, 4) or parts[0] or not parts[-1]:
            return None
        decoded = [unquote_to_bytes(part) for part in parts]
        if decoded[-2] != DOOR:
            return None
        stage = decoded[1].decode("utf-8", "replace") if len(parts) == 4 else None
        return Wanted(self._namespace, decoded[-1].decode("utf-8", "replace"), stage)

    def limit(self, wanted: Wanted) -> int:
        """How much of a message to it is kept."""
        try:
            return self._connections.limit(wanted)
        except Gone:
            return UNWANTED_BYTES

    def answer(self, wanted: Wanted, method: bytes, body: bytes, size: int) -> Answer:
        """Do what is asked. `size`: of all that was sent, where `body` is its beginning."""
        try:
            if method == b"GET":
                return Answer(200, json.dumps(self._connections.look(wanted)).encode())
            if method == b"DELETE":
                self._connections.close(wanted)
                return Answer(204)
            most = self._connections.limit(wanted)
            if size > len(body):  # never a part of a message
                raise PayloadTooLarge(f"a message has {most} bytes at most")
            self._connections.post(wanted, body)
            return Answer(200)
        except FaasError as error:
            told = {"message": error.message, "errorType": error.code, "errorMessage": error.message}
            return Answer(error.status, json.dumps(told).encode(), amazon_error(error))


NO_DOOR = PushDoor(NoConnections(), "")
