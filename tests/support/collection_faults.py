"""A collection that is killed at each of its steps in turn: what it commits, and the files that it deletes.

    python -m tests.support.collection_faults FOLDER [COUNT]

prints one JSON object per run, as `tests.support.faults` does; with COUNT only so many steps, evenly spread.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

from faas.oci.digest import Digest
from registry.index import index
from registry.rules import Rule
from tests.support.faults import Faults, in_child, made
from tests.support.garbage import CONFIG, Bench, opened, reference

KEPT, DEAD, STRAY = (b"kept", b"signed", b"signature"), (b"dead", b"dead too", b"below an index"), b"stray"
RULE = Rule(keep_last=2, untagged_days=0)


async def prepare(data: Path) -> list[str]:
    """Images that stay, some that go: by their tag, by nothing at all, with an index; an empty repository; a stray."""
    async with opened(data) as bench:
        await bench.image("app", b"dead", "oldest")
        signed = await bench.image("app", b"signed", "signed")
        await bench.image("app", b"signature", subject=reference(signed))
        await bench.image("app", b"kept", "latest")
        await bench.image("old", b"dead too")
        await bench.list_of("app", [await bench.image("app", b"below an index")])
        bench.registry.blobs.path(Digest.of(STRAY)).write_bytes(STRAY)
    return []


async def crash(data: Path, at: int) -> list[str]:
    faults = Faults(at)
    faults.install()
    faults.around(os, "unlink", lambda path: "blob" if len(Path(path).name) == 64 else "other")
    async with opened(data) as bench:
        await bench.registry._background.cancel()
        faults.armed = True
        await bench.collect(RULE, expire=True)
        faults.armed = False
    return faults.names


async def found_wrong(data: Path) -> list[str]:
    """After a restart what lives is whole; and another collection ends this one."""
    async with opened(data) as bench:
        wrong = await _lacking(bench)
        await bench.collect(RULE, expire=True)
        wrong += await _lacking(bench)
        files = {path.name for path in (data / "blobs").glob("*/*/*")}
        if files != {Digest.of(blob).hex for blob in (*KEPT, CONFIG)}:
            wrong.append(f"files are left: {files}")
        for query, left in (
            ("SELECT name FROM repositories", {"app"}),
            ("SELECT tag FROM tags", {"signed", "latest"}),
            ("SELECT digest FROM blobs", {str(Digest.of(blob)) for blob in (*KEPT, CONFIG)}),
            ("SELECT digest FROM repository_blobs", {str(Digest.of(blob)) for blob in (*KEPT, CONFIG)}),
        ):
            if (found := {row[0] for row in await bench.ask(query)}) != left:
                wrong.append(f"{query}: {found}")
        if (count := len(await bench.ask("SELECT * FROM manifests"))) != len(KEPT):
            wrong.append(f"{count} manifests are left")
    return wrong


async def _lacking(bench: Bench) -> list[str]:
    """What is missing of the images that stay."""
    wrong = [f"{blob!r} is gone" for blob in (*KEPT, CONFIG) if not await bench.file(blob)]
    wrong += [f"{tag} is gone" for tag in ("signed", "latest") if tag not in await bench.tags("app")]
    seen = {row[0] for row in await bench.ask("SELECT digest FROM repository_blobs WHERE repository = 'app'")}
    wrong += [f"{blob!r} is not seen" for blob in (*KEPT, CONFIG) if str(Digest.of(blob)) not in seen]
    for (digest,) in await bench.ask("SELECT digest FROM blobs WHERE NOT leaving"):
        if await bench.registry.blobs.size(Digest.parse(digest)) is None:
            wrong.append(f"the row of {digest} has no file")
    return wrong


def main(folder: Path, count: int | None) -> None:
    warnings.simplefilter("ignore")
    index.LEASE_SECONDS = -1.0
    prepared = made(folder / "prepared")
    in_child(lambda: asyncio.run(prepare(prepared)))

    def copy(name: str) -> Path:
        return Path(shutil.copytree(prepared, folder / name))

    names = in_child(lambda: asyncio.run(crash(copy("whole"), -1)))
    assert names is not None
    print(json.dumps({"steps": names}), flush=True)
    chosen = range(len(names)) if count is None else [len(names) * n // count for n in range(count)]
    for at in chosen:
        data = copy(f"step{at}")
        killed = in_child(lambda: asyncio.run(crash(data, at))) is None  # noqa: B023 - run at once
        wrong = in_child(lambda: asyncio.run(found_wrong(data)))  # noqa: B023
        print(json.dumps({"step": names[at], "killed": killed, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
