"""Our own list of system calls (runtime-spec, config-linux.md "Seccomp"): what is not named is refused.

It follows Docker's default in spirit and drops what functions have no use for and attackers have: namespaces, mounts,
keyrings, BPF, tracing, io_uring, userfaultfd, handles, clocks, modules. One architecture and few rules, since
libseccomp compiles the list anew at every start and each conditional rule costs.
"""

from __future__ import annotations

import platform
from typing import Any

# runtime-spec names the filter's architecture by libseccomp's constants.
_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}

_FILES = """access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock
fremovexattr fsetxattr fstat fstatfs fsync ftruncate getcwd getdents getdents64 getxattr inotify_add_watch
inotify_init inotify_init1 inotify_rm_watch ioctl lchown lgetxattr link linkat listxattr llistxattr
lremovexattr lseek lsetxattr lstat mkdir mkdirat memfd_create mknod mknodat newfstatat open openat openat2
pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
removexattr rename renameat renameat2 rmdir sendfile setxattr splice stat statfs statx symlink symlinkat sync
sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes vmsplice write writev"""
_PROCESSES = """arch_prctl capget capset execve execveat exit exit_group fork getegid geteuid getgid getgroups getpgid getpgrp
getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid kill pause pidfd_open
pidfd_send_signal prctl prlimit64 rseq sched_get_priority_max sched_get_priority_min sched_getaffinity
sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr
sched_setparam sched_setscheduler sched_yield set_robust_list get_robust_list set_tid_address setfsgid
setfsuid setgid setgroups setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setuid
tgkill times tkill uname vfork wait4 waitid sysinfo getcpu membarrier seccomp landlock_create_ruleset
landlock_add_rule landlock_restrict_self"""
_MEMORY = """brk madvise mincore mlock mlock2 mlockall mmap mprotect mremap msync munlock munlockall munmap pkey_alloc
pkey_free pkey_mprotect remap_file_pages get_mempolicy set_mempolicy mbind"""
_SIGNALS_AND_TIME = """alarm clock_getres clock_gettime clock_nanosleep eventfd eventfd2 futex futex_waitv futex_wake futex_wait
futex_requeue getitimer gettimeofday nanosleep restart_syscall rt_sigaction rt_sigpending rt_sigprocmask
rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo setitimer sigaltstack signalfd
signalfd4 time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create
timerfd_gettime timerfd_settime"""
_POLLING = """epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait poll ppoll pselect6 select io_setup
io_submit io_getevents io_pgetevents io_cancel io_destroy"""
_NETWORK = """accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg
sendmsg sendto setsockopt shutdown socketpair getrandom"""
_SYSTEM_V = """msgctl msgget msgrcv msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget mq_open mq_unlink
mq_timedsend mq_timedreceive mq_notify mq_getsetattr"""

ALLOWED = tuple(
    sorted({*f"{_FILES} {_PROCESSES} {_MEMORY} {_SIGNALS_AND_TIME} {_POLLING} {_NETWORK} {_SYSTEM_V}".split()})
)
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
NETLINK_ROUTE = 0
# CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
CLONE_NAMESPACES = 0x7E020000


def _argument(index: int, value: int, operation: str, second: int = 0) -> dict[str, Any]:
    argument = {"index": index, "value": value, "op": operation}
    return {**argument, "valueTwo": second} if operation == "SCMP_CMP_MASKED_EQ" else argument


def profile(machine: str = "") -> dict[str, Any]:
    """The runtime-spec's `linux.seccomp`. Raises KeyError for a machine it was not written for."""
    equal = "SCMP_CMP_EQ"
    sockets = [[_argument(0, family, equal)] for family in (AF_UNIX, AF_INET, AF_INET6)]
    sockets.append([_argument(0, AF_NETLINK, equal), _argument(2, NETLINK_ROUTE, equal)])
    no_namespaces = [_argument(0, CLONE_NAMESPACES, "SCMP_CMP_MASKED_EQ", 0)]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": [_ARCHITECTURES[machine or platform.machine()]],
        "syscalls": [
            {"names": list(ALLOWED), "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": no_namespaces},
            # Its flags lie behind a pointer, out of a filter's sight: with ENOSYS the C library falls back to clone.
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
            *({"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": arguments} for arguments in sockets),
        ],
    }
