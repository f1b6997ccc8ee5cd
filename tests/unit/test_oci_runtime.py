"""The runtime program seen from the server, with a program that starts an instance as crun does."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faas.errors import ImageUnusable
from worker.drivers.oci.process import PR_SET_CHILD_SUBREAPER, become_subreaper
from worker.drivers.oci.runtime import Runtime

# The program leaves as soon as the instance is started; the grandchild that started it, a moment later.
LIKE_CRUN = """\
#!{python}
import os, sys, time
reading, writing = os.pipe()
if os.fork():
    os.wait()
    sys.exit(os.read(reading, 1) != b"s")
os.setsid()
if os.fork():
    os._exit(0)
first = os.fork()
if first == 0:
    os.setsid()
    os._exit(7)
with open(sys.argv[sys.argv.index("--pid-file") + 1], "w") as file:
    file.write(str(first))
os.write(writing, {word!r})
time.sleep(0.3)
"""
FAULT = '{"msg":"executable file `/bin/nowhere` not found in $PATH","level":"error"}'


@pytest.fixture
def _subreaper() -> Iterator[None]:
    become_subreaper()
    yield
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def like_crun(folder: Path, word: bytes) -> Runtime:
    program = folder / "crun"
    program.write_text(LIKE_CRUN.format(python=sys.executable, word=word))
    program.chmod(0o755)
    return Runtime(str(program), folder / "state")


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.usefixtures("_subreaper")
def test_an_instance_that_ends_at_once_is_ours_to_ask_and_nothing_else_is_left(tmp_path: Path) -> None:
    before = children()
    pid = like_crun(tmp_path, b"s").run("i1", tmp_path, 1, 2)
    assert children() - before == {str(pid)}
    status = os.waitid(os.P_PID, pid, os.WEXITED)
    assert status is not None
    assert (status.si_code, status.si_status) == (os.CLD_EXITED, 7)


def test_what_crun_says_becomes_the_images_fault(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(FAULT)
    with pytest.raises(ImageUnusable, match="the command is not in the image"):
        like_crun(tmp_path, b"f").run("i1", tmp_path, 1, 2)
