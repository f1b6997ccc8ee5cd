"""A canary on a real server: a connection that is open sees it come, and go when it fails."""

from __future__ import annotations

import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

GOOD = "import os\ndef handler(event, context):\n    return os.environ.get('_X_AMZN_TRACE_ID', '')\n"
BAD = "def handler(event, context):\n    raise ValueError('worse')\n"


def test_a_failing_canary_gets_its_share_and_is_taken_back(server: RunningServer, folder: Path) -> None:
    server.push_code(folder, "weighed", GOOD)
    connection = HTTPConnection(server.public.removeprefix("http://"), timeout=20)

    def call() -> tuple[int, str]:
        """Each time the same bytes on the same connection."""
        connection.request("GET", "/function/weighed")
        response = connection.getresponse()
        return response.status, response.read().decode()

    try:
        status, trace_id = call()
        assert (status, trace_id.strip('"')[:7]) == (200, "Root=1-")
        server.push_code(folder, "weighed", BAD)
        rule = ("--weight", "v2=50", "--rollback", "errors=10%,least=10")
        assert server.faas("alias", "weighed", "live", "v1", *rule).stdout == "weighed:live\n"
        seen = [call()[0] for _ in range(60)]
        assert set(seen) == {200, 502}
        for _ in range(100):
            page = server.faas("describe", "weighed").stdout
            if "was taken back" in page:
                break
            time.sleep(0.1)
        assert "100.0 % of its" in page
        assert {call()[0] for _ in range(20)} == {200}
    finally:
        connection.close()
        server.faas("rm", "weighed", check=False)
