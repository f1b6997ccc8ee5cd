"""What a server's start refuses before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from faas.errors import InvalidInput
from faas.server.main import _confined
from faas.settings import load


def test_an_account_that_the_server_would_not_become_is_refused(tmp_path: Path) -> None:
    """With an engine root stays, and who is not root stays who he is."""
    settings = load({"data": str(tmp_path), "driver": "docker", "user": "nobody"}, {})
    with pytest.raises(InvalidInput, match=r"^user: "), _confined(settings):
        pass


def test_settings_that_are_not_roots_own_are_not_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may write in the data folder must not say what root does."""
    written = tmp_path / "elsewhere"
    written.write_text('oci_runtime = "/tmp/evil"\n')
    (tmp_path / "config.toml").symlink_to(written)
    monkeypatch.setattr("faas.settings.os.geteuid", lambda: 0)
    if os.getuid() == 0:
        os.chown(written, 60_911, 60_911)
    with pytest.raises(InvalidInput, match="is not root's"):
        load({"data": str(tmp_path)}, {})
