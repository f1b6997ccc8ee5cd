"""Push is deploy: a function with `follow = "TAG"` gets a new revision when that tag of its repository moves.

The registry writes a change together with the tag; it stands until the deploy has ended, and its outcome is written
with the revision. So a kill at any moment neither loses a push nor deploys one twice, and a function that was rolled
back stays so until the tag moves again. Of several pushes only the newest is deployed; one function at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from faas.audit import Entry, Trail, new_entry
from faas.auth import Principal, Role
from faas.background import Background
from faas.errors import FaasError, FunctionError, NotFound, Throttled
from faas.oci.changes import TagChange, TagChanges
from faas.protocol import Revision
from faas.state.session import Database, Transaction
from gateway.deploy import Deployer
from gateway.retries import RetryRules
from gateway.router import DEFAULT_NAMESPACE, Router, function_label
from gateway.store import follows, functions
from gateway.store.follows import FollowState, Outcome

log = logging.getLogger("faas.follow")

AT_ONCE = 500  # changes read in one go
DEPLOYS = 4  # at once: each unpacks an image and starts an instance
TRIES = 50  # of a push that fails by no fault of its own; with five minutes between them, some three hours
AGAIN_SECONDS = 5.0  # after changes could not be read
NAME_CHARACTERS = 128  # of who made a revision
ERROR_CHARACTERS = 2000

Where = tuple[str, str]  # namespace, name


def function_of(repository: str) -> Where | None:
    """The function whose repository this is; whether there is one is another question."""
    namespace, slash, name = repository.rpartition("/")
    if slash and namespace == DEFAULT_NAMESPACE:
        return None  # its functions' repositories have no slash
    return namespace or DEFAULT_NAMESPACE, name


def newest(
    known: Mapping[Where, TagChange], changes: Iterable[TagChange], tag_of: Callable[[Where], str]
) -> tuple[dict[Where, TagChange], list[int]]:
    """What is to be deployed, one change per function, with `changes` (by id) after those `known`; and the ids of
    what never will be: nobody follows the tag, or it has moved on. `tag_of` says which one a function follows."""
    wanted, spare = dict(known), []
    for change in changes:
        where = function_of(change.repository)
        if where is None or tag_of(where) != change.tag:
            spare.append(change.id)
            continue
        if where in wanted:
            spare.append(wanted[where].id)
        wanted[where] = change
    return wanted, spare


def _entry(where: Where, change: TagChange) -> Entry:
    """Nobody has asked for this deploy: who pushed is in the record of the push."""
    return new_entry(
        by=f"follow {change.tag}",
        token="",
        address="",
        action="functions.follow",
        object_=f"functions/{function_label(*where)}",
        status=200,
        namespace=where[0],
    )


def is_final(error: Exception) -> bool:
    """Whether another try would fail the same way: the image's fault, not want of a part or of room."""
    if not isinstance(error, FaasError) or isinstance(error, Throttled):
        return False
    return isinstance(error, FunctionError) or error.status < 500


@dataclass(slots=True)
class Attempt:
    """A change on its way. `live`: the number that was live after the last try failed."""

    change: TagChange
    count: int = 0
    due: float = 0.0  # on the monotonic clock
    live: int | None = None

    def begin(self, now: float, rules: RetryRules) -> None:
        """Whatever ends this try, the next one waits."""
        self.due = now + min(rules.longest, rules.first * 2.0 ** min(self.count, 30))
        self.count += 1

    def may_replace(self, live: Revision) -> bool:
        """Who moves `live` by hand between two tries has the last word."""
        return live.spec.follow == self.change.tag and self.live in (None, live.key.number)


