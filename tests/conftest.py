"""What all tests share. A missing service skips on a laptop and fails in CI (`CI=true`)."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import templates
from tests.support.queue import Queue

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


def _docker_answers() -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2)
            probe.connect("/var/run/docker.sock")
    except OSError:
        return False
    return True


SERVICES: dict[str, tuple[str, Callable[[], bool]]] = {
    "root": ("needs root on Linux", lambda: sys.platform == "linux" and os.geteuid() == 0),
    "oci": ("needs runc or crun", lambda: bool(shutil.which("runc") or shutil.which("crun"))),
    "docker": ("needs a Docker Engine at /var/run/docker.sock", _docker_answers),
    "skopeo": ("needs skopeo", lambda: bool(shutil.which("skopeo"))),
    "podman": ("needs podman", lambda: bool(shutil.which("podman"))),
    "buildah": ("needs buildah", lambda: bool(shutil.which("buildah"))),
    "containerd": ("needs containerd and ctr", lambda: bool(shutil.which("containerd") and shutil.which("ctr"))),
    "docker_registry": ("needs Debian's docker-registry", lambda: bool(shutil.which("docker-registry"))),
    "umoci": ("needs umoci", lambda: bool(shutil.which("umoci"))),
    "prometheus": ("needs prometheus", lambda: bool(shutil.which("prometheus"))),
    "caddy": ("needs caddy", lambda: bool(shutil.which("caddy"))),
    "nginx": ("needs nginx", lambda: bool(shutil.which("nginx"))),
    "npm": ("needs npm and an npm index", lambda: bool(shutil.which("npm"))),
}
_found: dict[str, bool] = {}


if not IN_CI:  # there hypothesis takes its own profile, which has no deadline either
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")

SOAK = bool(os.environ.get("FAAS_SOAK"))  # set by ./tests/run soak


def pytest_configure(config: pytest.Config) -> None:
    # A shell's job in the background ignores Ctrl-C, and so would all that tests start and then interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if shared := os.environ.get("FAAS_TESTS_SHARED"):  # set by ./tests/run, for its parts that run side by side
        config.pluginmanager.register(Queue(Path(shared)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("soak") and not SOAK:
            item.add_marker(pytest.mark.skip(reason="long: ./tests/run soak"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, (reason, probe) in SERVICES.items():
        if item.get_closest_marker(name) is None:
            continue
        if name not in _found:
            _found[name] = probe()
        if not _found[name]:
            pytest.fail(reason) if IN_CI else pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def new_databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        templates.copied(tmp_path_factory.mktemp("databases"), patch)
        yield


@pytest.fixture(scope="session")
def project_root() -> Path:
    return Path(__file__).resolve().parent.parent
