"""The launcher's look at the certificate of the server's own CA."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from faas.tls_folder import TlsFolder
from tests.support.control import until
from worker.launcher.renewal import Renewal


async def test_it_goes_on_after_a_failure_and_issues_what_is_due(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = TlsFolder(tmp_path / "tls")
    folder.set_own("box.example", (), datetime.now(UTC) - timedelta(days=300))
    due, ca = folder.server_file.read_bytes(), (tmp_path / "tls" / "ca.pem").read_bytes()
    (tmp_path / "tls" / "ca.pem").write_bytes(b"rubbish")
    renewal = Renewal(tmp_path, look_seconds=0.05)
    renewal.start()
    try:
        await until(lambda: "cannot be renewed" in caplog.text, 30)
        (tmp_path / "tls" / "ca.pem").write_bytes(ca)
        await until(lambda: folder.server_file.read_bytes() != due, 30)
    finally:
        await renewal.stop()
    assert "ca.pem cannot be used" in caplog.text
