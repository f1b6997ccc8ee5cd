"""The data folder of every release, opened by this one: what was there is there."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import tarfile
import time
from pathlib import Path

import pytest

from faas.errors import InvalidInput
from faas.metrics import Metrics
from faas.state import schema
from faas.state.session import Database
from registry.index.index import MIGRATIONS
from registry.service import Registry
from tests.support.control import control

FOLDER = Path(__file__).resolve().parent.parent / "releases"
RELEASES = sorted(path.name.partition(".")[0] for path in FOLDER.glob("*.tar.gz"))


def unpacked(release: str, data: Path) -> None:
    with tarfile.open(FOLDER / f"{release}.tar.gz") as archive:
        archive.extractall(data, filter="data")
    for name in ("faas", "registry"):
        with contextlib.closing(sqlite3.connect(data / f"{name}.db")) as database:
            database.executescript((data / f"{name}.sql").read_text())
            if name == "faas":  # dead letters go after two weeks, and releases stay
                database.execute("UPDATE dead_letters SET died_at = ?", (time.time(),))
                database.commit()


@pytest.fixture(params=RELEASES)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    unpacked(request.param, tmp_path)
    return tmp_path


def test_each_version_of_the_schema_that_was_released_has_its_data_folder() -> None:
    """0002 of the gateway's came with 0003, and 0007 is not released yet."""
    gateway, registry = zip(*((name[8:12], name[-4:]) for name in RELEASES), strict=True)
    assert schema.versions() - set(gateway) == {"0002", "0007"}
    assert schema.versions(MIGRATIONS) == set(registry)
    assert all(path.stat().st_size < 100_000 for path in FOLDER.iterdir())


async def test_functions_revisions_aliases_schedules_tokens_and_what_is_queued_are_as_they_were(data: Path) -> None:
    async with control(data) as server:
        function = (await server.call("GET", "/v1/functions/hello")).json()
        assert (function["revision"], function["memory"], function["aliases"]) == (2, 256, {"first": 1, "live": 2})
        assert function["spec"]["env"] == {"LEVEL": "info"}
        (schedule,) = (await server.call("GET", "/v1/schedules")).json()["schedules"]
        assert (schedule["name"], schedule["cron"], schedule["timezone"]) == ("nightly", "0 3 * * *", "Europe/Berlin")
        viewer = (data / "viewer-token").read_text()
        assert (await server.call("GET", "/v1/functions", token=viewer)).status == 200
        assert (await server.call("DELETE", "/v1/functions/hello", token=viewer)).status == 403
        (letter,) = (await server.call("GET", "/v1/dead-letters")).json()["dead_letters"]
        assert letter["error_type"] == "ValueError"
        assert (await server.call("GET", "/function/hello", public=True)).status == 200
        changed = {"spec": {"name": "hello", "public": True, "memory": 512}, "image": function["image"]}
        assert (await server.call("PUT", "/v1/functions/hello", changed)).json()["revision"] == 3
    with contextlib.closing(sqlite3.connect(data / "faas.db")) as database:
        # The schedule is another matter: what it missed since then has fired.
        columns = "function, status, payload"
        events = database.execute(f"SELECT {columns} FROM invocations WHERE trigger = 'async'").fetchall()
    assert events == [("hello", "pending", b"an event")]


async def test_images_are_as_they_were(data: Path) -> None:
    registry = await Registry.open(
        data, f"sqlite+aiosqlite:///{data / 'registry.db'}", accounts=None, metrics=Metrics("test")
    )
    try:
        for repository, tag in (("hello", "v1"), ("team/other", "stable")):
            stored = await registry.index.manifest(repository, tag)
            assert stored is not None
            assert stored.is_intact()
            (layer,) = json.loads(stored.raw)["layers"]
            assert layer["digest"].partition(":")[2] in {path.name for path in (data / "blobs").rglob("*")}
        found = await registry.collect()
        assert (found.blobs, found.files) == (0, 0), "what is tagged stays"
    finally:
        await registry.close()


@pytest.mark.parametrize("migrations", [schema.MIGRATIONS, MIGRATIONS], ids=["gateway", "registry"])
async def test_a_downgrade_is_refused_with_both_versions_and_what_to_do(tmp_path: Path, migrations: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'some.db'}"
    await (await Database.open(url, migrations)).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "some.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '0999'")
    with pytest.raises(InvalidInput) as refused:
        await Database.open(url, migrations)
    assert "0999" in refused.value.message
    assert max(schema.versions(migrations)) in refused.value.message
    assert "restore a backup" in refused.value.hint
