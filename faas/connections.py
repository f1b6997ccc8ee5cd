"""The connections of WebSocket APIs, as functions see them: a port that the gateway implements and the worker's Runtime
API asks. With it, how errors are named in Amazon API Gateway's management API (`@connections`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from faas.errors import FaasError, Gone


@dataclass(frozen=True, slots=True)
class Wanted:
    """The connection that somebody asks for. `namespace`: whose APIs may have it; `stage`: that its API must have."""

    namespace: str
    connection_id: str
    stage: str | None = None


class Connections(Protocol):
    """All of it is done at once. Each raises Gone for every connection that is not there for `wanted.namespace`, as for
    an id that never was."""

    def limit(self, wanted: Wanted) -> int:
        """How many bytes a message to it may have. Raises Gone."""
        ...

    def post(self, wanted: Wanted, body: bytes) -> None:
        """Send a message: text where it is UTF-8. Raises Gone, PayloadTooLarge; Throttled where nobody reads."""
        ...

    def look(self, wanted: Wanted) -> dict[str, Any]:
        """What is known of it, as plain data with Amazon's keys. Raises Gone."""
        ...

    def close(self, wanted: Wanted) -> None:
        """Raises Gone."""
        ...


class NoConnections:
    """`Connections` where there are none."""

    def limit(self, wanted: Wanted) -> int:
        raise Gone

    def post(self, wanted: Wanted, body: bytes) -> None:
        raise Gone

    def look(self, wanted: Wanted) -> dict[str, Any]:
        raise Gone

    def close(self, wanted: Wanted) -> None:
        raise Gone


def amazon_error(error: FaasError) -> str:
    """The value of `x-amzn-ErrorType`, by which AWS's clients know the error."""
    known = {410: "GoneException", 413: "PayloadTooLargeException", 429: "LimitExceededException"}
    return known.get(error.status, "InternalServerError")
