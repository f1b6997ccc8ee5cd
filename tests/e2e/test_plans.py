"""Usage plans over the real server: a quota holds to the last unit, and is kept through stops and kills."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from pathlib import Path

from tests.e2e.test_auth import push
from tests.support.server import RunningServer

CODE = """
def handler(event, context):
    return "plans"
"""
QUOTA = 30


def stored(server: RunningServer) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{server.data / 'faas.db'}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT coalesce(sum(used), 0) FROM plan_usage").fetchone()[0])


def test_a_quota_is_kept_through_a_stop_and_a_kill(tmp_path: Path) -> None:
    with RunningServer(tmp_path / "data", "--driver", "oci") as server:
        push(server, tmp_path, "metered", CODE, "[auth]\nkey = true\n")
        server.faas("plan", "set", "gold", "--quota", str(QUOTA), "--period", "month")
        key = server.faas("key", "create", "partner", "--plan", "gold").stdout.strip()

        def call() -> int:
            return server.get("/function/metered", headers={"X-Api-Key": key}).status

        def used() -> int:
            shown = json.loads(server.faas("plan", "usage", "gold", "--key", "partner", "-o", "json").stdout)
            (row,) = shown["usage"]
            assert row["left"] == QUOTA - row["used"]
            return int(row["used"])

        assert [call() for _ in range(10)] == [200] * 10
        assert used() == 10
        assert server.stop() == 0
        server.start()
        assert used() == 10
        assert [call() for _ in range(10)] == [200] * 10
        deadline = time.monotonic() + 30
        while stored(server) < 20:  # it is written each second
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert [call() for _ in range(5)] == [200] * 5
        server.kill()
        server.start()
        kept = used()
        assert 20 <= kept <= 25
        statuses = [call() for _ in range(QUOTA - kept + 3)]
        assert statuses == [200] * (QUOTA - kept) + [429] * 3
        refused = server.get("/function/metered", headers={"X-Api-Key": key})
        assert refused.headers["Reason"] == "QuotaExceeded"
        assert 0 < int(refused.headers["Retry-After"]) <= 31 * 86_400
        assert "partner  30    0" in server.faas("plan", "usage", "gold").stdout
        server.faas("maintenance", "on", "--function", "metered", "--message", "back soon")
        server.kill()
        server.start()
        closed = server.get("/function/metered")
        assert (closed.status, closed.json()["error"]["message"]) == (503, "back soon")
        assert "metered" in server.faas("maintenance", "ls").stdout
        server.faas("maintenance", "off", "--function", "metered")
        assert server.get("/function/metered").status == 401
