"""Giving root up for good: the account that the server runs as, and the way to it (credentials(7), capabilities(7))."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from faas.errors import InvalidInput, Unavailable
from worker.launcher import terminal

ACCOUNT = "faas"
# Nobody's on Debian and with systemd (Users, Groups, UIDs and GIDs on systemd Systems: 60706 to 61183 are unused), and
# below 65,536, beyond which a container may have none.
NUMBER = 60_910
ROOT = "root"
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 4, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITY_VERSION_3 = 0x20080522
_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Account:
    name: str  # as people know it
    uid: int
    gid: int


def account(setting: str) -> Account | None:
    """Who the server runs as; None: root stays. Raises InvalidInput where there is no such account."""
    if setting == ROOT:
        return None
    if setting.isascii() and setting.isdigit():
        return _numbered(int(setting))
    try:
        found = pwd.getpwnam(setting or ACCOUNT)
    except KeyError:
        if setting:
            raise InvalidInput(f"user: there is no account {setting!r}", hint="make it, or write a number") from None
        return _numbered(NUMBER)
    if found.pw_uid == 0 or found.pw_gid == 0:
        raise InvalidInput(f"user: the account {found.pw_name} is root's", hint="make one that has nothing")
    return Account(found.pw_name, found.pw_uid, found.pw_gid)


def _numbered(number: int) -> Account:
    if not 0 < number < 2**31:
        raise InvalidInput("user: a number must be 1 to 2147483647; to keep root, write root")
    with contextlib.suppress(KeyError):
        found = pwd.getpwuid(number)
        return Account(found.pw_name, number, found.pw_gid or number)
    return Account(str(number), number, number)


def drop(account: Account) -> None:
    """From here on this process is the account's, has no capability, and cannot get one by any program that it starts.

    Before the first thread: each has capabilities of its own. Raises Unavailable where anything of root would stay.
    """
    try:
        for capability in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
            _prctl(PR_CAPBSET_DROP, capability)
        os.setgroups([])
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
        _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
        _clear_capabilities()
        _prctl(PR_SET_NO_NEW_PRIVS, 1)
        terminal.refuse_typing()
        _prctl(PR_SET_DUMPABLE, 0)  # programs that it starts are the account's too, and may not look into it
    except OSError as error:
        raise Unavailable(
            f"the server cannot become the user {account.name}: {error}", hint="user = root keeps root"
        ) from None
    _check(account)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}): {os.strerror(ctypes.get_errno())}")


def _clear_capabilities() -> None:
    """capset(2): effective, permitted and inheritable, of two words each."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), f"capset: {os.strerror(ctypes.get_errno())}")


def _check(account: Account) -> None:
    """What the kernel says of us now, in every thread."""
    for task in Path("/proc/self/task").iterdir():
        rows = (line.split(":", 1) for line in (task / "status").read_text().splitlines())
        status = {name: value.split() for name, value in rows}
        wrong = [name for name in _SETS if int(status[name][0], 16)]
        wrong += [name for name, own in (("Uid", account.uid), ("Gid", account.gid)) if set(status[name]) != {str(own)}]
        wrong += ["Groups"] * bool(status["Groups"]) + ["NoNewPrivs"] * (status["NoNewPrivs"] != ["1"])
        if wrong:
            raise Unavailable(f"something of root stays with the server: {', '.join(wrong)}")
