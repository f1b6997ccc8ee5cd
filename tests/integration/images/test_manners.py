"""Exports and imports that fail, are interrupted, are large, or are watched."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.cli import CommandLine
from tests.support.image_cli import (
    at,
    check_blobs,
    files,
    push_large,
)
from tests.support.registry import RegistryProcess


def test_what_cannot_be_written_to_is_refused_and_left_alone(
    faas: CommandLine, source: RegistryProcess, tmp_path: Path
) -> None:
    source.push_image("manners", "v1", b"manners")
    (tmp_path / "there.tar").write_text("mine")
    other = tmp_path / "other"
    other.mkdir()
    (other / "diary").write_text("mine")
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (broken / "index.json").write_text("{")
    for path, words in (
        (tmp_path / "there.tar", "is there already"),
        (other, "a folder of something else"),
        (newer, "not of version 1.0.0"),
        (broken, "no index of images"),
        (tmp_path / "x.tar.gz", "not compressed"),
    ):
        before = files(path) if path.is_dir() else {}
        done = faas("image", "export", "manners:v1", path, code=2)
        assert words in done.err
        assert (files(path) if path.is_dir() else {}) == before
    assert (tmp_path / "there.tar").read_text() == "mine"
    assert not (tmp_path / "x.tar.gz").exists()
    faas("image", "export", "manners:nothing", tmp_path / "n.tar", code=3)
    faas("image", "export", "nothing:v1", tmp_path / "n", code=3)
    assert not (tmp_path / "n.tar").exists()
    assert list(tmp_path.glob("**/.faas-part-*")) == []
    faas("image", "import", tmp_path / "nothing.tar", code=2)


@pytest.mark.parametrize("name", ["x.tar", "folder"])
def test_an_interrupted_export_leaves_nothing_half(
    faas: CommandLine, source: RegistryProcess, tmp_path: Path, name: str
) -> None:
    repository = f"interrupted/{name.replace('.', '-')}"
    digest = push_large(source, repository, 100)
    path = tmp_path / "out" / name
    path.parent.mkdir()
    process = subprocess.Popen(
        faas.command("image", "export", f"{repository}:v1", path), env=faas.environment(), stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 30
    while not list(path.parent.glob(f"**/.faas-part-*{'' if name == 'x.tar' else digest[7:]}")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    if process.returncode == 0:
        pytest.skip("the machine was faster than the signal")
    assert process.returncode == 130, err
    assert list(path.parent.glob("**/.faas-part-*")) == []
    if name == "x.tar":
        assert list(path.parent.iterdir()) == []
    else:
        blob = path / "blobs/sha256" / digest[7:]
        assert not blob.exists() or blob.stat().st_size == 100 << 20  # half of one: never
        assert json.loads((path / "index.json").read_text())["manifests"] == []
        check_blobs(path)
    faas("image", "export", f"{repository}:v1", path)
    assert len(check_blobs(path)) == 2 + 3


def test_only_one_export_writes_to_a_layout(faas: CommandLine, source: RegistryProcess, tmp_path: Path) -> None:
    from faas.oci.layout import open_layout

    source.push_image("alone", "v1", b"alone")
    for path in (tmp_path / "x.tar", tmp_path / "folder"):
        with open_layout(path):
            assert "another export" in faas("image", "export", "alone:v1", path, code=1).err
        faas("image", "export", "alone:v1", path)


WITH_ITS_PEAK = """
import re, sys
from faas.cli import main

code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
sys.exit(code)
"""


def test_memory_does_not_grow_with_a_layer(
    faas: CommandLine, source: RegistryProcess, target: RegistryProcess, tmp_path: Path
) -> None:
    push_large(source, "large", 200)
    source.push_image("little", "v1", b"little")

    def peak(*words: object) -> int:
        """Bytes, by its own word: the peak that the kernel tells of a child begins with what its parent had."""
        command = [sys.executable, "-c", WITH_ITS_PEAK, *map(str, words)]
        done = subprocess.run(command, env=faas.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-1]) * 1024

    small = peak("image", "export", "little:v1", tmp_path / "little.tar")
    assert peak("image", "export", "large:v1", tmp_path / "large.tar") < small + (24 << 20)
    at(faas, target)
    small = peak("image", "import", tmp_path / "little.tar")
    assert peak("image", "import", tmp_path / "large.tar") < small + (24 << 20)


def test_bars_are_for_terminals_alone(faas: CommandLine, source: RegistryProcess, tmp_path: Path) -> None:
    source.push_image("bars", "v1", os.urandom(100_000))

    def shown(name: str, **env: str) -> str:
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            faas.command("image", "export", "bars:v1", tmp_path / name),
            env=faas.environment(env), stdout=subprocess.PIPE, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # as a terminal ends
            while part := os.read(ours, 65536):
                text += part
        os.close(ours)
        out, _ = process.communicate(timeout=20)
        assert (process.returncode, out.decode().strip()) == (0, str(tmp_path / name))
        return text.decode()

    assert "########" in shown("one")
    plain = shown("two", NO_COLOR="1")
    assert "####" not in plain
    assert "\x1b" not in plain
