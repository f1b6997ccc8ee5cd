"""Layers: the same files give the same bytes, and what must not be packed is refused."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from faas.build.layer import (
    Layer,
    Member,
    check_size,
    composed,
    ignored,
    is_executable,
    members,
    pack,
    patterns,
)
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


CANARY = "canary-4711"


@pytest.mark.parametrize("runtime", ["python", "node"])
def test_no_file_of_credentials_reaches_the_code(tmp_path: Path, runtime: str) -> None:
    code = tmp_path / "code"
    secret = (".npmrc", ".netrc", ".pypirc", "pip.conf", ".env", ".env.production", "sub/.npmrc", "sub/.env")
    lists = ("requirements.txt", "package-lock.json", *(("lists/[dev].txt", "held.txt") if runtime == "python" else ()))
    for name in (*secret, *lists):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text(f"--index-url https://user:{CANARY}@index.example/simple\n")
    (code / "requirements.txt").write_text(f"-r lists/[dev].txt\n-c held.txt\n--index-url https://u:{CANARY}@x\n")
    (code / "app.py").write_text("code")
    (code / "environment.py").write_text("code")
    layer = code_layer(code, parse({"name": "x", "runtime": runtime, "handler": "app.handler"}), tmp_path)
    assert CANARY.encode() not in layer.path.read_bytes()
    with tarfile.open(layer.path) as archive:
        assert {entry.name for entry in archive if entry.isfile()} == {"var/task/app.py", "var/task/environment.py"}


def test_what_made_the_image_is_left_out_at_the_top_only(tmp_path: Path) -> None:
    code = tmp_path / "code"
    inner = ("car/wheels/spoke.py", "sub/faas.toml", "sub/requirements.txt", "sub/package-lock.json")
    for name in ("faas.toml", "wheels/x.whl", *inner):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text("x")
    found = names(code_layer(code, parse({"name": "x", "runtime": "python", "handler": "app.handler"}), tmp_path))
    assert {f"var/task/{name}" for name in inner} <= set(found)
    assert "var/task/faas.toml" not in found
    assert "var/task/wheels" not in found


@pytest.mark.parametrize(
    ("rule", "path", "left_out"),
    [
        ("/bin", "bin", True),
        ("/bin", "pkg/bin", False),
        ("bin", "pkg/bin", True),
        ("/*.dist-info/RECORD", "a.dist-info/RECORD", True),
        ("/*.dist-info/RECORD", "pkg/a.dist-info/RECORD", False),
        ("data/*.bin", "data/x.bin", True),
    ],
)
def test_a_rule_that_begins_with_a_slash_holds_at_the_top(rule: str, path: str, left_out: bool) -> None:
    assert ignored(path, (rule,)) == left_out


@pytest.fixture
def unreadable() -> Iterator[Path]:
    """A folder with a folder that this process, which is not root while the test runs, may not enter."""
    folder, user = Path(tempfile.mkdtemp()), os.geteuid()
    folder.chmod(0o755)
    (folder / "app.py").write_text("x")
    (folder / "hidden").mkdir(mode=0)
    if user == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    (folder / "hidden").chmod(0o700)
    shutil.rmtree(folder)


def test_a_folder_that_cannot_be_read_is_an_error(unreadable: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cannot read .*hidden"):
        list(members(unreadable, "var/task"))


@pytest.mark.parametrize("place", ["", "sub/"])
def test_an_absolute_link_that_stays_inside_becomes_relative(tmp_path: Path, place: str) -> None:
    code = tmp_path / "code"
    (code / "sub").mkdir(parents=True)
    (code / "data").mkdir()
    (code / "data" / "x").write_text("x")
    (code / f"{place}absolute").symlink_to(code / "data" / "x")
    (code / f"{place}around").symlink_to(f"{'../' * place.count('/')}../code/data")
    with tarfile.open(packed(code, tmp_path / "x.tar").path) as archive:
        up = "../" * place.count("/")
        assert archive.getmember(f"var/task/{place}absolute").linkname == f"{up}data/x"
        assert archive.getmember(f"var/task/{place}around").linkname == f"{up}data"


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside"])
def test_a_link_that_leaves_is_refused_by_its_name(tmp_path: Path, target: str) -> None:
    (tmp_path / "code" / "sub").mkdir(parents=True)
    (tmp_path / "code" / "sub" / "out").symlink_to(target if target.startswith("/") else f"../{target}")
    with pytest.raises(InvalidInput, match="the link sub/out leaves the folder"):
        packed(tmp_path / "code", tmp_path / "x.tar")


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "ring").symlink_to("ring")
    with pytest.raises(InvalidInput, match="ring"):
        packed(tmp_path / "code", tmp_path / "x.tar")


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
    (tmp_path / "code" / "bootstrap").write_bytes(b"#!/bin/sh\r\necho\r\n")
    with pytest.raises(SpecError, match="ends as on Windows"):
        code_layer(tmp_path / "code", spec, tmp_path)


# Folders of other systems


def test_rules_that_would_mean_another_thing_are_refused(tmp_path: Path) -> None:
    (tmp_path / ".faasignore").write_bytes(b"\xef\xbb\xbf# names\r\nbig data/\r\n*.log\r\n")
    assert patterns(tmp_path)[-2:] == ("big data", "*.log")
    for rule in ("!keep.txt", "data\\raw"):
        (tmp_path / ".faasignore").write_text(f"{rule}\n")
        with pytest.raises(InvalidInput, match=r"neither ! nor"):
            patterns(tmp_path)


def test_a_program_is_one_by_how_it_begins_where_the_system_keeps_no_modes(tmp_path: Path) -> None:
    for content, expected in ((b"#!/bin/sh\n", True), (b"\x7fELF...", True), (b"text", False), (b"", False)):
        path = tmp_path / "file"
        path.write_bytes(content)
        assert is_executable(path, 0o666, has_modes=False) == expected
    assert not is_executable(path, 0o666, has_modes=True)
    assert is_executable(path, 0o744, has_modes=True)


def test_names_that_a_system_takes_apart_are_put_together_and_others_stay(tmp_path: Path) -> None:
    assert composed("e\u0301té", decomposes=True) == "été"
    assert composed("e\u0301té", decomposes=False) == "e\u0301té"
    for name in ("A b.txt", "a b.txt", "größe.txt", "gro\u0308ße.txt"):
        (tmp_path / name).write_text(name)
    names = {row.name for row in members(tmp_path, "x", patterns(tmp_path))}
    assert names == {"x/A b.txt", "x/a b.txt", "x/größe.txt", "x/gro\u0308ße.txt"}


def test_a_folder_over_the_limit_is_refused_before_it_is_read_with_what_is_largest(tmp_path: Path) -> None:
    for name, size in (("huge.bin", 2 << 30), ("large.bin", 700 << 20), ("small", 10)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    with pytest.raises(InvalidInput, match=r"2748 MiB; 1024 MiB are taken\. The largest: huge\.bin \(2048 MiB\)"):
        check_size(members(tmp_path, "x"))


def test_a_file_that_is_gone_when_it_is_packed_is_said(tmp_path: Path) -> None:
    path = tmp_path / "code" / "app.py"
    path.parent.mkdir()
    path.write_text("x")
    rows = list(members(path.parent, "x"))
    path.unlink()
    with pytest.raises(InvalidInput, match=r"cannot read .*app\.py: No such file"):
        pack(rows, tmp_path / "out.tar", "code")
