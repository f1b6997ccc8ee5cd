"""`Parts`: what all revisions' pools share."""

from __future__ import annotations

from dataclasses import dataclass

from faas.metrics import Metrics
from worker.drivers.base import Driver
from worker.janitor import Janitor
from worker.launch import Launcher
from worker.ledger import Ledger
from worker.logs import LogStore
from worker.metering import Reporting, Sampler


@dataclass(frozen=True, slots=True)
class Parts:
    """Collaborators only; what they do is theirs."""

    driver: Driver
    launcher: Launcher
    janitor: Janitor
    sampler: Sampler
    logs: LogStore
    metrics: Metrics
    at_once: int  # launches of one revision, their inits included
    reporting: Reporting
    ledger: Ledger
