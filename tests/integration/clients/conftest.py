"""Registries that real clients talk to: one per way to log in, for all of these files, each test with a name of its own
in it. When the last one is over, nothing that a client made is left on the machine.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.recorded_registry import RecordedRegistry

# Where clients keep things when nobody tells them another place.
USUAL_PLACES = (
    "/run/containers",
    "/run/libpod",
    "/run/netns",
    "/var/lib/cni",
    "/var/lib/containers/storage",
    "/dev/shm/libpod_lock",
    "/root/.config/containers",
    "/root/.local/share/containers",
)
SKOPEO_CACHE = Path("/var/lib/containers/cache/blob-info-cache-v1.boltdb")  # as root it cannot be told another place


class Registries:
    """By what they are for; started when first asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.running: dict[str, RecordedRegistry] = {}
        self._stack = stack

    def __call__(self, auth: str, purpose: str = "") -> RecordedRegistry:
        name = purpose or auth
        if name not in self.running:
            registry = RecordedRegistry(self.folder / name, auth)
            registry.start()
            self._stack.callback(registry.stop)
            self.running[name] = registry
        return self.running[name]


def _traces(folder: Path) -> set[str]:
    """Mounts and processes that have to do with `folder`, and the places where clients keep things by default."""
    mounts = {row for row in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in row}
    processes = {row for row in run("ps", "-eo", "pid=,args=").splitlines() if str(folder) in row}
    return mounts | processes | {place for place in USUAL_PLACES if Path(place).exists()}


@pytest.fixture(scope="package")
def client_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For whatever clients keep over several tests. Fails where they leave something behind."""
    folder = tmp_path_factory.mktemp("clients")
    before, had_cache = _traces(folder), SKOPEO_CACHE.exists()
    yield folder
    if not had_cache and "FAAS_TESTS_SHARED" not in os.environ:  # the parts of a whole run need one another's
        SKOPEO_CACHE.unlink(missing_ok=True)
    assert _traces(folder) - before == set()


@pytest.fixture(scope="package")
def registries(client_folder: Path) -> Iterator[Registries]:
    with ExitStack() as stack:
        yield Registries(client_folder, stack)


LOGIN_ASKED = pytest.mark.parametrize("registry", ["basic", "token"], indirect=True)


@pytest.fixture(params=["none", "basic", "token"])
def registry(request: pytest.FixtureRequest, registries: Registries) -> RecordedRegistry:
    """Open to everybody on this machine; asking for Basic; asking for the tokens of Docker's flow."""
    return registries(request.param)


@pytest.fixture
def open_registry(registries: Registries) -> RecordedRegistry:
    """Where the way to log in makes no difference."""
    return registries("none")


@pytest.fixture(params=["basic", "token"])
def public_registry(request: pytest.FixtureRequest, registries: Registries) -> RecordedRegistry:
    """Where everybody may pull what is below `public/`. It asks every client for tokens, however it was started."""
    registry = registries(request.param, f"public-{request.param}")
    assert registry.call("PUT", "/v2/_faas/policies/public/**", b'{"public": true}').status == 204
    return registry


@pytest.fixture
def stranger() -> str:
    """A user that nobody knows: failed logins are counted by name."""
    return f"stranger-{secrets.token_hex(4)}"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository that no other test uses."""
    return "t/" + re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
