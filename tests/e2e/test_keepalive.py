"""A function whose idle window is learned, on a real server: accepted, shown, there again after a restart, and started
before the call that is expected."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from gateway.keepalive import Pattern, windows
from tests.support.database import edited
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

CODE = "def handler(event, context): ...\n"
HOUR = 3600.0


def idle(server: RunningServer) -> int:
    return int(server.get("/v1/functions/hourly", api=True).json()["instances"]["idle"])


def test_an_hourly_function_is_known_after_a_restart_and_is_warm_when_its_call_is_due(tmp_path: Path) -> None:
    pattern = Pattern()
    for _ in range(5):
        pattern.record(HOUR)
    with RunningServer(tmp_path / "data", "--driver", "oci") as server:
        server.push_code(tmp_path, "hourly", CODE, '[scale]\nidle = "learn"')
        assert "leaves 10m00s after a call: 0 of 3 idle times are known" in server.faas("describe", "hourly").stdout
        assert server.get("/function/hourly").status == 200
        assert server.stop() == 0

        with edited(server.data / "faas.db") as database:
            ((text, ended),) = database.execute("SELECT pattern, ended_at FROM idle_patterns").fetchall()
            assert json.loads(text)["seen"] == 0
            assert abs(time.time() - ended) < 60
            # Five hours of calls have been; the next one is due in two minutes, and expected in some seconds.
            due = time.time() - windows(pattern, 600.0).prewarm + 6
            database.execute("UPDATE idle_patterns SET pattern = ?, ended_at = ?", (pattern.dump(), due))

        server.start()
        page = server.faas("describe", "hourly").stdout
        assert "leaves 1m00s after a call, is back after 58m" in page
        assert "100% of the calls come 59m" in page
        deadline = time.monotonic() + 30
        while not idle(server):
            assert time.monotonic() < deadline, "nothing was started ahead"
            time.sleep(0.1)
        assert server.get("/function/hourly").status == 200
        counted = 'faas_prewarmed_total{function="hourly",outcome="used"} 1.0'
        assert counted in server.get("/metrics", api=True).text
        learned = json.loads(server.faas("describe", "hourly", "-o", "json").stdout)["learned"]
        assert learned["seen"] == 6
