"""Which ids of the host an instance has, and whose the files of its layers are: pure sums."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from worker.drivers.oci import id_maps as ownership
from worker.drivers.oci.id_maps import IDS, SIZE, Extent
from worker.drivers.oci.identities import FIRST, SECTIONS, SLOTS, Identity, first_id, section_of

BASE = 1 << 28
USERS = [1, 2, 1000, 65_533, 65_534, 65_535, 100_000, 2**31 - 2]


def outside(rows: tuple[Extent, ...], inside: int) -> int | None:
    """What an id is by a map; None where it is nobody's."""
    return next((there + inside - here for here, there, count in rows if here <= inside < here + count), None)


def overlap(rows: tuple[Extent, ...], side: int) -> bool:
    spans = sorted((row[side], row[side] + row[2]) for row in rows)
    return any(first[1] > second[0] for first, second in itertools.pairwise(spans))


@pytest.mark.parametrize("user", USERS)
def test_a_user_and_root_are_two_ids_of_the_instances_own(user: int) -> None:
    rows = ownership.extents(BASE, user)
    assert outside(rows, 0) == BASE
    assert outside(rows, user) == ownership.outside(BASE, user)
    assert not overlap(rows, 0)
    assert not overlap(rows, 1)
    assert all(there >= BASE and there + count <= BASE + SIZE for _, there, count in rows)


@pytest.mark.parametrize("user", USERS)
def test_under_a_writable_root_files_of_root_are_the_users_and_the_other_way_round(user: int) -> None:
    rows, plain = ownership.swapped(BASE, user), ownership.extents(BASE, user)
    assert outside(rows, 0) == outside(plain, user)
    assert outside(rows, user) == outside(plain, 0)
    assert {outside(rows, n) == outside(plain, n) for n in (3, 4, 999, 1001, 65_532)} == {True}
    assert not overlap(rows, 0)
    assert not overlap(rows, 1)
    assert all(there >= BASE and there + count <= BASE + SIZE and count > 0 for _, there, count in rows)


@pytest.mark.parametrize("user", USERS)
def test_without_ids_of_its_own_every_other_id_stays(user: int) -> None:
    rows = ownership.exchanged(user)
    assert (outside(rows, 0), outside(rows, user)) == (user, 0)
    assert outside(rows, user + 1) == user + 1
    assert sum(count for _, _, count in rows) == IDS


def test_a_map_is_written_as_the_kernel_reads_it() -> None:
    assert ownership.lines(ownership.extents(BASE, 70_000)) == f"0 {BASE} 65535\n70000 {BASE + 65_535} 1\n"


def test_no_two_slots_of_no_two_servers_share_an_id() -> None:
    assert first_id(0, 0) == FIRST
    assert first_id(0, SLOTS - 1) + SIZE == first_id(1, 0)
    assert first_id(SECTIONS - 1, SLOTS - 1) + SIZE <= 2**31  # what runtimes take for a user
    assert {section_of(f"server{n}") for n in range(200)} == set(range(SECTIONS))


def test_layers_are_seen_by_their_short_names_in_the_view() -> None:
    layers = (Path("/run/faas/x/l/1f"), Path("/run/faas/x/f/abcd"))
    mapped = Identity(1, (7, 7), (9, 9), view=Path("/run/faas/x/ids/1"))
    assert mapped.layers(layers) == (Path("/run/faas/x/ids/1/l/1f"), Path("/run/faas/x/ids/1/f/abcd"))
    assert Identity(1, (7, 7), (9, 9)).layers(layers) == layers
