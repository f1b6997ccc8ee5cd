"""`Sending`: an answer that goes to its client piece by piece, with the client's back-pressure."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from aiohttp import web

from faas.errors import BadFunctionResponse, FaasError
from faas.web import REQUEST_ID
from gateway.edge.compression import encoder_for

log = logging.getLogger("faas.gateway")

SENT = web.ResponseKey("sent", int)  # bytes of the body: aiohttp itself counts head and framing with them


class Sending:
    """`begun`: the answer whose head has gone out. An error after that has no other way to be told than `cut`."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.begun: web.StreamResponse | None = None

    async def send(
        self, answer: web.StreamResponse, body: AsyncIterator[bytes], length: int | None, *, compressed: bool
    ) -> web.StreamResponse:
        """Send all of `body`, of which `length` bytes are announced (None: not known); each piece goes out at once.

        Raises what `body` raises, BadFunctionResponse where it is longer or shorter, ConnectionError where the client
        has gone.
        """
        encoder = encoder_for(self._request, answer, length) if compressed else None
        if encoder is None:
            answer.content_length = length
        if answer.content_length is None and self._request.version < (1, 1):
            answer.force_close()  # its end is the connection's: aiohttp would keep that, and answer again behind it
        await answer.prepare(self._request)
        self.begun = answer
        try:
            sent = 0
            async for piece in body:
                sent += len(piece)
                if length is not None and sent > length:
                    break
                if data := piece if encoder is None else await encoder.add(piece):
                    answer[SENT] = answer.get(SENT, 0) + len(data)
                    await answer.write(data)
            if length is not None and sent != length:
                raise BadFunctionResponse("the function's answer is not as long as it says")
            if encoder is not None and (data := encoder.end()):
                answer[SENT] = answer.get(SENT, 0) + len(data)
                await answer.write(data)
            await answer.write_eof()
        except (FaasError, ConnectionError):
            raise
        except Exception as error:  # a second answer behind half of the first must never be made of it
            log.exception("an answer broke off", extra={"request_id": self._request[REQUEST_ID]})
            raise FaasError("our fault; it is logged") from error
        return answer

    def cut(self) -> web.StreamResponse:
        """End the connection so that the client sees that the answer is not whole."""
        assert self.begun is not None
        cut(self._request)
        return self.begun


def cut(request: web.Request) -> None:
    """End the connection in the middle of an answer."""
    if request.transport is None:
        return
    if request.version >= (1, 1):
        request.transport.close()  # neither the last chunk nor the whole length has been sent: that shows it
    else:
        request.transport.abort()  # here a plain end would look like the answer's own
