"""Passwords: hashed as RFC 9106 has it, checked in a few threads, remembered only as long as their hash stands."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from faas import passwords
from faas.errors import InvalidInput, Throttled
from faas.passwords import AT_ONCE, MOST, REMEMBERED_SECONDS, Passwords, check_password
from tests.support.fake_driver import eventually


class Watched(Passwords):
    """Counts what is really hashed, and how many at once; `quick` hashes nothing."""

    def __init__(self, *, quick: bool = False) -> None:
        self.now = 1000.0
        super().__init__(lambda: self.now)
        self.quick = quick
        self.checks: list[str] = []
        self.busy = self.most = 0
        self.go = threading.Event()
        self._lock = threading.Lock()

    def _matches(self, stored: str, password: str) -> bool:
        with self._lock:
            self.checks.append(stored)
            self.busy += 1
            self.most = max(self.most, self.busy)
        try:
            if not self.quick:
                return super()._matches(stored, password)
            self.go.wait(10)
            return stored == f"hash of {password}"
        finally:
            with self._lock:
                self.busy -= 1


@pytest.fixture
def real() -> Iterator[Watched]:
    checker = Watched()
    yield checker
    checker.close()


@pytest.fixture
def quick() -> Iterator[Watched]:
    checker = Watched(quick=True)
    checker.go.set()
    yield checker
    checker.go.set()
    checker.close()


async def test_a_hash_has_the_second_recommended_cost_of_rfc_9106_and_its_own_salt(real: Watched) -> None:
    first, second = await real.hash("correct horse"), await real.hash("correct horse")
    assert first != second
    assert first.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert await real.verify("correct horse", first)
    assert not await real.verify("correct horse ", first)
    assert not await real.verify("\udcff", first)


async def test_an_unknown_user_costs_a_hash_of_the_same_form_and_is_never_right(real: Watched) -> None:
    known = await real.hash("correct horse")
    assert not await real.verify("correct horse", None)
    assert not await real.verify("correct horse", None)
    assert len(real.checks) == 2  # never remembered
    shape = [part and len(part) for part in known.split("$")]
    assert [part and len(part) for part in real.checks[0].split("$")] == shape
    assert real.checks[0].split("$")[:4] == known.split("$")[:4]


async def test_what_is_no_hash_matches_nothing(real: Watched) -> None:
    for stored in ("", "plain", "$argon2id$v=19$m=65536,t=3,p=4$$", "$2b$12$" + "x" * 53):
        assert not await real.verify("plain", stored)


async def test_a_right_pair_is_remembered_for_a_while_and_a_wrong_one_never(quick: Watched) -> None:
    for _ in range(3):
        assert await quick.verify("a", "hash of a")
        assert not await quick.verify("b", "hash of a")
    assert quick.checks == ["hash of a"] * 4
    quick.now += REMEMBERED_SECONDS
    assert await quick.verify("a", "hash of a")
    assert len(quick.checks) == 5


async def test_a_changed_hash_forgets_the_pair(quick: Watched) -> None:
    assert await quick.verify("a", "hash of a")
    assert not await quick.verify("a", "hash of another")
    assert quick.checks == ["hash of a", "hash of another"]


async def test_what_is_remembered_is_bounded_and_holds_no_password(
    quick: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "REMEMBERED", 10)
    for number in range(50):
        assert await quick.verify(str(number), f"hash of {number}")
    assert len(quick._right) == 10
    assert all(len(key) == 32 for key in quick._right)
    assert Passwords()._key != quick._key


async def test_layers_pulled_in_parallel_with_one_password_cost_one_hash(quick: Watched) -> None:
    assert all(await asyncio.gather(*(quick.verify("a", "hash of a") for _ in range(20))))
    assert len(quick.checks) == 1


async def test_hashes_run_beside_the_loop_few_at_once_and_a_long_queue_is_refused(quick: Watched) -> None:
    quick.go.clear()
    waiting = [asyncio.create_task(quick.verify(str(n), "hash of 1")) for n in range(MOST)]
    await eventually(lambda: quick.busy == AT_ONCE)  # and the loop goes on
    with pytest.raises(Throttled):
        await quick.verify("one more", "hash of 1")
    quick.go.set()
    assert sum(await asyncio.gather(*waiting)) == 1
    assert quick.most == AT_ONCE
    assert await quick.verify("1", "hash of 1")


async def test_who_gives_up_waiting_makes_room(quick: Watched) -> None:
    quick.go.clear()
    waiting = [asyncio.create_task(quick.verify(str(n), "hash of 1")) for n in range(MOST)]
    await asyncio.sleep(0.05)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    quick.go.set()
    assert await quick.verify("1", "hash of 1")


@pytest.mark.parametrize("password", ["", "short", "x" * 1025, "with\nline", "tab\tinside"])
def test_a_password_that_is_none_is_not_taken(password: str) -> None:
    with pytest.raises(InvalidInput):
        check_password(password)
