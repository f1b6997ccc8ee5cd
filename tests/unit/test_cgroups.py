"""cgroup v1 and v2 against folders that look like them: no root, and v2 where the machine has v1."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from worker.drivers.base import SandboxStats
from worker.drivers.linux.cgroups import (
    CgroupsV1,
    CgroupsV2,
    counters_at,
    for_machine,
    is_v2,
    quota,
    starting_shares,
    thawing_at,
)

V2_FILES = {
    "memory.stat": "anon 1000\nfile 999999\nkernel 200\nshmem 30\nslab 100\n",
    "memory.events": "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 1\n",
    "pids.current": "7\n",
    "cpu.stat": "usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n",
    "cpu.max": "max 100000\n",
    "cpu.weight": "1\n",
    "cgroup.procs": "",
    "cgroup.kill": "",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    return write(
        tmp_path / "cgroup", {"cgroup.controllers": "cpuset cpu io memory pids\n", "cgroup.subtree_control": ""}
    )


def own_group(tmp_path: Path, path: str) -> Path:
    file = tmp_path / "self-cgroup"
    file.write_text(f"0::{path}\n")
    return file


def test_the_version_is_told_by_the_root(v2: Path, tmp_path: Path) -> None:
    assert is_v2(v2)
    assert isinstance(for_machine("id", v2), CgroupsV2)
    assert isinstance(for_machine("id", tmp_path), CgroupsV1)


@pytest.mark.parametrize(("cpus", "microseconds"), [(1.0, 100_000), (0.072, 7_200), (2.5, 250_000), (0.001, 1_000)])
def test_cpus_become_a_quota_above_the_kernels_least(cpus: float, microseconds: int) -> None:
    assert quota(cpus) == microseconds


def test_v2_counts_memory_without_file_cache(v2: Path, tmp_path: Path) -> None:
    groups = CgroupsV2("abcd", v2, own_group(tmp_path, "/"))
    write(v2 / "faas/abcd/i1", V2_FILES)
    assert groups.stats("i1") == SandboxStats(1230, 2, 7, 2.5)
    assert groups.oom_kills("i1") == 2
    assert groups.path("i1") == "/faas/abcd/i1"
    assert groups.ids() == ["i1"]


def test_v2_before_linux_5_18_has_no_sum_of_kernel_memory(v2: Path, tmp_path: Path) -> None:
    groups = CgroupsV2("abcd", v2, own_group(tmp_path, "/"))
    write(v2 / "faas/abcd/i1", {"memory.stat": "anon 1000\nshmem 30\nslab 100\n"})
    assert groups.stats("i1").memory_bytes == 1130


def test_v2_writes_the_quota_with_its_period(v2: Path, tmp_path: Path) -> None:
    groups = CgroupsV2("abcd", v2, own_group(tmp_path, "/"))
    folder = write(v2 / "faas/abcd/i1", V2_FILES)
    groups.set_cpus("i1", 0.25)
    assert (folder / "cpu.max").read_text() == "25000 100000"
    assert (folder / "cpu.weight").read_text() == "100", "from here on it weighs as much as others"


def test_v2_kills_the_group_at_one_stroke(v2: Path, tmp_path: Path) -> None:
    groups = CgroupsV2("abcd", v2, own_group(tmp_path, "/"))
    folder = write(v2 / "faas/abcd/i1", V2_FILES)
    groups.kill("i1")
    assert (folder / "cgroup.kill").read_text() == "1"


def test_v2_opens_below_the_root_where_nothing_is_delegated(v2: Path, tmp_path: Path) -> None:
    for folder in ("faas", "faas/abcd"):
        write(v2 / folder, {"cgroup.subtree_control": ""})
    groups = CgroupsV2("abcd", v2, own_group(tmp_path, "/user.slice/session-1.scope"))
    groups.open()
    for folder in ("", "faas", "faas/abcd"):
        assert (v2 / folder / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_v2_opens_below_the_own_group_where_it_is_delegated(
    v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write(v2 / "system.slice/faas.service", {"cgroup.procs": "1\n2\n", "cgroup.subtree_control": ""})
    write(v2 / "system.slice", {"cgroup.subtree_control": "cpu memory pids"})
    write(own / "instances", {"cgroup.subtree_control": ""})
    monkeypatch.setattr("os.getxattr", lambda path, name: b"1" if path == own else b"0")
    groups = CgroupsV2("abcd", v2, own_group(tmp_path, "/system.slice/faas.service"))
    groups.open()
    assert groups.path("i1") == "/system.slice/faas.service/instances/i1"
    assert (own / "server/cgroup.procs").read_text() == "2"  # each write moves one process
    assert (own / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    # A server that starts again is in `server` already.
    again = CgroupsV2("abcd", v2, own_group(tmp_path, "/system.slice/faas.service/server"))
    again.open()
    assert again.path("i1") == "/system.slice/faas.service/instances/i1"


def test_v2_says_which_controllers_are_missing(v2: Path, tmp_path: Path) -> None:
    (v2 / "cgroup.controllers").write_text("cpu pids\n")
    with pytest.raises(OSError, match="memory"):
        CgroupsV2("abcd", v2, own_group(tmp_path, "/")).open()


def test_v2_ends_an_instance_as_a_whole_when_memory_is_out(v2: Path, tmp_path: Path) -> None:
    resources = CgroupsV2("abcd", v2, own_group(tmp_path, "/")).memory(64)
    assert resources == {"memory": {"limit": 64, "swap": 64}, "unified": {"memory.oom.group": "1"}}


def test_v1_reads_a_file_in_each_tree(tmp_path: Path) -> None:
    groups = CgroupsV1("abcd", tmp_path)
    write(
        tmp_path / "memory/faas/abcd/i1",
        {
            "memory.stat": "rss 1\ncache 999\ntotal_rss 1000\ntotal_shmem 30\ntotal_cache 999\n",
            "memory.kmem.usage_in_bytes": "200\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
        },
    )
    write(tmp_path / "pids/faas/abcd/i1", {"pids.current": "3\n"})
    write(tmp_path / "cpuacct/faas/abcd/i1", {"cpuacct.usage": "1500000000\n"})
    write(tmp_path / "cpu/faas/abcd/i1", {"cpu.cfs_quota_us": "-1\n", "cpu.shares": "2\n"})
    assert groups.stats("i1") == SandboxStats(1230, 4, 3, 1.5)
    groups.set_cpus("i1", 0.5)
    assert (tmp_path / "cpu/faas/abcd/i1/cpu.cfs_quota_us").read_text() == "50000"
    assert (tmp_path / "cpu/faas/abcd/i1/cpu.shares").read_text() == "1024"
    assert groups.ids() == ["i1"]


def test_v1_limits_swap_only_where_the_kernel_counts_it(tmp_path: Path) -> None:
    groups = CgroupsV1("abcd", tmp_path)
    (tmp_path / "memory").mkdir()
    assert groups.memory(64) == {"memory": {"limit": 64}}
    (tmp_path / "memory/memory.memsw.limit_in_bytes").touch()
    assert groups.memory(64) == {"memory": {"limit": 64, "swap": 64}}


def test_what_has_ended_counts_nothing(v2: Path, tmp_path: Path) -> None:
    nothing = SandboxStats(0, 0, 0, 0.0)
    assert CgroupsV2("abcd", v2, own_group(tmp_path, "/")).stats("gone") == nothing
    assert CgroupsV1("abcd", tmp_path).stats("gone") == nothing


def test_a_process_of_another_pid_namespace_is_not_signalled(
    v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is listed as 0, and a signal to 0 would end our own group of processes."""
    signalled: list[int] = []
    folder = write(v2 / "faas/abcd/i1", {"cgroup.procs": "0\n4194000\n"})

    def kill(process: int, number: int) -> None:
        signalled.append(process)
        (folder / "cgroup.procs").write_text("0\n")

    monkeypatch.setattr("os.kill", kill)
    CgroupsV2("abcd", v2, own_group(tmp_path, "/")).kill("i1")
    assert set(signalled) == {4194000}


