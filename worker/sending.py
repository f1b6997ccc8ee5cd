"""`Sending`: one request on its way through an http function's connections, for callers who are called back: sent, sent
once more where that is safe, its answer passed on, and what goes wrong put into `_over` or `_explain`.

What a `PoolClaim` and a `BorrowedClaim` have in common; whose slot it is, and who counts it, is theirs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from faas.leases import Answering, KnownHead
from worker.http import HttpClient
from worker.http_connection import BrokenConnection, HttpConnection


class Sending:
    """Implements `worker.http_connection.Sink`, all but `whole`."""

    # Defaults of the class: one is made for each invocation, and most of them stay as they are.
    _answering: Answering | None = None
    _connection: HttpConnection | None = None
    _client: HttpClient
    _method = ""
    _request = b""  # should it have to be sent once more
    _is_over = _is_ending = _has_head = _paused = False  # ending: why is being found out, or told

    def _opened(self, found: HttpConnection | BrokenConnection) -> None:
        if isinstance(found, BrokenConnection):
            self._broken(found)
        elif self._is_over or self._is_ending:
            self._client.rest(found)
        else:
            self._connection = found
            found.send(self._method, self._request, self)
            if self._paused:
                found.pause()

    # Sink

    @abstractmethod
    def whole(self, head: KnownHead, body: bytes) -> None:
        """The usual answer: all of it, over a connection that can be used again."""

    def head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._has_head = True
        if status == 101:
            self._fail(BrokenConnection("answered with an upgrade that nobody asked for"))
        elif self._answering is not None:
            self._answering.head(status, headers)

    def data(self, piece: bytes) -> None:
        if self._answering is not None:
            self._answering.data(piece)

    def end(self, error: BaseException | None) -> None:
        if isinstance(error, BrokenConnection):
            self._broken(error)
        else:
            self._over(error)

    # What goes wrong

    def _broken(self, broken: BrokenConnection) -> None:
        if self._is_over or self._is_ending:
            return
        served = self._connection is not None and self._connection.has_served
        self._drop()
        if broken.untouched and served:
            self._client.open(self._opened)  # closed just when it was used: once more, on a fresh one
        else:
            self._explain(broken)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._client.drop(connection)

    def _fail(self, error: BaseException) -> None:
        if self._connection is not None:
            self._connection.fail(error)
        else:
            self._over(error)

    @abstractmethod
    def _explain(self, broken: BrokenConnection) -> None:
        """Find out what its caller is told of it, then `_over`."""

    @abstractmethod
    def _over(self, error: BaseException | None) -> None:
        """The answer's end, once: the slot goes back, then the caller is told."""

    # For the caller

    def pause(self) -> None:
        """Read no more of the answer until `resume`."""
        self._paused = True
        if self._connection is not None and not self._is_over:
            self._connection.pause()

    def resume(self) -> None:
        self._paused = False
        if self._connection is not None and not self._is_over:
            self._connection.resume()
