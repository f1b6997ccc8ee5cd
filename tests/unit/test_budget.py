"""How much memory instances may have: the setting, the machine's, the own cgroup's."""

from __future__ import annotations

from pathlib import Path

import pytest

from faas.errors import InvalidInput, Unavailable
from worker.memory.budget import budget, machine_memory

MB, GB = 1_048_576, 1_073_741_824


@pytest.mark.parametrize(
    ("setting", "machine", "expected"),
    [(0, 64 * GB, 64 * GB - round(6.4 * GB)), (0, 2 * GB, 2 * GB - 512 * MB), (600, 2 * GB, 600 * MB),
     (2048, 2 * GB, 2 * GB)],
)  # fmt: skip
def test_the_budget_is_the_setting_or_the_machines_memory_less_a_tenth_and_512_mb_at_least(
    setting: int, machine: int, expected: int
) -> None:
    assert budget(setting, machine) == expected


def test_what_is_not_there_is_not_given_out() -> None:
    with pytest.raises(InvalidInput, match="memory_budget is 2049 MB, and this machine has 2048 MB"):
        budget(2049, 2 * GB)
    with pytest.raises(Unavailable, match="too little") as refused:
        budget(0, 600 * MB)
    assert "memory_budget" in refused.value.hint


def a_machine(root: Path, groups: str, limits: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal:        4194304 kB\nMemFree: 1 kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in limits.items():
        (root / "sys/fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {}, 4 * GB),
        ("0::/system.slice/faas.service/server\n", {"system.slice/faas.service/memory.max": f"{GB}\n"}, GB),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": f"{2 * GB}\n"}, 2 * GB),
        ("0::/a\n", {"a/memory.max": f"{8 * GB}\n"}, 4 * GB),
        ("0::/../../x\n", {"memory.max": f"{GB}\n"}, GB),
        ("5:cpu,memory:/docker/1\n0::/\n", {"memory/docker/1/memory.limit_in_bytes": f"{GB}\n"}, GB),
        ("5:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 4 * GB),
        ("5:cpu:/x\n", {"cpu/x/memory.max": "1\n"}, 4 * GB),
    ],
)
def test_our_own_cgroup_and_those_above_it_may_have_less_than_the_machine(
    tmp_path: Path, groups: str, limits: dict[str, str], expected: int
) -> None:
    assert machine_memory(a_machine(tmp_path, groups, limits)) == expected


def test_this_machine_has_some() -> None:
    assert GB / 4 < machine_memory() < 1 << 45
