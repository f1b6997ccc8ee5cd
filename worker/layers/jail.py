"""The jail of the unpacking child: its root is the destination, and it can change nothing about that.

Namespaces of its own, four capabilities, limits, and a list of system calls that are refused: what would need them has
been done when `confine` returns. Capabilities alone would not do: the one that marks opaque folders also mounts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
from typing import Any

MEMORY_HEADROOM = 64 << 20  # bytes beyond what the interpreter has when it starts

CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS = 0x00020000, 0x40000000, 0x08000000, 0x04000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 22, 24, 38
CAP_VERSION_3, CAP_LAST = 0x20080522, 40
# chown, dac_override, fowner; sys_admin for the xattr that marks opaque folders
CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 21

# linux/seccomp.h, linux/filter.h, linux/audit.h; offsets in struct seccomp_data
SECCOMP_MODE_FILTER = 2
KILL_PROCESS, ERRNO, ALLOW, EPERM = 0x80000000, 0x00050000, 0x7FFF0000, 1
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER, ARCHITECTURE = 0, 4
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32 = 0x40000000  # x86_64's second table of calls begins here; none in it is needed

# Refused when the jail is set up: by number on x86_64 and aarch64, None where there is no such call.
REFUSED: dict[str, tuple[int, int | None]] = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "unshare": (272, 97),
    "setns": (308, 268),
    "clone": (56, 220),
    "clone3": (435, 435),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "syslog": (103, 116),
    "personality": (135, 92),
}


def confine(folder: str, limits: dict[str, Any]) -> None:
    """From here on this process has no other files, no network, and little of the machine. Raises OSError."""
    with open("/proc/self/statm") as statm:
        address_space = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY_HEADROOM
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(folder)
    _check(libc.unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS), "unshare")
    _check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "mount private")
    _check(libc.mount(target, target, None, MS_BIND, None), "bind mount")
    flags = MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV | MS_NOEXEC
    _check(libc.mount(None, target, None, flags, None), "remount")
    os.chdir(folder)
    _check(libc.syscall(REFUSED["pivot_root"][_column(os.uname().machine)], b".", b"."), "pivot_root")
    _check(libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")
    os.umask(0)
    _drop_capabilities(libc)
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_CPU, (limits["seconds"], limits["seconds"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["bytes"], limits["bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))  # not 0, which the kernel ignores where cores go to a program
    _refuse_calls(libc)


def _check(result: int, name: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _column(machine: str) -> int:
    """Which of the numbers in `REFUSED` are this machine's."""
    if machine not in AUDIT:
        raise OSError(errno.ENOSYS, f"no layer can be unpacked on {machine}")
    return list(AUDIT).index(machine)


def _drop_capabilities(libc: Any) -> None:
    for capability in range(CAP_LAST + 1):
        if not CAPABILITIES >> capability & 1:
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    header = struct.pack("=Ii", CAP_VERSION_3, 0)
    low, high = CAPABILITIES & 0xFFFFFFFF, CAPABILITIES >> 32
    _check(libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)), "capset")


def _refuse_calls(libc: Any) -> None:
    """Load the filter; nothing takes it away again."""
    program = _filter(os.uname().machine)
    code = ctypes.create_string_buffer(program)
    length = len(program) // 8
    header = ctypes.create_string_buffer(struct.pack("@HP", length, ctypes.addressof(code)))
    _check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0), "seccomp")


def _filter(machine: str) -> bytes:
    """Classic BPF (struct sock_filter): another architecture is killed, a refused call gets EPERM, the rest passes."""

    def row(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    column = _column(machine)
    numbers = sorted(number for call in REFUSED.values() if (number := call[column]) is not None)
    rows = [
        row(LOAD, ARCHITECTURE),
        row(JUMP_EQUAL, AUDIT[machine], 1, 0),
        row(RETURN, KILL_PROCESS),
        row(LOAD, NUMBER),
        row(JUMP_AT_LEAST, X32, len(numbers) + 1, 0),
        *(row(JUMP_EQUAL, number, len(numbers) - place, 0) for place, number in enumerate(numbers)),
        row(RETURN, ALLOW),
        row(RETURN, ERRNO | EPERM),
    ]
    return b"".join(rows)
