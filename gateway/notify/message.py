"""`Message`: what one target is told at once, as words and as JSON; and its signature."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from faas.secret import Secret
from gateway.control.operations import stamp
from gateway.notify.states import Notice, State
from gateway.notify.subjects import Severity, Subject

MOST_ITEMS = 50  # in one message; the rest are counted
SIGNATURE = "X-Faas-Signature"
ID = "X-Faas-Notification-Id"


@dataclass(frozen=True, slots=True)
class Item:
    """`since`, `until`: Unix seconds; `until` 0 while it goes on. `count`: how often it was told before."""

    notice: Notice
    subject: Subject
    severity: Severity
    since: float
    until: float
    count: int
    summary: str
    look: str

    @classmethod
    def of(cls, notice: Notice, subject: Subject, state: State) -> Item:
        return cls(
            notice,
            subject,
            state.severity,
            state.since,
            state.ended_at if notice is Notice.RESOLVED else 0.0,
            state.told.count if state.told else 0,
            state.summary,
            state.look,
        )

    @property
    def words(self) -> str:
        what = f"{self.subject.kind.value} {self.subject.name}"
        if self.notice is Notice.RESOLVED:
            return f"RESOLVED  {what}: it went from {stamp(self.since)} to {stamp(self.until)}"
        again = ", still" if self.count else ""
        head = f"{self.severity.name}{again}  {what}: {self.summary}"
        return f"{head}\n    since {stamp(self.since)}; look closer: {self.look}"

    @property
    def shown(self) -> dict[str, Any]:
        return {
            "state": self.notice.value,
            "kind": self.subject.kind.value,
            "subject": self.subject.name,
            "namespace": self.subject.namespace or None,
            "severity": self.severity.name.lower(),
            "since": stamp(self.since),
            "until": stamp(self.until) if self.until else None,
            "told_before": self.count,
            "summary": self.summary,
            "look": self.look,
        }


@dataclass(frozen=True, slots=True)
class Message:
    """`id` is the same wherever the same is said again: a receiver that has had it needs it no more."""

    id: str
    title: str
    text: str
    body: bytes  # JSON


def message(target: str, server: str, items: Sequence[Item], now: float) -> Message:
    """`target`: its label; `server`: how others call it."""
    firing = [item for item in items if item.notice is Notice.FIRING]
    told = [*firing, *(item for item in items if item.notice is Notice.RESOLVED)][:MOST_ITEMS]
    counts = [f"{count} {word}" for count, word in ((len(firing), "firing"), (len(items) - len(firing), "resolved"))]
    title = f"[faas] {', '.join(one for one in counts if not one.startswith('0 '))}: {told[0].subject.name}"
    if len(items) > 1:
        title += f" and {len(items) - 1} more"
    lines = [item.words for item in told]
    if left := len(items) - len(told):
        lines.append(f"and {left} more: faas ls, faas doctor")
    shown: dict[str, Any] = {
        "target": target,
        "server": server,
        "test": False,
        "firing": len(firing),
        "resolved": len(items) - len(firing),
        "left_out": left,
        "items": [item.shown for item in told],
    }
    return _made(title, "\n".join(lines), shown, now)


def test_message(target: str, server: str, now: float) -> Message:
    """Says that it works, and nothing else."""
    text = f"A test: {target} of {server} hears of what goes wrong this way."
    shown = {"target": target, "server": server, "test": True, "at": now, "firing": 0, "resolved": 0, "left_out": 0}
    return _made(f"[faas] a test of {target}", text, {**shown, "items": []}, now)


def _made(title: str, text: str, shown: dict[str, Any], now: float) -> Message:
    said = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:32]
    shown.pop("at", None)
    body = {"id": said, "sent_at": stamp(now), "title": title, "text": f"{title}\n{text}", **shown}
    return Message(said, title, f"{text}\n\n{shown['server']}\n", json.dumps(body).encode())


def signature(key: Secret, at: float, body: bytes) -> str:
    """`t=SECONDS,v1=HEX`: HMAC-SHA256 of `SECONDS.BODY`. With the time a receiver can refuse what is sent again."""
    seconds = str(int(at))
    digest = hmac.new(key.reveal().encode(), seconds.encode() + b"." + body, hashlib.sha256)
    return f"t={seconds},v1={digest.hexdigest()}"
