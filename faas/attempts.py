"""`Attempts`: failed logins, and how long whoever made them must wait for the next one.

Counted twice: for a user name as it comes from one address, which is locked soon, and for the address alone, which is
locked late, so that one guesser does not shut out everybody who shares an address (NAT, a proxy). Who has got in from
an address lately is spared the address's lock, though not the name's own. What is refused during a lock is neither
checked nor counted: a lock says nothing about a password. A right *token* opens at any time, since nobody guesses one.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

from faas.auth import Authenticator, Principal
from faas.errors import Throttled, Unauthenticated
from faas.turns import Turns

FREE = 5  # failures of a name at an address before the first lock
ADDRESS_FREE = 50  # of an address, whatever the names
LONGEST_SECONDS = 60.0  # locks last 1, 2, 4 … seconds
FORGIVE_SECONDS = 60.0  # without a failure take one of them off
TRUSTED_SECONDS = 3600.0  # after a right login the name is known at its address
KEPT = 4096  # names, addresses and known names, each; the longest untouched are forgotten first
USER_LENGTH = 128  # of a name, as it is kept
REASON = "TooManyFailedLogins"

Told = Callable[[str, str], None]  # hears of each failed login: from which address, by what name

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Record:
    """Failures as of `at`; nothing more is heard before `until`. Times are of one monotonic clock, in seconds."""

    failures: int = 0
    at: float = 0.0
    until: float = 0.0


def after_failure(record: Record, free: int, now: float) -> Record:
    """One failure more. From `free` on each locks twice as long as the one before."""
    failures = max(0, record.failures - int((now - record.at) // FORGIVE_SECONDS)) + 1
    failures = min(failures, free + math.ceil(math.log2(LONGEST_SECONDS)))  # more is not held against anybody
    locked = min(LONGEST_SECONDS, 2.0 ** (failures - free)) if failures >= free else 0.0
    return Record(failures, now, now + locked)


class _Recent(OrderedDict[K, V], Generic[K, V]):
    """A dictionary of bounded size."""

    def keep(self, key: K, value: V) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > KEPT:
            self.popitem(last=False)


class Attempts:
    """One for each door that checks credentials. `told` hears what has failed, though not what a lock refused."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, told: Told | None = None) -> None:
        self.told = told
        self._clock = clock
        self._names: _Recent[tuple[str, str], Record] = _Recent()
        self._addresses: _Recent[str, Record] = _Recent()
        self._known: _Recent[tuple[str, str], float] = _Recent()
        self._turns: Turns[tuple[str, str]] = Turns()

    async def admit(
        self, authenticator: Authenticator, token: str, user: str | None, address: str | None, *, hint: str = ""
    ) -> Principal:
        """Who these credentials belong to. Raises Unauthenticated (with `hint`), or Throttled during a lock."""
        if not authenticator.takes_password(user):
            if (found := await authenticator.authenticate(token, user)) is None:
                self._refuse(network_of(address), _kept(user), hint, address)
            return found
        place, name = network_of(address), _kept(user)
        async with self._turns.of((place, name)):  # many at once are counted one after another
            self._check(place, name)
            if (found := await authenticator.authenticate(token, user)) is None:
                self._refuse(place, name, hint, address)
            self.succeeded(place, name)
            return found

    def wrong(self, address: str | None, kind: str) -> None:
        """Wrong credentials without a name, of one kind, from `address`. Raises Throttled where there were too many."""
        place = network_of(address)
        self._check(place, kind)
        self.failed(place, kind)
        if self.told is not None:
            self.told(address or "", "")

    def _refuse(self, place: str, user: str, hint: str, address: str | None) -> NoReturn:
        self._check(place, user)
        self.failed(place, user)
        if self.told is not None:
            self.told(address or "", user)
        raise Unauthenticated("unknown user or token", hint=hint)

    def _check(self, address: str, user: str) -> None:
        if seconds := self.wait_seconds(address, user):
            words = f"too many failed logins; try again in {math.ceil(seconds)} s"
            raise Throttled(words, reason=REASON, retry_after=math.ceil(seconds))

    def wait_seconds(self, address: str, user: str) -> float:
        """How long this name is not heard at this address; 0: it is."""
        now = self._clock()
        until = self._names.get((address, user), Record()).until
        if self._known.get((address, user), 0.0) <= now:
            until = max(until, self._addresses.get(address, Record()).until)
        return max(0.0, until - now)

    def failed(self, address: str, user: str) -> None:
        now, key = self._clock(), (address, user)
        self._names.keep(key, after_failure(self._names.get(key, Record()), FREE, now))
        self._addresses.keep(address, after_failure(self._addresses.get(address, Record()), ADDRESS_FREE, now))

    def succeeded(self, address: str, user: str) -> None:
        """Takes no failure back: else a guesser could go on behind the logins of whom he guesses at."""
        self._known.keep((address, user), self._clock() + TRUSTED_SECONDS)


def _kept(user: str | None) -> str:
    return (user or "")[:USER_LENGTH]


def network_of(address: str | None) -> str:
    """What counts as one client: an IPv4 address, or the /64 that an IPv6 client has to itself."""
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return address or ""
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
