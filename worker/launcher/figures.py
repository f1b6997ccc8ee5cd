"""`Figures`: what the launcher counts, on its way to the server, whose metrics they are."""

from __future__ import annotations

from typing import cast

from faas.metrics import Metrics
from worker.launcher.peer import Peer
from worker.launcher.wire import Message


class _Series:
    """As much of a metric as the driver touches."""

    def __init__(self, peer: Peer, name: str, labels: tuple[str, ...] = ()) -> None:
        self._peer = peer
        self._name = name
        self._labels = labels

    def labels(self, *labels: str) -> _Series:
        return _Series(self._peer, self._name, labels)

    def set(self, value: float) -> None:
        self._peer.tell("figure", name=self._name, labels=self._labels, value=value)

    def inc(self) -> None:
        self._peer.tell("figure", name=self._name, labels=self._labels)


class Figures:
    """Stands for `faas.metrics.Metrics` in the launcher's driver."""

    def __init__(self, peer: Peer) -> None:
        self.stems = _Series(peer, "stems")
        self.stem_failures = _Series(peer, "stem_failures")

    @property
    def as_metrics(self) -> Metrics:
        return cast("Metrics", self)


def counted(metrics: Metrics, message: Message) -> None:
    """In the server: a figure that has come."""
    if message.get("name") == "stems":
        metrics.stems.labels(*message["labels"]).set(message["value"])
    elif message.get("name") == "stem_failures":
        metrics.stem_failures.labels(*message["labels"]).inc()
