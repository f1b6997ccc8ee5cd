"""podman and buildah with everything that they keep in one folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.support.commands import run
from tests.support.recorded_registry import RecordedRegistry

ENGINE = """[engine]
cgroup_manager = "cgroupfs"
events_logger = "{events}"
lock_type = "file"
runtime = "{runtime}"
static_dir = "{folder}/static"
tmp_dir = "{folder}/tmp"
volume_path = "{folder}/volumes"
[network]
network_config_dir = "{folder}/networks"
"""
STORAGE = """[storage]
driver = "vfs"
graphroot = "{folder}/graph"
runroot = "{folder}/run"
"""


class Containers:
    """`program` is podman or buildah. They share the images in `folder`."""

    def __init__(self, program: str, folder: Path, registry: RecordedRegistry) -> None:
        self.program = program
        self.folder = folder
        self.registry = registry
        folder.mkdir(exist_ok=True)
        (folder / "containers.conf").write_text(ENGINE.format(folder=folder, events="none", runtime="runc"))
        (folder / "storage.conf").write_text(STORAGE.format(folder=folder))
        (folder / "auth.json").write_text("{}")
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "REGISTRY_AUTH_FILE": str(folder / "auth.json"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "HOME": str(folder),
        }

    def __call__(self, *words: str | Path, check: bool = True, stdin: str = "") -> str:
        return run(self.program, *words, check=check, stdin=stdin, env=self.environment)

    def login(self) -> str:
        words = ("login", "--tls-verify=false", "-u", "admin", "--password-stdin", self.registry.host)
        return self(*words, stdin=self.registry.password)

    def remove(self) -> None:
        """Everything that they keep."""
        self("rmi", "--all", "--force", check=False)
        shutil.rmtree(self.folder)
