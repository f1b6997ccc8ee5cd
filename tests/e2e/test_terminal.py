"""README's picture shows what a terminal shows."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.support.server import RunningServer
from tests.support.terminal import PICTURE, lines_of, masked, session

pytestmark = [pytest.mark.root, pytest.mark.oci]


def test_the_picture_of_the_terminal_is_what_its_commands_write_today(
    server: RunningServer, project_root: Path, tmp_path: Path
) -> None:
    picture = PICTURE.read_text()
    assert masked(session(server, tmp_path)) == masked(lines_of(picture)), "python -m tests.support.terminal"
    assert len(ET.fromstring(picture).findall(".//{*}text")) == len(lines_of(picture))
    assert len(picture) < 30_000
    assert f"({PICTURE.relative_to(project_root)})" in (project_root / "README.md").read_text()
