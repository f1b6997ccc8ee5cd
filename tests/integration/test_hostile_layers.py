"""Layers made to escape, to bomb or to confuse: each ends in a named error or in something harmless, inside.

Every archive is unpacked by the real jailed child. Beside the destination lies a canary folder that must not change.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.support.unpacking import unpack_measured
from worker.layers.unpacker import UnpackLimits

pytestmark = pytest.mark.root

LIMITS = UnpackLimits(bytes=32 << 20, entries=5_000, depth=100, ratio=100, seconds=10)
INTERPRETER_BYTES = 48 << 20  # what the child and who starts it have anyway
MEMORY_BYTES = 64 << 20  # beyond that
Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", link: str = "", mode: int = 0o644) -> Entry:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, len(content)
    return info, content


def archive(*entries: Entry, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as target:
        for info, content in entries:
            target.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary" / "bird").write_text("alive")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.lstat().st_mode, p.read_bytes() if p.is_file() else b"") for p in folder.rglob("*")}


def run(data: bytes, destination: Path, limits: UnpackLimits = LIMITS) -> str:
    """Unpack; the error's words, or "" where it worked. Checks canary, time and memory on the way."""
    canary = destination.parent / "canary"
    before, host = snapshot(canary), Path("/etc/shadow").read_bytes()
    blob = destination.parent / "blob"
    blob.write_bytes(data)
    began = time.monotonic()
    with blob.open("rb") as file:
        unpacking = unpack_measured(file, destination, limits)
    assert time.monotonic() - began < 15
    assert snapshot(canary) == before
    assert Path("/etc/shadow").read_bytes() == host
    assert unpacking.peak_bytes < INTERPRETER_BYTES + MEMORY_BYTES
    used = sum(p.lstat().st_blocks * 512 for p in destination.rglob("*"))
    assert used <= limits.bytes + 4096 * limits.entries
    return unpacking.error


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (archive(entry("../canary/bird", content=b"dead")), "leaves the root"),
        (archive(entry("a/../../canary/bird", content=b"dead")), "leaves the root"),
        (archive(entry("link", tarfile.LNKTYPE, link="../../../etc/shadow")), "leaves the root"),
        (archive(entry("link", tarfile.LNKTYPE, link="etc/shadow")), "points to nothing"),
        (archive(entry("link", tarfile.LNKTYPE, link="canary/bird")), "points to nothing"),
        (archive(entry("x/.wh...")), "names nothing"),
        (archive(entry(".wh.")), "names nothing"),
        (archive(entry("/".join(["d"] * 1000))), "deep"),
        (archive(entry("n" * 256)), "cannot be written"),
        (archive(entry("p/" * 60 + "n" * 4096)), "cannot be written"),
        (archive(*(entry(f"many/{n}") for n in range(LIMITS.entries + 1))), "entries"),
        (archive(entry("a", content=b"x" * 100_000))[:50_000], "broken"),
        (b"not a tar at all, but long enough to look at" * 100, "broken"),
        (gzip.compress(archive(entry("a", content=b"x" * 100_000)))[:60], "broken"),
    ],
)
def test_a_hostile_archive_is_refused_by_name(data: bytes, words: str, destination: Path) -> None:
    assert words in run(data, destination)


def test_absolute_names_land_inside(destination: Path) -> None:
    assert run(archive(entry("/etc/shadow", content=b"mine"), entry("//deep//er", content=b"x")), destination) == ""
    assert (destination / "etc/shadow").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("target", "inside"),
    [
        ("../canary", "canary/bird"),  # from the destination's point of view, beside it
        ("/", "bird"),
        ("/proc/self/root", "proc/self/root/bird"),
        ("../../../../../../../../tmp", "tmp/bird"),
        (".", "bird"),
    ],
    ids=str,
)
def test_writing_through_a_symlink_stays_inside(destination: Path, target: str, inside: str) -> None:
    outside = [Path("/bird"), Path("/tmp/bird"), destination.parent / "bird"]
    assert not any(path.exists() for path in outside)
    assert (destination / "../canary/bird").read_text() == "alive"  # the first one means the canary itself
    data = archive(entry("out", tarfile.SYMTYPE, link=target), entry("out/bird", content=b"dead"))
    assert run(data, destination) == ""
    assert not any(path.exists() for path in outside)
    assert (destination / inside).read_bytes() == b"dead"


