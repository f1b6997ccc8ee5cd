"""An export that is cancelled while a thread of its own works."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from faas.cli.bars import Display
from faas.cli.image_export import Plan, transfer
from faas.oci.client import RegistryClient
from faas.oci.contents import Contents
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.layout import BlobWriter, LayoutFolder

BLOB = b"a layer" * 1000
DESCRIPTOR = Descriptor("application/octet-stream", Digest.of(BLOB), len(BLOB))


class OneBlob:
    """A registry."""

    @asynccontextmanager
    async def open_blob(self, repository: str, digest: Digest) -> AsyncIterator[AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            yield BLOB

        yield chunks()


def opened() -> list[str]:
    """What this process's descriptors lead to."""
    links = list[str]()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            links.append(str(descriptor.readlink()))
    return links


@pytest.mark.parametrize("step", ["open", "pwrite", "fsync"])
async def test_a_cancelled_export_ends_after_its_threads_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """As what is closed while a thread still writes may be another's file by then."""
    reached, may_go_on = threading.Event(), threading.Event()
    original = getattr(os, step)

    def slow(what: Any, *rest: Any) -> Any:
        done = original(what, *rest)
        if not isinstance(what, Path) or DESCRIPTOR.digest.hex in what.name:
            reached.set()
            assert may_go_on.wait(10)
            if isinstance(what, int):
                os.fstat(what)  # it is ours still
        return done

    plan = Plan(contents={"r": Contents(blobs={DESCRIPTOR.digest: DESCRIPTOR})})
    display = Display(io.StringIO(), live=False)
    with LayoutFolder(tmp_path / "to") as layout:
        layout.begin([], [DESCRIPTOR])
        monkeypatch.setattr(os, step, slow)
        task = asyncio.create_task(transfer(cast(RegistryClient, OneBlob()), plan, layout, display))
        assert await asyncio.to_thread(reached.wait, 10)
        task.cancel()
        await asyncio.wait((task,), timeout=0.05)
        assert not task.done()
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not [link for link in opened() if DESCRIPTOR.digest.hex in link]
    assert list((tmp_path / "to").glob(".faas-part-*")) == []


def test_a_part_that_is_given_up_is_gone(tmp_path: Path) -> None:
    with LayoutFolder(tmp_path / "to") as layout:
        layout.begin([], [DESCRIPTOR])
        writer: BlobWriter = layout.blob(DESCRIPTOR)
        writer.write(BLOB)
        writer.close()
        assert not layout.has(DESCRIPTOR)
    assert list((tmp_path / "to").glob(".faas-part-*")) == []
