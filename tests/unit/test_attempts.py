"""Failed logins: who is locked, for how long, and who is not."""

from __future__ import annotations

import asyncio

import pytest

from faas import attempts
from faas.attempts import ADDRESS_FREE, FREE, Attempts, Record, after_failure, network_of
from faas.auth import Principal, Role
from faas.errors import FaasError, Throttled, Unauthenticated

ALICE = Principal("alice", Role.VIEWER)
HERE, THERE = "192.0.2.1", "192.0.2.2"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Passwords:
    """Alice has the password `right`, the machine the token `token`."""

    def __init__(self) -> None:
        self.checked = 0

    async def authenticate(self, token: str, user: str | None = None) -> Principal | None:
        self.checked += 1
        await asyncio.sleep(0)
        return ALICE if (user, token) in ((None, "token"), ("alice", "right"), ("bob", "right")) else None

    def takes_password(self, user: str | None) -> bool:
        return user is not None


class Door:
    def __init__(self) -> None:
        self.clock = Clock()
        self.checker = Passwords()
        self.attempts = Attempts(self.clock)

    async def knock(self, token: str, user: str | None = "alice", address: str = HERE) -> int:
        """200, 401, or the seconds to wait."""
        try:
            await self.attempts.admit(self.checker, token, user, address)
        except Throttled as error:
            return error.retry_after
        except Unauthenticated:
            return 401
        return 200


@pytest.fixture
def door() -> Door:
    return Door()


def test_locks_grow_from_one_second_to_sixty_and_stay_there() -> None:
    record, locks = Record(), []
    for _ in range(FREE + 9):
        record = after_failure(record, FREE, record.until)
        locks.append(record.until - record.at)
    assert locks == [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_failures_are_forgiven_one_a_minute() -> None:
    record = Record()
    for _ in range(40):
        record = after_failure(record, FREE, 1000.0)
    assert record.failures == FREE + 6
    assert after_failure(record, FREE, 1000 + 59.0).failures == FREE + 6
    assert after_failure(record, FREE, 1000 + 7 * 60.0).failures == FREE
    assert after_failure(record, FREE, 1000 + 3600.0) == Record(1, 4600.0, 4600.0)


async def test_after_five_failures_a_name_waits_and_its_password_is_not_even_looked_at(door: Door) -> None:
    assert [await door.knock("wrong") for _ in range(7)] == [401] * 5 + [1, 1]
    assert door.checker.checked == 5
    assert await door.knock("right") == 1  # a lock that let it through would tell a guesser which one is right
    door.clock.now += 1
    assert await door.knock("right") == 200
    assert await door.knock("wrong") == 401
    assert await door.knock("wrong") == 2  # a right login takes nothing back


async def test_a_lock_is_for_one_name_at_one_address(door: Door) -> None:
    for _ in range(5):
        await door.knock("wrong")
    assert await door.knock("right", "bob") == 200
    assert await door.knock("right", "alice", THERE) == 200
    assert await door.knock("right") == 1


async def test_many_names_from_one_address_lock_the_address_but_not_who_is_known_there(door: Door) -> None:
    assert await door.knock("right", "bob") == 200
    answers = [await door.knock("wrong", f"name{number}") for number in range(ADDRESS_FREE + 2)]
    assert answers == [401] * ADDRESS_FREE + [1, 1]
    assert await door.knock("right") == 1
    assert await door.knock("right", "bob") == 200
    assert [await door.knock("wrong", "bob") for _ in range(6)] == [401] * 5 + [1]
    door.clock.now += 3601
    for number in range(60):
        await door.knock("wrong", f"more{number}")
    assert await door.knock("right", "bob") == 1  # known no longer


async def test_a_right_token_opens_during_a_lock_since_nobody_guesses_one(door: Door) -> None:
    assert [await door.knock("wrong", None) for _ in range(6)] == [401] * 5 + [1]
    assert await door.knock("token", None) == 200


async def test_guesses_at_once_are_counted_one_after_another(door: Door) -> None:
    answers = await asyncio.gather(*(door.knock("wrong") for _ in range(50)))
    assert sorted(answers) == [1] * 45 + [401] * 5
    assert door.checker.checked == 5
    other = Door()
    assert await asyncio.gather(*(other.knock("right") for _ in range(50))) == [200] * 50


async def test_what_is_kept_is_bounded_and_an_address_outlives_its_names(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "KEPT", 100)
    for number in range(300):
        door.attempts.failed(HERE, f"name{number}")
        door.attempts.succeeded(THERE, f"name{number}")
    for number in range(300):
        door.attempts.failed(f"10.0.0.{number}", "x" * 9000)
    kept = (door.attempts._names, door.attempts._addresses, door.attempts._known)
    assert [len(kind) for kind in kept] == [100, 100, 100]
    again = Door()
    for number in range(99):
        again.attempts.failed(HERE, f"name{number}")
    assert again.attempts.wait_seconds(HERE, "somebody") > 0


async def test_a_failing_check_is_no_failed_login(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(token: str, user: str | None = None) -> Principal | None:
        raise FaasError

    with monkeypatch.context() as patched:
        patched.setattr(door.checker, "authenticate", broken)
        for _ in range(9):
            with pytest.raises(FaasError):
                await door.knock("right")
    assert await door.knock("right") == 200


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        (None, ""),
        ("@socket", "@socket"),
    ],
)
def test_a_client_is_an_ipv4_address_or_the_network_it_has_to_itself(address: str | None, network: str) -> None:
    assert network_of(address) == network
