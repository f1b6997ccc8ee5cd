"""`Parts`: what all revisions' pools share."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from faas.background import Background
from faas.metrics import Metrics
from faas.protocol import Revision
from worker.drivers.base import Driver
from worker.failures import Failures
from worker.freezer import Freezer
from worker.instance import Account, Instance
from worker.janitor import Janitor
from worker.launch import Launches
from worker.logs import LogStore
from worker.memory.ledger import Ledger
from worker.metering import Reporting, Sampler
from worker.output import Output
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
    background: Background
    failures: Failures = field(default_factory=Failures)

    def instance(self, revision: Revision, account: Account) -> Instance:
        """A new one, still empty; `account` is told of its invocations."""
        key = revision.key
        instance_id = self.precreator.take(revision) or secrets.token_hex(8)
        output = Output(self.logs.of(key.namespace, key.function), key.number, instance_id)
        made = Instance(instance_id, revision, self.driver, output, self.sampler, self.settling)
        made.failures, made.account = self.failures, account
        return made
