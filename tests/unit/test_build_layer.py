"""Layers: the same files give the same bytes, and what must not be packed is refused."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from faas.build.layer import Layer, Member, members, pack, patterns
from faas.build.push import code_layer
from faas.errors import InvalidInput, SpecError
from faas.oci.digest import Digest
from faas.spec import parse


def packed(folder: Path, out: Path) -> Layer:
    return pack(members(folder, "var/task", patterns(folder)), out, "code")


def names(layer: Layer) -> list[str]:
    with tarfile.open(layer.path) as archive:
        return archive.getnames()


def test_times_owners_and_modes_do_not_change_the_digest(tmp_path: Path) -> None:
    for number, (mode, when) in enumerate([(0o644, 1), (0o600, 2_000_000_000)]):
        folder = tmp_path / str(number)
        (folder / "sub").mkdir(parents=True)
        for name in ["b.py", "a.py"] if number else ["a.py", "b.py"]:
            (folder / "sub" / name).write_text(name)
            (folder / "sub" / name).chmod(mode)
            os.utime(folder / "sub" / name, (when, when))
    first, second = (packed(tmp_path / n, tmp_path / f"{n}.tar") for n in "01")
    assert first.digest == second.digest
    assert first.digest == Digest.of(first.path.read_bytes())
    assert first.size == first.path.stat().st_size


def test_a_change_of_content_or_of_the_executable_bit_changes_it(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    file = tmp_path / "code" / "run"
    digests = set()
    for content, mode in (("a", 0o644), ("b", 0o644), ("b", 0o755)):
        file.write_text(content)
        file.chmod(mode)
        digests.add(packed(tmp_path / "code", tmp_path / "x.tar").digest)
    assert len(digests) == 3


def test_litter_and_what_the_ignore_file_names_is_left_out(tmp_path: Path) -> None:
    code = tmp_path / "code"
    for name in (
        "app.py",
        "notes.md",
        ".git/config",
        "__pycache__/app.pyc",
        "node_modules/x/i.js",
        "data/big.bin",
        "data/k",
    ):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text("x")
    (code / ".faasignore").write_text("# comment\n*.md\ndata/big.bin\n")
    assert names(packed(code, tmp_path / "x.tar")) == [
        "var",
        "var/task",
        "var/task/app.py",
        "var/task/data",
        "var/task/data/k",
    ]


def test_a_link_inside_is_kept_and_one_that_leaves_is_refused(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "app.py").write_text("x")
    (code / "same.py").symlink_to("app.py")
    with tarfile.open(packed(code, tmp_path / "x.tar").path) as archive:
        assert archive.getmember("var/task/same.py").linkname == "app.py"
    (code / "out").symlink_to("/etc/passwd")
    with pytest.raises(InvalidInput, match="leaves the folder"):
        packed(code, tmp_path / "y.tar")


def test_a_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / os.fsdecode(b"caf\xe9")).write_text("x")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        packed(tmp_path / "code", tmp_path / "x.tar")


def test_long_and_foreign_names_survive(tmp_path: Path) -> None:
    rows = [Member("a/" + "n" * 180, content=b"x"), Member("ü/" + "文" * 60, content=b"y")]
    layer = pack(rows, tmp_path / "x.tar", "x")
    assert set(names(layer)) == {"a", "a/" + "n" * 180, "ü", "ü/" + "文" * 60}


def test_an_empty_folder_is_no_function(tmp_path: Path) -> None:
    spec = parse({"name": "x", "runtime": "python", "handler": "app.handler"})
    with pytest.raises(InvalidInput, match="no code"):
        code_layer(tmp_path, spec, tmp_path)


def test_provided_needs_an_executable_bootstrap(tmp_path: Path) -> None:
    spec = parse({"name": "x", "runtime": "provided"})
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "bootstrap").write_text("#!/bin/sh\n")
    with pytest.raises(SpecError, match="bootstrap"):
        code_layer(tmp_path / "code", spec, tmp_path)
    (tmp_path / "code" / "bootstrap").chmod(0o755)
    assert "var/task/bootstrap" in names(code_layer(tmp_path / "code", spec, tmp_path))