def test_writing_through_chained_symlinks_stays_inside(destination: Path) -> None:
    links = [entry(f"l{n}", tarfile.SYMTYPE, link=f"l{n + 1}") for n in range(5)]
    last = entry("l5", tarfile.SYMTYPE, link="../canary")
    assert run(archive(*links, last, entry("l0/bird", content=b"dead")), destination) == ""
    assert (destination / "canary/bird").read_bytes() == b"dead"


def test_a_hard_link_to_a_symlink_does_not_follow_it(destination: Path) -> None:
    data = archive(
        entry("s", tarfile.SYMTYPE, link="/etc/shadow"),
        entry("h", tarfile.LNKTYPE, link="s"),
        entry("h", content=b"replaced"),
    )
    assert run(data, destination) == ""
    assert (destination / "h").read_bytes() == b"replaced"
    assert (destination / "s").is_symlink()


def test_whiteouts_become_the_overlays_own(destination: Path) -> None:
    data = archive(
        entry("d", tarfile.DIRTYPE, mode=0o755),
        entry("d/.wh.gone"),
        entry("d/.wh..wh..opq"),
        entry("real", content=b"r"),
        entry(".wh.linked", tarfile.LNKTYPE, link="real"),
        entry(".wh..wh..opq"),
        entry(".wh..wh.plnk/1.2", content=b"aufs"),
    )
    assert run(data, destination) == ""
    for name in ("d/gone", "linked"):
        found = (destination / name).lstat()
        assert stat.S_ISCHR(found.st_mode)
        assert found.st_rdev == 0
    assert os.getxattr(destination / "d", "trusted.overlay.opaque") == b"y"
    assert os.getxattr(destination, "trusted.overlay.opaque") == b"y"


def test_a_whiteout_through_a_symlink_hides_nothing_outside(destination: Path) -> None:
    data = archive(entry("out", tarfile.SYMTYPE, link="../canary"), entry("out/.wh.bird"))
    assert run(data, destination) == ""
    assert stat.S_ISCHR((destination / "canary/bird").lstat().st_mode)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_fifos_are_left_out(destination: Path, kind: bytes) -> None:
    info, _ = entry("dev/sda", kind)
    info.devmajor, info.devminor = 8, 0
    assert run(archive((info, b"")), destination) == ""
    assert not (destination / "dev/sda").exists()


def test_set_id_bits_are_dropped(destination: Path) -> None:
    assert run(archive(entry("su", content=b"x", mode=0o6755)), destination) == ""
    assert stat.S_IMODE((destination / "su").stat().st_mode) == 0o755


def test_a_name_that_is_no_utf8_is_kept(destination: Path) -> None:
    assert run(archive(entry("caf\udce9", content=b"x"), form=tarfile.GNU_FORMAT), destination) == ""
    assert b"caf\xe9" in os.listdir(os.fsencode(destination))  # noqa: PTH208 - bytes


def test_the_last_of_duplicate_entries_holds(destination: Path) -> None:
    data = archive(
        entry("a", content=b"1"), entry("a", content=b"2"), entry("b", tarfile.DIRTYPE), entry("b", content=b"file")
    )
    assert run(data, destination) == ""
    assert ((destination / "a").read_bytes(), (destination / "b").read_bytes()) == (b"2", b"file")


def test_a_sparse_terabyte_is_refused(destination: Path) -> None:
    info = tarfile.TarInfo("huge")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    info.pax_headers["GNU.sparse.name"] = "huge"
    body = b"1\n0\n0\n".ljust(512, b"\0")
    info.size = len(body)
    assert run(archive((info, body)), destination) != ""


