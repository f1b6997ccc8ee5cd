"""Mounts handed on: what is mounted inside another mount namespace is there alone, and who did it is back again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.drivers.linux import trees

pytestmark = [pytest.mark.root, pytest.mark.oci]


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a mount namespace of its own."""
    (tmp_path / "target").mkdir()
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 60"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[int]:
    """Of two folders, which both have the file `a`."""
    for name in ("empty", "lower", "upper"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    (tmp_path / "empty" / "a").unlink()
    (tmp_path / "lower" / "b").write_text("lower")
    folders = [os.open(tmp_path / name, os.O_PATH) for name in ("lower", "upper")]
    tree = trees.overlay(folders, tmp_path / "empty")
    yield tree
    for descriptor in (tree, *folders):
        os.close(descriptor)


def where(own: Path) -> tuple[object, ...]:
    """The calling thread's root, working folder and namespace, and what is mounted in `own`: others mount elsewhere."""
    places = [Path(path).stat() for path in ("/", ".", "/proc/thread-self/ns/mnt")]
    mounts = [row for row in Path("/proc/thread-self/mounts").read_text().splitlines() if str(own) in row]
    return (*((place.st_dev, place.st_ino) for place in places), Path.cwd(), mounts)


def test_what_is_mounted_inside_is_there_alone_and_cannot_be_written(
    tmp_path: Path, other: subprocess.Popen[bytes], overlay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before, process = where(tmp_path), os.pidfd_open(other.pid)
    trees.attach_inside(process, [(overlay, str(tmp_path / "target"))])
    assert where(tmp_path) == before
    assert list((tmp_path / "target").iterdir()) == []
    inside = Path(f"/proc/{other.pid}/root{tmp_path}/target")
    assert {path.name: path.read_text() for path in inside.iterdir()} == {"a": "upper", "b": "lower"}
    with pytest.raises(OSError, match="Read-only"):
        (inside / "c").write_text("")
    os.close(process)


def test_who_could_not_mount_inside_is_back_as_well(
    tmp_path: Path, other: subprocess.Popen[bytes], overlay: int
) -> None:
    before, process = where(tmp_path), os.pidfd_open(other.pid)
    with pytest.raises(OSError, match="move_mount"):
        trees.attach_inside(process, [(overlay, str(tmp_path / "nowhere"))])
    assert where(tmp_path) == before
    os.close(process)


def test_more_folders_than_an_overlay_can_be_told_of_are_refused(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_PATH)
    with pytest.raises(OSError, match="too many"):
        trees.overlay([folder] * 20, tmp_path)
    os.close(folder)
