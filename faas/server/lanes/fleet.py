"""`Fleet`: the lane processes, as the main process has them: started, answered, told, and replaced when one dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from faas.background import Background
from faas.doors import Doors
from faas.errors import FaasError, Unavailable
from faas.metrics import Metrics
from faas.processes import of_one_client
from faas.server.lanes.options import Options
from faas.settings import Settings
from gateway.lanes import desk
from gateway.lanes.desk import Desk
from gateway.lanes.tally import Accounts
from worker import lending
from worker.borrowed import error_told
from worker.launcher.peer import Answer, Peer
from worker.launcher.wire import GONE, Message, close_all
from worker.lending import LendingPool, Loan

log = logging.getLogger("faas.server.lanes")

READY_SECONDS = 15.0
ACK_SECONDS = 5.0  # in which a lane says that it has done what it was told; one that does not is ended
LAST_SECONDS = 1.0  # for the last bytes of answers
LOOK_SECONDS = 0.05
FULL_SECONDS = 0.25  # a lane does not ask again for slots that are not there
NEVER_SECONDS = 60.0  # nor for what it may not serve, until something changes
LAST_PAUSE_SECONDS = 30.0
HEALTHY_SECONDS = 60.0
MOST_BYTES = 1_048_576  # that were read of a connection
FORGET = "forget"
_PACKAGES = Path(__file__).resolve().parents[3]
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Member:
    """One lane process, from its start to its end."""

    def __init__(self, fleet: Fleet, number: int, process: asyncio.subprocess.Process, end: socket.socket) -> None:
        self._fleet = fleet
        self.number = number
        self.process = process
        self.is_ready = False
        self.accounts = Accounts(fleet.desk.path)
        self.is_over = False
        verbs = {"ask": self._ask, "connect": self._connect, "why": self._why, "late": self._late, "take": self._take}
        self.peer = Peer(end, verbs, self._ended, self._hear)

    def kill(self, why: str) -> None:
        if not self.is_over:
            log.error("lane process %d is ended: %s", self.process.pid, why)
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    def _ended(self, why: str) -> None:
        """Its end of the channel is closed, or what came from there is no message."""
        if why != GONE:
            self.kill(why)
        self.lost()

    def lost(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        failed = self._fleet.pool.lost(self.number)
        self.accounts.lost()
        if failed:
            log.error("a lane process has ended, and %d requests with it", failed)

    # What it says

    async def _ask(self, message: Message, descriptors: list[int]) -> Answer:
        close_all(descriptors)
        with self._rules():
            host, name = desk.text_of(message.get("host")), desk.text_of(message.get("name"))
            fleet = self._fleet
            route = fleet.desk.route(host, name) if not fleet.is_stopping else None
            if route is None or self.accounts.is_full:
                return Answer({"function": None, "loan": None, "wait": NEVER_SECONDS})
            handle = self.accounts.open(route)
            loan = fleet.pool.lend(self.number, route.revision, fleet.processes, fleet.desk.room)
            lent = None
            if loan is not None:
                fleet.desk.lent(loan.slots)
                lent = {"id": loan.id, "slots": loan.slots}
            return Answer({"function": desk.told(route, handle), "loan": lent, "wait": FULL_SECONDS})
        raise Unavailable("that is no question")

    async def _connect(self, message: Message, descriptors: list[int]) -> Answer:
        close_all(descriptors)
        try:
            loan = self._fleet.pool.loan(self.number, message.get("loan"))
        except ValueError:  # it has gone back meanwhile
            raise Unavailable("there is no such loan") from None
        connection = await self._fleet.pool.connect(loan)
        return Answer(None, [connection.detach()])

    async def _why(self, message: Message, descriptors: list[int]) -> Answer:
        close_all(descriptors)
        with self._rules():
            pool = self._fleet.pool
            loan = pool.loan(self.number, message.get("loan"))
            request_id = lending.request_id_of(message.get("request"))
            seconds = lending.seconds_of(message.get("seconds"))
            reason, no_listener = desk.text_of(message.get("reason")), message.get("no_listener") is True
            error = await pool.broken(loan, request_id, seconds, reason, no_listener)
            await self._fleet.settled()  # whoever hears of it and asks again gets another instance
            return Answer(error_told(error))
        raise Unavailable("there is no such request")

    async def _late(self, message: Message, descriptors: list[int]) -> Answer:
        close_all(descriptors)
        with self._rules():
            loan = self._fleet.pool.loan(self.number, message.get("loan"))
            request_id = lending.request_id_of(message.get("request"))
            self._fleet.pool.late(loan, request_id, lending.seconds_of(message.get("seconds")))
            await self._fleet.settled()
        return Answer()

    async def _take(self, message: Message, descriptors: list[int]) -> Answer:
        data = message.get("data")
        if len(descriptors) != 1 or not isinstance(data, str) or len(data) > MOST_BYTES:
            close_all(descriptors)
            raise Unavailable("that is no connection")
        connection = socket.socket(fileno=descriptors[0])
        connection.setblocking(False)
        await self._fleet.adopt(connection, data.encode("latin-1", "replace"))
        return Answer()

    def _hear(self, message: Message) -> None:
        with self._rules():
            if message.get("event") == "hello":
                self.is_ready = True
                self._fleet.came()
            elif message.get("event") == "told":
                for told in _list(message.get("loans")):
                    self._told_of_loan(told)
                for told in _list(message.get("routes")):
                    self.accounts.hear(told)

    def _told_of_loan(self, told: Any) -> None:
        number, begun, ended, back = _list(told)
        pool = self._fleet.pool
        loan = pool.loan(self.number, number)
        pool.begun(
            loan, [(lending.request_id_of(one[0]), lending.seconds_of(one[1])) for one in map(_list, _list(begun))]
        )
        for request_id, seconds in map(_list, _list(ended)):
            pool.ended(loan, lending.request_id_of(request_id), lending.seconds_of(seconds))
        if back:
            if type(back) is not int:
                raise ValueError("that is no number of slots")
            pool.give_back(loan, back)

    @contextlib.contextmanager
    def _rules(self) -> Iterator[None]:
        """A lane that does not keep to them is ended: nothing that it says can be believed."""
        try:
            yield
        except (ValueError, TypeError, IndexError) as error:
            self.kill(f"it says what no lane says: {error}")

    # What it is told

    async def told(self, verb: str, **arguments: Any) -> None:
        """Returns when it has done that; at once where it is gone."""
        try:
            async with asyncio.timeout(ACK_SECONDS):
                await self.peer.ask(verb, **arguments)
        except TimeoutError:
            self.kill("it does not answer")
            return
        except FaasError:
            return  # it has gone
        if verb == FORGET:
            self.accounts.forget()


class Fleet:
    """All of `--processes` but the main one."""

    def __init__(self, settings: Settings, desk: Desk, pool: LendingPool, metrics: Metrics) -> None:
        self.processes = processes = settings.processes
        of_one = of_one_client(settings.connections_per_address, processes)[0]
        self.options = Options(settings.domain, settings.trusted_proxies, settings.log_format, of_one)
        self.desk = desk
        self.pool = pool
        self.is_stopping = False
        self._all_ready = asyncio.Event()
        self._doors: Doors
        self._listener: socket.socket | None = None
        self._members: dict[int, Member] = {}
        self._work = Background()
        self._telling: set[asyncio.Task[None]] = set()
        self._looking: asyncio.TimerHandle | None = None
        pool.recalled = self._recall
        pool.returned = desk.returned
        desk.path.router.watch(self.forget)
        desk.path.activator.watch(self)
        metrics.lane_processes.set_function(lambda: self.living)
        metrics.lent_slots.set_function(lambda: pool.lent)
        self._requests = [metrics.lane_requests.labels(str(number)) for number in range(1, processes)]

    @property
    def lanes(self) -> int:
        return self.processes - 1

    @property
    def living(self) -> int:
        return sum(member.is_ready and not member.is_over for member in self._members.values())

    def came(self) -> None:
        """One of them serves."""
        if self.living == self.lanes:
            self._all_ready.set()

    async def start(self, doors: Doors, listener: socket.socket) -> None:
        """Returns when all serve, or have not come in time: the main process serves by itself then."""
        self._doors, self._listener = doors, listener.dup()
        os.set_inheritable(self._listener.fileno(), False)
        for number in range(1, self.processes):
            self._work.start(self._keep(number), f"lane process {number}")
        self._look()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                await self._all_ready.wait()

    async def refuse(self, *, hand_over: bool) -> None:
        """No request begins in a lane process any more when this returns."""
        self.is_stopping = True
        members = [member for member in self._members.values() if not member.is_over]
        calls = (member.peer.call("refuse", hand_over=hand_over) for member in members)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                await asyncio.gather(*calls, return_exceptions=True)

    async def finish(self) -> None:
        """What ran has ended: a moment for the last bytes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                for member in list(self._members.values()):
                    await member.process.wait()

    async def close(self) -> None:
        self.is_stopping = True
        if self._looking is not None:
            self._looking.cancel()
        for member in self._members.values():
            await member.peer.close()  # it ends with that
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ACK_SECONDS):
                    await member.process.wait()
            if member.process.returncode is None:
                member.process.kill()
            member.lost()
        await self._work.cancel()
        for task in self._telling:
            task.cancel()
        if self._listener is not None:
            self._listener.close()

    # Changes

    def forget(self) -> None:
        """Names may lead elsewhere, or somebody may not come in any more."""
        for member in self._members.values():
            self._tell(member, FORGET)

    def _tell(self, member: Member, verb: str, **arguments: Any) -> None:
        if not member.is_over:
            task = asyncio.get_running_loop().create_task(member.told(verb, **arguments), name="a lane is told")
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def before_answers(self, request: web.Request, response: web.StreamResponse) -> None:
        """aiohttp's signal `on_response_prepare` of the control API: what it says is done is so in every process."""
        await self.settled(2 * ACK_SECONDS)

    async def settled(self, seconds: float = LAST_SECONDS) -> None:
        """Until all lanes have done what they were told up to now, so long at most."""
        if self._telling:
            await asyncio.wait(set(self._telling), timeout=seconds)

    def _recall(self, loan: Loan) -> None:
        member = self._members.get(loan.lane)
        if member is not None:
            self._tell(member, "recall", loan=loan.id)

    def _look(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
        if self.pool.lent:
            self.pool.look()
            for loan in self.pool.loans() if self.desk.is_waited_for else ():
                self.pool.recall(loan)
        for member in self._members.values():
            counted, member.accounts.requests = member.accounts.requests, 0
            self._requests[member.number - 1].inc(counted)

    async def adopt(self, connection: socket.socket, data: bytes) -> None:
        await self._doors.adopt("public", connection, data)

    # Starting

    async def _keep(self, number: int) -> None:
        """One after the other, for ever."""
        pause = 0.1
        while not self.is_stopping:
            began = time.monotonic()
            try:
                member = await self._started(number)
                await member.process.wait()
                member.lost()
                await member.peer.close()
                if not self.is_stopping:
                    log.error("lane process %d has ended: %s", member.process.pid, member.process.returncode)
            except OSError as error:
                log.error("a lane process cannot be started: %s", error)
            if self.is_stopping:
                return
            pause = 0.1 if time.monotonic() - began > HEALTHY_SECONDS else min(2 * pause, LAST_PAUSE_SECONDS)
            await asyncio.sleep(pause)

    async def _started(self, number: int) -> Member:
        assert self._listener is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                descriptors = (self._listener.fileno(), theirs.fileno())
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-B", "-P", "-s", "-m", "faas.server.lanes.process"),
                    *map(str, descriptors),
                    self.options.dump(),
                    stdin=asyncio.subprocess.DEVNULL,
                    cwd="/",
                    env={"PATH": _PATH, "LANG": "C.UTF-8", "PYTHONPATH": str(_PACKAGES)},
                    pass_fds=descriptors,
                    start_new_session=True,  # what a terminal sends to all is not for it
                )
        except BaseException:
            ours.close()
            raise
        member = self._members[number] = Member(self, number, process, ours)
        return member


def _list(told: Any) -> list[Any]:
    """Raises ValueError."""
    if not isinstance(told, list):
        raise ValueError("that is no list")
    return told
