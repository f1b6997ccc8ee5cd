"""Giving root up: the data folder, the folders on the way to it, and what a hostile account had put there."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from faas.errors import InvalidInput
from worker.launcher import data_folder as ownership
from worker.launcher.privileges import NUMBER, Account, account

pytestmark = [pytest.mark.root]

SOMEBODY = Account("somebody", 60_911, 60_911)
DROPPED = """
import os, sys
from pathlib import Path
from worker.launcher import privileges, view
account = privileges.Account("somebody", 60911, 60911)
data = Path(sys.argv[1])
view.open_to(account, data)
privileges.drop(account)
import colorsys, sqlite3  # what the interpreter has not loaded yet
(data / "made").write_text("by the account")
for attempt in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.listdir(data.parent.parent),
                lambda: os.chroot("/"), lambda: os.listdir(sys.argv[2])):
    try:
        attempt()
    except (PermissionError, FileNotFoundError):
        continue
    sys.exit("something of root has stayed")
"""

TYPING = """
import fcntl, os, sys, termios
from worker.launcher import privileges
if sys.argv[1] == "drop":
    privileges.drop(privileges.Account("somebody", 60911, 60911))
for request, argument in ((termios.TIOCSTI, b"x"), (0x541C, b"\\x03" + bytes(15))):
    try:
        fcntl.ioctl(0, request, argument)
        print("typed")
    except OSError as error:
        print(error.strerror)
fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
"""


def owner(path: Path) -> int:
    return path.lstat().st_uid


def test_an_upgraded_data_folder_is_handed_over_but_for_what_is_roots(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for folder in ("blobs/sha256/00", "logs", "layers/abc", "scratch", "backups"):
        (data / folder).mkdir(parents=True)
    for name in ("faas.db", "faas.db-wal", "registry.db", "admin-token", "config.toml", "blobs/sha256/00/x", "lock"):
        (data / name).touch()
    ownership.hand_over(data, SOMEBODY)
    given = ("blobs", "blobs/sha256/00/x", "logs", "faas.db", "faas.db-wal", "registry.db", "admin-token")
    assert {name: owner(data / name) for name in given} == dict.fromkeys(given, SOMEBODY.uid)
    kept = (".", "layers", "layers/abc", "scratch", "backups", "config.toml", "lock")
    assert {name: owner(data / name) for name in kept} == dict.fromkeys(kept, 0)
    assert data.stat().st_mode & 0o7777 == 0o1770
    (data / "blobs" / "late").touch()
    ownership.hand_over(data, SOMEBODY)
    assert owner(data / "blobs" / "late") == 0  # it is walked through once
    ownership.keep(data)
    assert data.stat().st_mode & 0o7777 == 0o700
    ownership.hand_over(data, SOMEBODY)
    assert owner(data / "blobs" / "late") == SOMEBODY.uid


def test_links_that_an_account_has_planted_give_it_nothing(tmp_path: Path) -> None:
    data, theirs = tmp_path / "data", tmp_path / "theirs"
    (data / "blobs").mkdir(parents=True)
    theirs.mkdir()
    (theirs / "shadow").touch()
    (data / "faas.db").symlink_to(theirs / "shadow")
    (data / "logs").symlink_to(theirs)
    (data / "blobs" / "soft").symlink_to(theirs / "shadow")
    os.link(theirs / "shadow", data / "blobs" / "hard")
    ownership.hand_over(data, SOMEBODY)
    assert (owner(theirs), owner(theirs / "shadow")) == (0, 0)


def test_folders_that_an_account_has_put_into_each_other_without_end_stop_no_start(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "blobs").mkdir(parents=True)
    folders = [os.open(data / "blobs", os.O_RDONLY)]
    try:
        for _ in range(1200):  # deeper than the interpreter's own stack
            os.mkdir("a", dir_fd=folders[-1])
            folders.append(os.open("a", os.O_RDONLY, dir_fd=folders[-1]))
        ownership.hand_over(data, SOMEBODY)
        assert (owner(data / "blobs" / "a"), owner(data)) == (SOMEBODY.uid, 0)
        assert data.stat().st_mode & 0o7777 == 0o1770
    finally:
        os.close(folders.pop())
        while folders:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir("a", dir_fd=folders[-1])
            os.close(folders.pop())


def test_what_was_dropped_does_not_come_back_and_a_closed_home_is_no_obstacle(tmp_path: Path) -> None:
    """The data folder lies below folders of mode 0700, and the interpreter perhaps too."""
    home = tmp_path / "home"
    data = home / "inner" / "data"
    data.mkdir(parents=True)
    (home / "private").mkdir()
    for folder in (home, home / "inner"):
        folder.chmod(0o700)
    ownership.hand_over(data, SOMEBODY)
    done = subprocess.run(
        [sys.executable, "-c", DROPPED, data, home / "private"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (data / "made").read_text() == "by the account"
    assert owner(data / "made") == SOMEBODY.uid
    assert home.stat().st_mode & 0o777 == 0o700
    assert str(home) not in Path("/proc/self/mounts").read_text()  # what it was shown, nobody else is


def test_a_terminal_that_root_started_the_server_from_is_not_typed_into(project_root: Path) -> None:
    """Kernels from 6.2 on may refuse it to everybody, with another error."""
    said = {}
    for how in ("keep", "drop"):
        ours, theirs = os.openpty()
        with open(ours, "rb"), open(theirs, "rb") as terminal:
            done = subprocess.run(
                ["setsid", "--ctty", sys.executable, "-c", TYPING, how],
                stdin=terminal,
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": str(project_root)},
                timeout=20,
            )
        assert done.returncode == 0, done.stderr
        said[how] = done.stdout.splitlines()
    assert said["keep"][0] in ("typed", os.strerror(errno.EIO))
    assert said["drop"] == [os.strerror(errno.EPERM)] * 2


def test_a_setting_names_an_account_a_number_or_root() -> None:
    assert account("root") is None
    assert account("60911") == Account("60911", 60911, 60911)
    nobody = account("nobody")
    assert nobody is not None
    assert (nobody.name, nobody.uid) == ("nobody", 65534)
    default = account("")
    assert default is not None
    assert default.name in ("faas", str(NUMBER))
    for wrong in ("0", "nobody-is-called-so", str(2**31)):
        with pytest.raises(InvalidInput, match="user"):
            account(wrong)
