"""The payload formats by their version: how a request becomes an event, and an answer HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from faas.rules.payload import Payload
from gateway.event import Answer, http_answer, http_event
from gateway.event_v1 import http_answer_v1, http_event_v1


@dataclass(frozen=True, slots=True)
class Format:
    """`event`: keywords as of `gateway.event.http_event`; `answer`: (payload, content type) → status, headers, body."""

    event: Callable[..., dict[str, Any]]
    answer: Callable[[bytes, str], Answer]


FORMATS: Mapping[str, Format] = {
    Payload.V2: Format(http_event, http_answer),
    Payload.V1: Format(http_event_v1, http_answer_v1),
}