class TagFollower:
    """`start`ed once, `stop`ped once. A deploy that a stop cuts off is done again after the next start."""

    def __init__(
        self,
        database: Database,
        deployer: Deployer,
        router: Router,
        changes: TagChanges,
        *,
        rules: RetryRules,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._deployer = deployer
        self._router = router
        self._changes = changes
        self.trail: Trail | None = None  # hears of each deploy
        self._rules = rules
        self._clock = clock
        self._attempts: dict[Where, Attempt] = {}
        self._busy: set[Where] = set()
        self._wake = asyncio.Event()
        self._background = Background()

    async def start(self) -> None:
        self._background.start(self._run(), "following tags")
        self._background.start(self._listen(), "changes of tags")

    async def stop(self) -> None:
        await self._background.cancel()

    async def held(self) -> dict[str, list[str]]:
        """Images (`repository@digest`) of pushes that are yet to be deployed → who needs them."""
        found: dict[str, list[str]] = {}
        for (namespace, name), change in (await self._wanted(forget=False)).items():
            image, who = (
                f"{change.repository}@{change.digest}",
                f"a push that {function_label(namespace, name)} follows",
            )
            found.setdefault(image, []).append(who)
        return found

    async def look(self) -> float | None:
        """Begin what is due; the seconds until more is, None where nothing waits."""
        wanted, now = await self._wanted(forget=True), time.monotonic()
        kept = self._attempts
        self._attempts = {
            where: kept[where] if where in kept and kept[where].change == change else Attempt(change)
            for where, change in wanted.items()
        }
        waiting = []
        for where, attempt in self._attempts.items():
            if where in self._busy or len(self._busy) >= DEPLOYS:
                continue  # the end of one is the next look
            if attempt.due <= now:
                attempt.begin(now, self._rules)
                self._busy.add(where)
                self._background.start(self._deploy(where, attempt), f"deploying a push of {attempt.change.tag}")
            else:
                waiting.append(attempt.due - now)
        return min(waiting, default=None)

    async def _run(self) -> None:
        while True:
            try:
                delay = await self.look()
            except FaasError as error:
                log.error("changes of tags cannot be read: %s", error.message)
                delay = AGAIN_SECONDS
            except Exception:
                log.exception("following tags goes on")
                delay = AGAIN_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            self._wake.clear()

    async def _listen(self) -> None:
        while True:
            await self._changes.wait()
            self._wake.set()

    async def _wanted(self, *, forget: bool) -> dict[Where, TagChange]:
        """With `forget` what will never be deployed is taken from the registry's rows."""
        wanted: dict[Where, TagChange] = {}
        after = 0
        while some := await self._changes.read(after, AT_ONCE):
            after = some[-1].id
            wanted, spare = newest(wanted, some, self._tag_of)
            if forget:
                await self._changes.done(spare)
        return wanted

    def _tag_of(self, where: Where) -> str:
        """The tag that a function follows: its live revision says so."""
        try:
            return self._router.resolve(*where).revision.spec.follow
        except NotFound:
            return ""

    async def _deploy(self, where: Where, attempt: Attempt) -> None:
        """One try, and with its end the change's, unless there is to be another."""
        try:
            if await self._ended(where, attempt.change) or await self._try(where, attempt):
                await self._changes.done([attempt.change.id])
        finally:
            self._busy.discard(where)
            self._wake.set()

    async def _ended(self, where: Where, change: TagChange) -> bool:
        """A crash may have come between the end of the deploy and the registry's forgetting."""
        async with self._database.read() as tx:
            outcome = await follows.get(tx, *where)
        return outcome is not None and outcome.ends(change)

    async def _try(self, where: Where, attempt: Attempt) -> bool:
        """Whether that was the last try."""
        change, label = attempt.change, function_label(*where)
        by = Principal(f"follow {change.tag}"[:NAME_CHARACTERS], Role.DEPLOYER, where[0])
        image = f"{change.repository}@{change.digest}"

        async def deployed(tx: Transaction) -> None:
            await follows.put(tx, *where, self._outcome(change))

        try:
            done = await self._deployer.redeploy(*where, image, by, when=attempt.may_replace, also=deployed)
        except Exception as error:
            again = not is_final(error) and attempt.count < TRIES
            await self._failed(where, attempt, error, again)
            return not again
        if done is None:
            await self._record(where, self._outcome(change, FollowState.SKIPPED, "live was moved by hand meanwhile"))
        elif done.changed:
            log.info("%s is v%d now: %s moved to %s", label, done.revision.key.number, change.tag, change.digest)
            if self.trail is not None:
                await self.trail.record(_entry(where, change))
        return True

    async def _failed(self, where: Where, attempt: Attempt, error: Exception, again: bool) -> None:
        change = attempt.change
        with contextlib.suppress(NotFound):
            attempt.live = self._router.resolve(*where).revision.key.number
        said = error.message if isinstance(error, FaasError) else f"an error of ours, {type(error).__name__}"
        log.log(
            logging.WARNING if isinstance(error, FaasError) else logging.ERROR,
            "%s: the push of %s (%s) is not deployed%s: %s",
            function_label(*where),
            change.tag,
            change.digest,
            ", it is tried again" if again else "",
            said,
            exc_info=None if isinstance(error, FaasError) else error,
        )
        state = FollowState.RETRYING if again else FollowState.FAILED
        await self._record(where, self._outcome(change, state, said[:ERROR_CHARACTERS]))

    def _outcome(self, change: TagChange, state: FollowState = FollowState.DEPLOYED, error: str = "") -> Outcome:
        return Outcome(change.tag, change.digest, change.changed_at, state, error, self._clock())

    async def _record(self, where: Where, outcome: Outcome) -> None:
        async with self._database.write() as tx:
            if await functions.get(tx, *where) is not None:  # else it was deleted meanwhile
                await follows.put(tx, *where, outcome)
