"""The runtime program seen from the server, with a program that starts an instance as crun does."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faas.errors import ImageUnusable, Unavailable
from tests.support.processes import children
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


@pytest.mark.usefixtures("_subreaper")
def test_an_instance_that_ends_at_once_is_ours_to_ask_and_nothing_else_is_left(tmp_path: Path) -> None:
    before = children(os.getpid())
    pid = like_crun(tmp_path, b"s").run("i1", tmp_path, 1, 2)
    assert set(children(os.getpid())) - set(before) == {pid}
    status = os.waitid(os.P_PID, pid, os.WEXITED)
    assert status is not None
    assert (status.si_code, status.si_status) == (os.CLD_EXITED, 7)


def test_what_crun_says_becomes_the_images_fault(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(FAULT)
    with pytest.raises(ImageUnusable, match="the command is not in the image"):
        like_crun(tmp_path, b"f").run("i1", tmp_path, 1, 2)


# Letting a created one go

LIKE_RUNC = """\
#!{python}
import os, sys
words = sys.argv[1:]
if "start" in words:
    open(os.path.join({folder!r}, "said"), "w").write(" ".join(words[words.index("start"):]))
    sys.exit({code})
"""


def program(folder: Path, name: str, code: int = 0) -> Runtime:
    file = folder / name
    file.write_text(LIKE_RUNC.format(python=sys.executable, folder=str(folder), code=code))
    file.chmod(0o755)
    (folder / "state" / "one").mkdir(parents=True)
    return Runtime(str(file), folder / "state")


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits at a pipe for its reader, as runc's first one does."""
    fifo = tmp_path / "state" / "one" / "exec.fifo"
    code = f"import sys; open({str(fifo)!r}, 'wb', 0).write(b'0'); sys.exit(5)"
    (tmp_path / "state" / "one").mkdir(parents=True)
    os.mkfifo(fifo)
    with subprocess.Popen([sys.executable, "-S", "-c", code]) as process:
        yield process
        process.kill()


def test_runcs_first_process_is_let_go_without_the_program(tmp_path: Path, waiting: subprocess.Popen[bytes]) -> None:
    runtime = Runtime(str(tmp_path / "runc"), tmp_path / "state")
    watched = os.pidfd_open(waiting.pid)
    try:
        runtime.start("one", tmp_path, watched)
        assert waiting.wait(10) == 5
        assert not (tmp_path / "state" / "one" / "exec.fifo").exists()
        with pytest.raises(Unavailable, match="waits no more"):
            runtime.start("one", tmp_path, watched)
    finally:
        os.close(watched)


def test_one_that_ended_at_the_gate_is_told(tmp_path: Path, waiting: subprocess.Popen[bytes]) -> None:
    runtime = Runtime(str(tmp_path / "runc"), tmp_path / "state")
    watched = os.pidfd_open(waiting.pid)
    waiting.kill()
    waiting.wait(10)
    try:
        with pytest.raises(Unavailable, match="does not answer"):
            runtime.start("one", tmp_path, watched)
    finally:
        os.close(watched)


def test_another_program_is_asked_to_start_it(tmp_path: Path) -> None:
    program(tmp_path, "crun").start("one", tmp_path, -1)
    assert (tmp_path / "said").read_text() == "start one"


def test_a_program_that_cannot_start_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="the runtime failed"):
        program(tmp_path, "crun", 1).start("one", tmp_path, -1)
