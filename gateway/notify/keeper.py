"""`Keeper`: the targets, what each of them knows, and the loop that looks, decides and tells.

There is no queue: what is to be told is the difference between how things stand and what a target was told last. A
message that was not taken is made anew, later, from how things stand then; so nothing piles up, and nothing is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from faas.background import Background
from faas.errors import Conflict, FaasError, NotFound, Unavailable
from faas.metrics import Metrics
from faas.state.session import Database
from gateway.notify import states
from gateway.notify.facts import Facts, Seen
from gateway.notify.message import Item, Message, message, test_message
from gateway.notify.senders import Senders
from gateway.notify.states import Notice, State
from gateway.notify.subjects import Observation, Subject
from gateway.notify.target import Target, definition, stored
from gateway.router import function_label
from gateway.store import notifications
from gateway.store.notifications import StateRow

log = logging.getLogger("faas.notify")

LOOK_SECONDS = 10.0
GAP_SECONDS = 60.0  # between two messages to one target: what comes meanwhile goes together
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 10.0, 3600.0
AT_ONCE = 8  # messages on their way
MOST_TARGETS = 20  # of a namespace
MOST_SUBJECTS = 2000  # of a target that are wrong at once


@dataclass(eq=False)
class Watched:
    """A target with what it knows. `next_at`: before that it gets no message; `failures`: tries since the last that was
    taken; `written`: what of `known` is in the database."""

    target: Target
    known: dict[Subject, State] = field(default_factory=dict)
    written: dict[Subject, tuple[object, ...]] = field(default_factory=dict)
    sent_at: float = 0.0
    next_at: float = 0.0
    failures: int = 0
    error: str = ""
    sending: bool = False

    @property
    def label(self) -> str:
        return function_label(*self.target.place)

    @property
    def firing(self) -> int:
        return sum(state.firing for state in self.known.values())


class Keeper:
    """`start`ed once, `stop`ped once. `clock` gives Unix seconds; `tick` is one look."""

    def __init__(
        self,
        database: Database,
        facts: Facts,
        senders: Senders,
        metrics: Metrics,
        server: str,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self.facts = facts
        self.senders = senders
        self._sent = metrics.notifications
        self._server = server
        self._clock = clock
        self._watched: dict[tuple[str, str], Watched] = {}
        self._changes = asyncio.Lock()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._poke = asyncio.Event()
        self._loop = Background()
        self._messages = Background()
        self._unwritten = False

    async def start(self) -> None:
        """What was told before the restart is known."""
        now = self._clock()
        for namespace, name, value in await self._database.ask(notifications.targets):
            self._watched[namespace, name] = Watched(stored(namespace, name, value))
        for row in await self._database.ask(notifications.states):
            if (watched := self._watched.get((row.namespace, row.target))) is not None and row.state is not None:
                state = State.load(row.state, now)
                watched.known[row.subject] = state
                watched.written[row.subject] = states.memorable(state)
        await self.senders.start()
        self._loop.start(self._run(), "notifications")

    async def stop(self, grace_seconds: float = 1.0) -> None:
        """What is on its way may come to its end; what was not told is told after the next start."""
        await self._loop.cancel()
        await self._messages.finish(grace_seconds)
        await self._write()
        await self.senders.stop()

    # Control

    def every(self) -> list[Watched]:
        return [self._watched[place] for place in sorted(self._watched)]

    def get(self, namespace: str, name: str) -> Watched:
        """Raises NotFound."""
        if (watched := self._watched.get((namespace, name))) is None:
            raise NotFound(f"there is no target {function_label(namespace, name)}", hint="see faas notify ls")
        return watched

    def using(self, namespace: str, secret: str) -> list[str]:
        """Targets that need this secret."""
        found = [one for place, one in self._watched.items() if place[0] == namespace]
        return [f"the notifications of {one.label}" for one in found if secret in one.target.way.secrets]

    async def put(self, target: Target) -> bool:
        """Make or replace; whether it is new. It hears at once of what is wrong. Raises Conflict, Unavailable."""
        async with self._changes:
            before = self._watched.get(target.place)
            if before is None and sum(place[0] == target.namespace for place in self._watched) >= MOST_TARGETS:
                raise Conflict(f"a namespace has at most {MOST_TARGETS} targets", hint="remove one: faas notify rm")
            now, value = self._clock(), definition(target)
            await self._database.change(lambda tx: notifications.put(tx, *target.place, value, now))
            if before is None:
                self._watched[target.place] = Watched(target)
            else:
                before.target, before.next_at, before.failures, before.error = target, now, 0, ""
                for subject in [one for one in before.known if not target.hears_of(one)]:
                    del before.known[subject]
        self._poke.set()
        return before is None

    async def remove(self, namespace: str, name: str) -> None:
        """Raises NotFound, Unavailable."""
        async with self._changes:
            self.get(namespace, name)
            await self._database.change(lambda tx: notifications.remove(tx, namespace, name))
            del self._watched[namespace, name]

    async def test(self, namespace: str, name: str) -> None:
        """Send a message that says it is a test. Raises NotFound, Unavailable."""
        watched = self.get(namespace, name)
        await self._send(watched, test_message(watched.label, self._server, self._clock()))

    # Looking

    async def _run(self) -> None:
        while True:
            try:
                await self.tick()
            except FaasError as error:
                log.error("notifications: %s", error.message)
            except Exception:
                log.exception("notifications go on")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._poke.wait()
            self._poke.clear()

    async def tick(self) -> None:
        """One look at everything that some target wants to hear of; what is due begins on its way."""
        kinds = sorted({kind for one in self._watched.values() for kind in one.target.on})
        now = self._clock()
        seen = await self.facts.look(kinds, now)
        for watched in self.every():
            self._judge(watched, seen, now)
        await self._write()
        for watched in self.every():
            if not watched.sending and now >= watched.next_at and (items := self._due(watched, now)):
                watched.sending = True
                self._messages.start(self._tell(watched, items), f"notification of {watched.label}")

    def _judge(self, watched: Watched, seen: Seen, now: float) -> None:
        target, known = watched.target, watched.known
        wrong: Mapping[Subject, Observation] = {
            one.subject: one
            for some in seen.values()
            for one in some
            if target.hears_of(one.subject) and target.minds(one)
        }
        for subject in [*known, *(one for one in wrong if one not in known)]:
            if subject.kind not in seen or (subject not in known and len(known) >= MOST_SUBJECTS):
                continue  # nobody knows how it is, or this target has enough
            state = states.step(known.get(subject, State()), wrong.get(subject), states.RULES[subject.kind], now)
            if states.is_over(state, now):
                known.pop(subject, None)
            else:
                known[subject] = state

    def _due(self, watched: Watched, now: float) -> list[tuple[Notice, Subject, State]]:
        found = []
        for subject, state in sorted(watched.known.items()):
            if (notice := states.due(state, watched.target.repeat, now)) is not None:
                found.append((notice, subject, state))
        return found

    # Telling

    async def _tell(self, watched: Watched, due: list[tuple[Notice, Subject, State]]) -> None:
        try:
            made = message(watched.label, self._server, [Item.of(*one) for one in due], self._clock())
            await self._send(watched, made)
        except Exception as error:
            if not isinstance(error, FaasError):
                log.exception("a notification failed")
            wait = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(watched.failures, 10))
            watched.failures += 1
            watched.next_at = self._clock() + wait
            log.warning("%s cannot be told, again in %.0f s: %s", watched.label, wait, error)
        else:
            now = self._clock()
            watched.failures, watched.next_at = 0, now + GAP_SECONDS
            for notice, subject, state in due:
                if (current := watched.known.get(subject)) is not None:
                    watched.known[subject] = states.heard(current, notice, state.severity, now)
            await self._write()
        finally:
            watched.sending = False

    async def _send(self, watched: Watched, made: Message) -> None:
        """Raises Unavailable."""
        target = watched.target
        try:
            async with self._slots:
                await self.senders.send(target, made, self._clock())
        except FaasError as error:
            watched.error = error.message
            self._sent.labels(target.kind, "failed").inc()
            raise Unavailable(error.message, hint=error.hint) from None
        watched.error, watched.sent_at = "", self._clock()
        self._sent.labels(target.kind, "sent").inc()

    # Remembering

    async def _write(self) -> None:
        """What a restart must find. Where that cannot be written (a full disk is told of, too) it waits in memory."""
        rows: list[StateRow] = []
        marks: list[tuple[Watched, Subject, tuple[object, ...] | None]] = []
        for place, watched in self._watched.items():
            kept = {subject: state for subject, state in watched.known.items() if states.is_kept(state)}
            for subject, state in kept.items():
                mark = states.memorable(state)
                if watched.written.get(subject) != mark:
                    rows.append(StateRow(*place, subject, state.dump()))
                    marks.append((watched, subject, mark))
            for subject in watched.written.keys() - kept.keys():
                rows.append(StateRow(*place, subject, None))
                marks.append((watched, subject, None))
        if not rows:
            return
        try:
            await self._database.change(lambda tx: notifications.remember(tx, rows))
        except FaasError as error:
            if not self._unwritten:
                log.error("what was told is not written down: a restart tells it again: %s", error.message)
            self._unwritten = True
            return
        self._unwritten = False
        for watched, subject, written in marks:
            if written is None:
                watched.written.pop(subject, None)
            else:
                watched.written[subject] = written