def zeros(size: int) -> bytes:
    """A tar archive of one file of zeros, header only as long as it must be."""
    info = tarfile.TarInfo("zeros")
    info.size = size
    return info.tobuf()


def gzip_bomb() -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [squeeze.compress(zeros(512 << 20))]
    parts += [squeeze.compress(bytes(1 << 20)) for _ in range(300)]
    return b"".join([*parts, squeeze.flush()])


def zstd_wide_window() -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, compression_level=1)
    squeeze = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # without a size the window stays
    return squeeze.compress(archive(entry("a", content=bytes(8 << 20)))) + squeeze.flush()


def lying_pax_size() -> bytes:
    data = bytearray(archive(entry("a", content=b"x")))
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 33
    return info.tobuf() + bytes(data)


@pytest.mark.parametrize(
    ("make", "words"),
    [(gzip_bomb, "a bomb"), (zstd_wide_window, "too much memory"), (lying_pax_size, "unpacks to more")],
)
def test_bombs_are_refused_at_little_cost(destination: Path, make: Callable[[], bytes], words: str) -> None:
    roomy = UnpackLimits(bytes=1 << 30, entries=1000, depth=10, ratio=100, seconds=10)
    assert words in run(make(), destination, roomy)


def test_concatenated_gzip_members_are_one_archive(destination: Path) -> None:
    data = archive(entry("a", content=b"x" * 5000), entry("b", content=b"y" * 5000))
    members = [gzip.compress(part) for part in (data[:1000], data[1000:7000], data[7000:])]
    assert run(b"".join(members), destination) == ""
    assert (destination / "b").read_bytes() == b"y" * 5000


def test_renaming_deep_folders_again_and_again_stays_quick(destination: Path) -> None:
    rows = []
    for n in range(300):
        rows.append(entry("/".join(["d"] * 50) + f"/{n}", content=b"x"))
        rows.append(entry("d", tarfile.SYMTYPE, link="e"))
    assert run(archive(*rows), destination) == ""
    assert (destination / "d").is_symlink()  # the last of them holds


CONFINED = """
import ctypes, json, os, resource, sys
from worker.layers.jail import REFUSED, confine

status = open("/proc/self/status")
confine(sys.argv[1], {"bytes": 1 << 20, "seconds": 10})
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
column = ("x86_64", "aarch64").index(os.uname().machine)
answers = {}
for name, numbers in REFUSED.items():
    if numbers[column] is not None:
        answers[name] = 0 if libc.syscall(numbers[column], -1, -1, -1, -1, -1, -1) >= 0 else ctypes.get_errno()
os.setxattr("/", "trusted.overlay.opaque", b"y")
if os.uname().machine == "x86_64":
    answers["the second table"] = 0 if libc.syscall(0x40000000 + 39) >= 0 else ctypes.get_errno()
capabilities = {row.split()[0]: int(row.split()[1], 16) for row in status if row.startswith("Cap")}
print(json.dumps({"answers": answers, "capabilities": capabilities, "core": resource.getrlimit(resource.RLIMIT_CORE)}))
"""


def test_the_jailed_child_cannot_undo_its_jail(destination: Path, project_root: Path) -> None:
    """Its parser may be taken over: what its capabilities would let it do, the filter of system calls does not."""
    done = subprocess.run(
        [sys.executable, "-c", CONFINED, destination], capture_output=True, text=True, cwd=project_root, timeout=30
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {name for name, answer in told["answers"].items() if answer != errno.EPERM} == set()
    assert {"mount", "open_by_handle_at", "setns", "socket", "execve", "bpf"} <= told["answers"].keys()
    four = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 21  # not the one that opens files by handle, past every root
    assert told["capabilities"] == {"CapInh:": 0, "CapPrm:": four, "CapEff:": four, "CapBnd:": four, "CapAmb:": 0}
    assert told["core"] == [1, 1]
