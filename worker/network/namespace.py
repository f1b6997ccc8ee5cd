"""Network namespaces: held by a descriptor, entered for the time of one system call or a few.

They have no name, so they vanish with the descriptor and what lives in them: a killed server leaves none behind.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1

_libc = ctypes.CDLL(None, use_errno=True)


def setns(descriptor: int, kind: int = CLONE_NEWNET) -> None:
    """setns(2) for the calling thread. Raises OSError."""
    if _libc.setns(descriptor, kind):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread. Raises OSError."""
    if _libc.unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")


def own_namespace() -> int:
    """A descriptor of the calling thread's network namespace (/proc/self would be the main thread's)."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def socket_in(namespace: int, make: Callable[[], T]) -> T:
    """Call `make` in `namespace` and come back; a socket made there stays there for life.

    Nothing may await in between, so no other task of the loop ever runs in there. It costs about 8 µs, a thread 130.
    """
    home = own_namespace()
    try:
        setns(namespace)
        try:
            return make()
        finally:
            _return(home)
    finally:
        os.close(home)


def new_namespace(furnish: Callable[[], None] | None = None) -> int:
    """A new network namespace with its loopback up, as a descriptor; `furnish` runs inside it before it is given.

    Blocking (about 1 ms without `furnish`): call it in a thread pool.
    """
    home = own_namespace()
    try:
        unshare(CLONE_NEWNET)
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                request = struct.pack("16sh", b"lo", 0)
                flags = struct.unpack("16sh", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
                fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))
            # Nobody inside is root or holds a capability, and unmodified images listen on 80.
            Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
            if furnish is not None:
                furnish()
            return own_namespace()
        finally:
            _return(home)
    finally:
        os.close(home)


def _return(home: int) -> None:
    try:
        setns(home)
    except OSError:
        os.abort()  # this thread would go on in a function's network
