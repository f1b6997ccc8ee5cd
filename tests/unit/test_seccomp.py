"""The list of system calls: an allow list, without those that a sandbox must never make."""

from __future__ import annotations

import pytest

from worker.drivers.linux import seccomp

NEVER_TEXT = """
unshare setns mount umount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick
mount_setattr ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd keyctl add_key request_key
bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register init_module finit_module
delete_module kexec_load kexec_file_load reboot swapon swapoff settimeofday clock_settime adjtimex clock_adjtime
sethostname setdomainname iopl ioperm acct quotactl nfsservctl open_by_handle_at name_to_handle_at lookup_dcookie
syslog vhangup modify_ldt move_pages migrate_pages socket clone clone3 personality
"""


def test_everything_that_is_not_allowed_is_refused() -> None:
    assert seccomp.profile()["defaultAction"] == "SCMP_ACT_ERRNO"


@pytest.mark.parametrize("name", NEVER_TEXT.split())
def test_it_is_not_allowed_without_a_condition(name: str) -> None:
    rules = [rule for rule in seccomp.profile()["syscalls"] if name in rule["names"]]
    assert all(rule.get("args") or rule["action"] != "SCMP_ACT_ALLOW" for rule in rules)


def test_one_architecture_and_no_call_twice() -> None:
    profile = seccomp.profile("x86_64")
    assert profile["architectures"] == ["SCMP_ARCH_X86_64"]
    assert seccomp.profile("aarch64")["architectures"] == ["SCMP_ARCH_AARCH64"]
    assert "architectures" not in seccomp.profile("riscv64")  # the runtime's own
    names = profile["syscalls"][0]["names"]
    assert len(names) == len(set(names)) > 250


def test_sockets_are_of_four_families() -> None:
    families = {
        rule["args"][0]["value"]: rule["args"] for rule in seccomp.profile()["syscalls"] if "socket" in rule["names"]
    }
    assert set(families) == {1, 2, 10, 16}
    assert families[16][1] == {"index": 2, "value": 0, "op": "SCMP_CMP_EQ"}  # netlink: routes alone


def test_clone_makes_no_namespace() -> None:
    rules = {rule["names"][0]: rule for rule in seccomp.profile()["syscalls"] if len(rule["names"]) == 1}
    assert rules["clone"]["args"][0]["valueTwo"] == 0
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert rules["clone"]["args"][0]["value"] & flag
    assert rules["clone3"]["errnoRet"] == 38
