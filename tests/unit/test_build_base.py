"""A runtime base is built anew when anything that it is made of has changed on this machine."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from faas.build import rootfs
from faas.build.fingerprint import fingerprint
from faas.build.interpreter import find_python

OTHER = {"full": "another build", "executable": "/bin/sh", "base": "/none", "stdlib": "/none"}


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Copies of what a base is gathered from, in the places where it is looked for."""
    found = rootfs.extra_libraries()
    name = next(iter(found))
    library = Path(shutil.copy(found[name].resolve(), tmp_path / name))
    (tmp_path / "zones").mkdir()
    stdlib = tmp_path / "lib"
    (stdlib / "lib-dynload").mkdir(parents=True)
    made = {
        "library": library,
        "certificates": tmp_path / "ca.crt",
        "zone": tmp_path / "zones" / "UTC",
        "module": stdlib / "ssl.py",
    }
    for key in ("certificates", "zone", "module"):
        made[key].write_text("as it was")
    monkeypatch.setattr(rootfs, "extra_libraries", lambda: {name: library})
    monkeypatch.setattr(rootfs, "_CERTIFICATES", made["certificates"])
    monkeypatch.setattr(rootfs, "_ZONES", tmp_path / "zones")
    return made


@pytest.mark.parametrize("changed", ["library", "certificates", "zone", "module"])
def test_a_security_update_of_any_part_makes_another_base(parts: dict[str, Path], changed: str) -> None:
    python = replace(find_python(), stdlib=parts["module"].parent)
    before = rootfs.made_of(python)
    assert rootfs.made_of(python) == before
    with parts[changed].open("ab") as file:
        file.write(b"updated")
    assert rootfs.made_of(python) != before


def test_the_c_library_is_one_of_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def remembered(paths: list[Path], left_out: tuple[str, ...] = ()) -> str:
        seen.extend(paths)
        return fingerprint(paths, left_out)

    monkeypatch.setattr(rootfs, "fingerprint", remembered)
    rootfs.made_of(find_python())
    names = {path.name.partition(".so")[0].partition("-2")[0] for path in seen}
    assert {"libc", "libssl", "libcrypto"} <= names


def test_a_version_that_is_the_servers_own_is_its_interpreter_whatever_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    other = tmp_path / f"python{version}"
    other.write_text(f"#!/bin/sh\necho '{json.dumps(OTHER | {'version': version})}'\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_python(version) == find_python()


def test_content_counts_and_time_does_not(tmp_path: Path) -> None:
    file, left_out = tmp_path / "a", tmp_path / "b.tmp"
    file.write_text("x")
    left_out.write_text("x")
    first = fingerprint([tmp_path], ("*.tmp",))
    os.utime(file, (1, 1))
    left_out.write_text("y")
    assert fingerprint([tmp_path], ("*.tmp",)) == first
    file.write_text("y")
    assert fingerprint([tmp_path], ("*.tmp",)) != first
