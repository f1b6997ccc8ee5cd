"""The terminal that root started the server from, and that the server keeps for its Ctrl-C: it must not type there.

What is put into a terminal's input (TIOCSTI, ioctl_tty(2)) is a command of root's shell as soon as that reads again.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from worker.layers.jail import (
    ALLOW,
    ARCHITECTURE,
    AUDIT,
    EPERM,
    ERRNO,
    JUMP_AT_LEAST,
    JUMP_EQUAL,
    LOAD,
    NUMBER,
    RETURN,
    X32,
)

TIOCSTI, TIOCLINUX = 0x5412, 0x541C  # the second pastes, on a console
# seccomp(2), ioctl(2)
CALLS = {"x86_64": (317, 16), "aarch64": (277, 29)}
REQUEST = 24  # the second argument's low half, in struct seccomp_data
SET_MODE_FILTER, SPEC_ALLOW = 1, 4  # without the second, older kernels make a process slower

_libc = ctypes.CDLL(None, use_errno=True)


def refuse_typing() -> None:
    """From here on, where we have a terminal, neither we nor what we start can do it. Needs no_new_privs, and is to be
    called before the first thread. Raises OSError."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:  # no terminal that is ours: the kernel refuses it already
        return
    machine = os.uname().machine
    if machine not in CALLS or sys.byteorder != "little":
        raise OSError(errno.ENOSYS, "a terminal cannot be kept safe here: start it without one")
    program = _filter(machine)
    code = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    if _libc.syscall(CALLS[machine][0], SET_MODE_FILTER, SPEC_ALLOW, header):
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def _filter(machine: str) -> bytes:
    """Classic BPF (struct sock_filter): these two requests get EPERM, and so does any call of another architecture."""
    rows = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 0, 7, AUDIT[machine]),
        (LOAD, 0, 0, NUMBER),
        (JUMP_AT_LEAST, 5, 0, X32),
        (JUMP_EQUAL, 0, 3, CALLS[machine][1]),
        (LOAD, 0, 0, REQUEST),
        (JUMP_EQUAL, 2, 0, TIOCSTI),
        (JUMP_EQUAL, 1, 0, TIOCLINUX),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, ERRNO | EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *row) for row in rows)
