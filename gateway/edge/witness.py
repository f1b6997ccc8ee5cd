"""`Witness`: sees every request that was answered: the access log's line, and the counts of APIs and their routes.

Both ways to functions, aiohttp's and the lane, call `saw` once an answer is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from faas.access_log import AGENT_CHARACTERS, PATH_CHARACTERS, TEXT_CHARACTERS, AccessLog, Record, without_keys
from faas.metrics import Metrics
from gateway.edge.entry import Entry
from gateway.router import Route

GONE = 499  # as nginx: the client went away before it had an answer
UNKNOWN, OTHERS = "unknown", "others"  # routes that are none, and those beyond MOST_SERIES
MOST_SERIES = 5000  # of APIs and routes, since the start

Count = Callable[[], None]


class Witness:
    """`log` None: there is no access log. `clock` gives Unix time.

    `watching`: whether anything comes of `saw` for a function's own path; a caller may spare itself the call and its
    arguments where it is False. `tracing`: whether requests become spans: the lane leaves those to aiohttp.
    """

    def __init__(
        self,
        metrics: Metrics | None = None,
        log: AccessLog | None = None,
        *,
        tracing: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.watching = log is not None
        self.tracing = tracing
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._series: dict[tuple[str, str, int], Count] = {}

    def saw(
        self,
        *,
        method: str,
        target: str,
        status: int,
        request_id: str,
        seconds: float,
        route: Route | None = None,
        entry: Entry | None = None,
        api: str = "",
        caller: str = "",
        address: str = "",
        agent: str = "",
        referer: str = "",
        trace: str = "",
        bytes_in: int = 0,
        bytes_out: int = 0,
        cold: bool = False,
        listener: str = "public",
        version: str = "1.1",
    ) -> None:
        """An answer is over. Called on the loop: it neither waits nor raises.

        `target`: as it stood in the request's first line, any bytes (surrogates for what is not UTF-8); `status`: what
        was sent, 499 where the client had gone before; `seconds`: from the head to the last byte; `route`: which
        revision served, None where none was found; `entry`: None for a function's own path, and where no route was
        found (`api` says then in which API); `caller`: a name, never credentials; `trace`: `traceparent` or
        `X-Amzn-Trace-Id` as sent; `bytes_in`, `bytes_out`: of bodies; `listener`: public | api; `version`: of HTTP.
        """
        name = entry.api if entry is not None and entry.api else api
        if name and self._metrics is not None:
            self._count(name, entry.pattern if entry is not None else UNKNOWN, status, seconds)
        if self._log is None:
            return
        self._log.put(
            Record(
                self._clock(),
                request_id,
                listener,
                method[:TEXT_CHARACTERS],
                without_keys(target)[:PATH_CHARACTERS],
                version,
                status,
                bytes_in,
                bytes_out,
                seconds,
                route.label if route is not None else "",
                route.qualifier if route is not None else "",
                route.revision.key.number if route is not None else 0,
                name,
                entry.pattern if entry is not None and name else "",
                entry.stage if entry is not None and name else "",
                caller[:TEXT_CHARACTERS],
                address,
                agent[:AGENT_CHARACTERS],
                without_keys(referer)[:AGENT_CHARACTERS],
                trace[:TEXT_CHARACTERS],
                cold,
            )
        )

    def forget(self, api: str) -> None:
        """An API is gone, and its series with it."""
        for key in [key for key in self._series if key[0] == api]:
            del self._series[key]
        if self._metrics is not None:
            self._metrics.forget_api(api)

    def _count(self, api: str, pattern: str, status: int, seconds: float) -> None:
        assert self._metrics is not None
        key = (api, pattern, status // 100)
        count = self._series.get(key)
        if count is None:
            if len(self._series) >= MOST_SERIES:
                pattern = OTHERS
            words = f"{status // 100}xx"
            count = self._metrics.api_requests.labels(api, pattern, words).inc
            if pattern is not OTHERS:
                self._series[key] = count
        count()
        self._metrics.api_duration.labels(api).observe(seconds)


NOBODY = Witness()