def test_what_was_killed_and_is_ours_is_buried_and_what_does_not_die_is_not_waited_for(
    v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.drivers.linux.groups.SWEEP_SECONDS", 0.2)
    monkeypatch.setattr("worker.drivers.linux.groups.BURY_SECONDS", 0.2)
    groups = CgroupsV2("abcd", v2, own_group(tmp_path, "/"))
    with subprocess.Popen(["sleep", "60"]) as mortal, subprocess.Popen(["sleep", "60"]) as immortal:
        folder = write(v2 / "faas/abcd/i1", {"cgroup.procs": f"{mortal.pid}\n{immortal.pid}\n"})
        real = os.kill
        monkeypatch.setattr("os.kill", lambda pid, number: None if pid == immortal.pid else real(pid, number))
        began = time.monotonic()
        groups.close()
        assert time.monotonic() - began < 10
        assert not Path(f"/proc/{mortal.pid}").exists()
        assert Path(f"/proc/{immortal.pid}").exists()
        (folder / "cgroup.procs").write_text("")
        real(immortal.pid, signal.SIGKILL)


@pytest.mark.parametrize(("starting", "shares"), [(1, 1024), (4, 1024), (8, 512), (64, 64), (100_000, 2)])
def test_those_that_start_weigh_together_as_one_ready_instance_for_each_core(starting: int, shares: int) -> None:
    assert starting_shares(starting, 4) == shares


# Counters that stay open


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_statistics_are_asked_for_again_where_the_memory_has_changed_or_the_answer_is_old(
    v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = CgroupsV2("abcd", v2, own_group(tmp_path, "/"))
    folder = write(v2 / "faas/abcd/i1", {**V2_FILES, "memory.current": "5000000\n"})
    with groups.counters("i1") as counters:
        assert counters.read().memory_bytes == 1230
        (folder / "memory.stat").write_text("anon 9000000\nkernel 0\n")
        monkeypatch.setattr("worker.drivers.linux.counters.SAME_SECONDS", 60.0)
        assert counters.read().memory_bytes == 1230
        (folder / "memory.current").write_text("6100000\n")
        assert counters.read().memory_bytes == 9_000_000
        (folder / "memory.stat").write_text("anon 1\nkernel 0\n")
        monkeypatch.setattr("worker.drivers.linux.counters.SAME_SECONDS", -1.0)
        assert counters.read().memory_bytes == 1


def test_counters_are_released_and_opened_again_and_closed_for_good(v2: Path, tmp_path: Path) -> None:
    groups = CgroupsV2("abcd", v2, own_group(tmp_path, "/"))
    write(v2 / "faas/abcd/i1", V2_FILES)
    before = open_files()
    counters = groups.counters("i1")
    assert counters.read().pids == 7
    assert open_files() == before + 4  # there is no memory.current here
    counters.release()
    assert open_files() == before
    assert counters.read().pids == 7
    counters.close()
    assert counters.read() == SandboxStats(0, 0, 0, 0.0)
    assert open_files() == before


def test_a_group_is_found_by_its_path_as_by_its_sandbox(v2: Path, tmp_path: Path) -> None:
    unified = CgroupsV2("abcd", v2, own_group(tmp_path, "/"))
    folder = write(v2 / "faas/abcd/i1", V2_FILES)
    with counters_at(unified.path("i1"), v2) as counters:
        assert counters.read() == unified.stats("i1") == SandboxStats(1230, 2, 7, 2.5)
    assert thawing_at(unified.path("i1"), v2) == (f"{folder}/cgroup.freeze", b"0")
    trees = CgroupsV1("abcd", tmp_path)
    write(tmp_path / "memory/faas/abcd/i1", {"memory.stat": "total_rss 1000\ntotal_shmem 30\n"})
    write(tmp_path / "pids/faas/abcd/i1", {"pids.current": "3\n"})
    state = write(tmp_path / "freezer/faas/abcd/i1", {"freezer.state": "FROZEN\n"}) / "freezer.state"
    with counters_at(trees.path("i1"), tmp_path) as counters:
        assert counters.read() == trees.stats("i1") == SandboxStats(1030, 0, 3, 0.0)
    file, words = thawing_at(trees.path("i1"), tmp_path)
    assert file == str(state)
    state.write_bytes(words)
    assert state.read_text() == "THAWED"


# Freezing


def test_v1_freezes_by_the_state_and_says_whether_all_stand_still(tmp_path: Path) -> None:
    groups = CgroupsV1("abcd", tmp_path)
    folder = write(tmp_path / "freezer/faas/abcd/i1", {"freezer.state": "THAWED\n", "cgroup.procs": ""})
    assert groups.freeze("i1")
    assert (folder / "freezer.state").read_text().startswith("FROZEN")
    groups.thaw("i1")
    assert (folder / "freezer.state").read_text().startswith("THAWED")
    with pytest.raises(FileNotFoundError):
        groups.freeze("gone")
    with pytest.raises(FileNotFoundError):
        groups.thaw("gone")


def test_v2_freezes_and_reads_from_the_events_whether_all_stand_still(v2: Path, tmp_path: Path) -> None:
    groups = CgroupsV2("abcd", v2, own_group(tmp_path, "/"))
    folder = write(v2 / "faas/abcd/i1", {**V2_FILES, "cgroup.freeze": "0", "cgroup.events": "populated 1\nfrozen 0\n"})
    assert not groups.freeze("i1")
    assert (folder / "cgroup.freeze").read_text() == "1"
    (folder / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert groups.freeze("i1")
    groups.thaw("i1")
    assert (folder / "cgroup.freeze").read_text() == "0"


@pytest.mark.parametrize("verb", ["end_frozen", "kill", "close"])
def test_v1_signals_before_it_thaws_so_that_none_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    seen: list[tuple[int, str]] = []
    groups = CgroupsV1("abcd", tmp_path)
    files = {"freezer.state": "FROZEN", "cgroup.procs": "4194001\n4194002\n"}
    folder = write(tmp_path / "freezer/faas/abcd/i1", files)
    write(tmp_path / "pids/faas/abcd/i1", {"cgroup.procs": files["cgroup.procs"]})

    def kill(process: int, number: int) -> None:
        seen.append((process, (folder / "freezer.state").read_text()))
        if process == 4194002:  # the last one: they are gone
            for tree in ("freezer", "pids"):
                (tmp_path / tree / "faas/abcd/i1/cgroup.procs").write_text("")

    monkeypatch.setattr("os.kill", kill)
    monkeypatch.setattr("worker.drivers.linux.groups.REMOVE_SECONDS", 0.1)
    getattr(groups, verb)(*(() if verb == "close" else ("i1",)))
    assert set(seen) == {(4194001, "FROZEN"), (4194002, "FROZEN")}
    assert (folder / "freezer.state").read_text() == "THAWED"


@pytest.mark.parametrize(("shares", "weight"), [(1024, 100), (512, 50), (2, 1), (341, 33)])
def test_a_weight_comes_through_the_runtimes_conversion_on_v2(
    v2: Path, tmp_path: Path, shares: int, weight: int
) -> None:
    said = CgroupsV2("abcd", v2, own_group(tmp_path, "/")).shares(shares)
    assert 1 + (said - 2) * 9999 // 262142 == weight  # as runc and crun convert it
    assert CgroupsV1("abcd", tmp_path).shares(shares) == shares
