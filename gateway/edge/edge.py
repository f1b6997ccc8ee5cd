"""`Edge`: what stands in front of functions, as one value that starts and stops. Both listeners share it."""

from __future__ import annotations

from dataclasses import dataclass

from faas.metrics import Metrics
from faas.state.session import Database
from gateway.data_path import DataPath
from gateway.edge.doorman import Doorman
from gateway.edge.passage import Passage


@dataclass(slots=True)
class Edge:
    """Collaborators only; what they do is theirs."""

    path: DataPath

    @classmethod
    def create(cls, database: Database, metrics: Metrics, path: DataPath) -> Edge:
        return cls(path)

    def passage(self, doorman: Doorman) -> Passage:
        """One listener's way to functions."""
        return Passage(self.path.router, self.path.invoker, doorman)

    async def start(self) -> None:
        """Before the first request is taken."""

    async def stop(self) -> None:
        """After the last one."""
