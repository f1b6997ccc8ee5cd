"""File systems of instances: those of one size are alike, and share nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.sandboxes import MB
from worker.drivers.oci import scratch
from worker.drivers.oci.scratch import ScratchPool

pytestmark = pytest.mark.root
SIZE = 64 * MB


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[ScratchPool]:
    with ThreadPoolExecutor(2) as threads:
        made = ScratchPool(tmp_path / "images", tmp_path / "points", threads)
        made.open()
        yield made
        await made.close()
    assert list((tmp_path / "images").iterdir()) == []
    assert list((tmp_path / "points").iterdir()) == []


async def test_each_is_empty_and_as_large_as_the_first_which_mkfs_made(pool: ScratchPool) -> None:
    taken = [await pool.take(SIZE) for _ in range(5)]  # more than were ready: one by mkfs, the others copied
    for number, one in enumerate(taken):
        (one.tmp / "mine").write_text(str(number))
    assert [(one.tmp / "mine").read_text() for one in taken] == ["0", "1", "2", "3", "4"]
    sizes = {(found.f_blocks, found.f_files) for found in (os.statvfs(one.folder) for one in taken)}
    assert len(sizes) == 1
    assert min(os.statvfs(one.folder).f_bavail * 4096 for one in taken) >= SIZE - MB
    for one in taken:
        await pool.discard(one)


def test_a_file_without_holes_is_nothing_to_keep_in_memory(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.write_bytes(b"x" * (scratch.PATTERN_BYTES + 1))
    assert scratch._pattern(whole) is None


@pytest.mark.parametrize("size", [SIZE, 512 * MB])
def test_a_copy_is_the_original_byte_for_byte_and_sound(tmp_path: Path, size: int) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    scratch._make_file_system(original, size)
    pattern = scratch._pattern(original)
    assert pattern is not None
    scratch._copy_file_system(copy, size, pattern)
    subprocess.run(["cmp", original, copy], check=True)
    assert copy.stat().st_blocks <= original.stat().st_blocks
    subprocess.run(["e2fsck", "-f", "-n", copy], check=True, capture_output=True)
