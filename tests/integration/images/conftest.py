"""Two registries, and `faas` against the first of them; the control API is a fake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import CommandLine
from tests.support.fake_api import FakeApi
from tests.support.image_cli import (
    at,
)
from tests.support.registry import RegistryProcess, registry_process


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with registry_process(tmp_path_factory.mktemp("source")) as running:
        yield running


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with registry_process(tmp_path_factory.mktemp("target")) as running:
        yield running


@pytest.fixture
def faas(
    tmp_path: Path, source: RegistryProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[CommandLine]:
    """Against `source`, until `at` says another one."""
    with FakeApi() as api:
        home = tmp_path / "home"
        home.mkdir()
        command = CommandLine(api, home, capsys, monkeypatch)
        at(command, source)
        yield command
