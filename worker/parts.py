"""`Parts`: what all revisions' pools share."""

from __future__ import annotations

from dataclasses import dataclass

from faas.metrics import Metrics
from worker.drivers.base import Driver
from worker.freezer import Freezer
from worker.janitor import Janitor
from worker.launch import Launches
from worker.logs import LogStore
from worker.memory.ledger import Ledger
from worker.metering import Reporting, Sampler
from worker.precreated import Precreator
from worker.settling import Settling


@dataclass(frozen=True, slots=True)
class Parts:
    """Collaborators only; what they do is theirs."""

    driver: Driver
    launches: Launches
    janitor: Janitor
    sampler: Sampler
    logs: LogStore
    metrics: Metrics
    at_once: int  # launches of one revision, their inits included
    reporting: Reporting
    ledger: Ledger
    freezer: Freezer
    precreator: Precreator
    settling: Settling
