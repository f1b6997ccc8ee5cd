"""What an engine is asked for: the arguments of the two containers of a sandbox, its limits among them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faas.secret import FOLDERS
from worker.drivers.base import SandboxSpec
from worker.drivers.linux.cgroups import PERIOD_MICROSECONDS, quota

PAUSE_MEMORY = 8 << 20  # the engine's least is 6 MiB
PAUSE_PIDS = 32  # it is one; before, it is a runtime of several threads
SHM_BYTES = 1 << 20
_ALIKE: dict[str, Any] = {
    "cap_drop": ["ALL"],
    "read_only": True,
    "restart_policy": {"Name": "no"},
    "log_config": {"type": "none", "config": {}},
}


def pause_container(
    api: Any, image: str, hostname: str, network: str, labels: Mapping[str, str], *, processes: int = 0
) -> dict[str, Any]:
    """It holds the network namespace and waits."""
    host = api.create_host_config(
        **_ALIKE,
        network_mode=network,
        mem_limit=PAUSE_MEMORY,
        memswap_limit=PAUSE_MEMORY,
        pids_limit=PAUSE_PIDS,
        ulimits=_limits(64, processes),
        security_opt=["no-new-privileges:true"],
        sysctls={"net.ipv4.ip_unprivileged_port_start": "0"},
    )
    return {
        "image": image,
        "user": "65534:65534",
        "hostname": hostname,
        "labels": dict(labels),
        "host_config": host,
    }


def function_container(
    api: Any,
    spec: SandboxSpec,
    labels: Mapping[str, str],
    *,
    pause: str,
    seccomp: str,
    tmp: Path | None,
    secrets: Path | None,
    cgroup_parent: str | None,
    processes: int = 0,
) -> dict[str, Any]:
    """The function's own, in the network namespace of the container `pause`. `seccomp`: a list in JSON, or its path."""
    uid, gid = spec.user
    host = api.create_host_config(
        **_ALIKE,
        **cpu_limit(spec.cpus),
        network_mode=f"container:{pause}",
        mem_limit=spec.memory_bytes,
        memswap_limit=spec.memory_bytes,
        pids_limit=spec.pids,
        shm_size=SHM_BYTES,
        ulimits=_limits(spec.open_files, processes),
        security_opt=["no-new-privileges:true", f"seccomp={seccomp}"],
        binds=[
            *([f"{tmp}:/tmp:rw"] if tmp else []),
            *(f"{secrets}:{folder}:ro" for folder in FOLDERS if secrets),
        ],
        cgroup_parent=cgroup_parent,
    )
    return {
        "image": str(spec.image.handle),
        "entrypoint": list(spec.args[:1]),
        "command": list(spec.args[1:]),
        "environment": spec.environment(),
        "working_dir": spec.workdir or "/",
        "user": f"{uid}:{gid}",
        "labels": dict(labels),
        "host_config": host,
    }


def _limits(open_files: int, processes: int) -> list[dict[str, Any]]:
    """Of a process. `processes` is of all that its user has anywhere, so it is no limit of ours; 0: the engine's."""
    values = {"nofile": open_files, "core": 0, **({"nproc": processes} if processes else {})}
    return [{"name": name, "soft": value, "hard": value} for name, value in values.items()]


def cpu_limit(cpus: float) -> dict[str, int]:
    return {"cpu_period": PERIOD_MICROSECONDS, "cpu_quota": quota(cpus)}
