"""What `faas dev` sees of a folder, and what it writes on the terminal."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing
from pathlib import Path

import pytest

from faas.cli.dev_files import Change, change, look, moments
from faas.cli.dev_line import line
from faas.spec import parse

SPEC = parse({"name": "hello", "runtime": "python", "handler": "app.handler"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text("one")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a.py").write_text("a")
    (tmp_path / "faas.toml").write_text('name = "hello"')
    return tmp_path


def changed(folder: Path, act: object) -> Change:
    before = look(folder, SPEC)
    assert callable(act)
    act()
    return change(before, look(folder, SPEC))


def replaced(path: Path, text: str) -> None:
    """As editors save: another file takes its name, of the same length and time."""
    status = path.stat()
    new = path.with_name(".new.swp~")
    new.write_text(text)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.rename(path)


def test_edits_renames_new_files_and_deleted_ones_are_seen(folder: Path) -> None:
    assert not changed(folder, lambda: None)
    assert changed(folder, lambda: (folder / "app.py").write_text("two!")).code == ("app.py",)
    assert changed(folder, lambda: replaced(folder / "app.py", "2two")).code == ("app.py",)
    assert changed(folder, lambda: (folder / "lib" / "b.py").write_text("b")).code == ("lib/b.py",)
    assert changed(folder, lambda: (folder / "lib" / "a.py").rename(folder / "c.py")).code == ("c.py", "lib/a.py")
    assert changed(folder, lambda: (folder / "c.py").unlink()).code == ("c.py",)
    assert changed(folder, lambda: (folder / "app.py").chmod(0o755)).code == ("app.py",)
    assert changed(folder, lambda: (folder / "link").symlink_to("app.py")).code == ("link",)


def test_what_is_never_pushed_is_not_looked_at(folder: Path) -> None:
    (folder / ".faasignore").write_text("*.log\n")

    def litter() -> None:
        for name in ("__pycache__/app.pyc", ".git/index", "node_modules/x/i.js", "a.log", ".env", "venv/bin/python"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("x")

    assert not changed(folder, litter)


def test_what_the_code_stands_on_is_told_from_code(folder: Path) -> None:
    (folder / "more.txt").write_text("six\n")
    (folder / "requirements.txt").write_text("-r more.txt\n")
    (folder / "wheels").mkdir()
    for name in ("faas.toml", "requirements.txt", "more.txt", "package.json", ".npmrc", "wheels/a-1-py3-none-any.whl"):
        text = "-r more.txt\n# changed\n" if name == "requirements.txt" else f"other {name}"
        found = changed(folder, lambda name=name, text=text: (folder / name).write_text(text))
        assert found.setup == (name,), name
    assert not changed(folder, lambda: (folder / "app.py").write_text("3")).setup


def test_where_the_image_is_all_every_file_makes_it_anew(folder: Path) -> None:
    whole = parse({"name": "hello"})
    before = look(folder, whole)
    (folder / "Dockerfile").write_text("FROM scratch")
    (folder / "app.py").write_text("other")
    assert change(before, look(folder, whole)).setup == ("Dockerfile", "app.py")


def test_a_change_names_two_files_and_how_many_more() -> None:
    assert str(Change(("a", "b"), ())) == "a, b"
    assert str(Change(("a", "b", "c"), ("faas.toml",))) == "faas.toml, a and 2 more"


async def test_a_save_is_told_soon_and_many_files_at_once_are_told_together(folder: Path) -> None:
    seen = look(folder, SPEC)
    async with asyncio.timeout(20), aclosing(moments(folder)) as told:
        first = asyncio.create_task(anext(told))
        await asyncio.sleep(0.3)  # it watches by now; else the look that nobody asked for finds them
        for number in range(200):
            (folder / f"f{number}.py").write_text("x")
        await first
        found: set[str] = set(change(seen, look(folder, SPEC)).code)
        while len(found) < 200:
            await anext(told)
            found |= set(change(seen, look(folder, SPEC)).code)


def test_a_line_has_the_time_the_request_and_no_beginnings_and_ends() -> None:
    record = {"time": 1.5, "request_id": "0123456789abcdef", "stream": "stdout", "message": "hello\n"}
    assert line(record, terminal=False).split(" ", 1)[1] == "01234567 hello"
    report = "REPORT RequestId: 0123456789abcdef\tDuration: 1.00 ms\tBilled Duration: 1 ms"
    told = line({**record, "stream": "system", "message": report}, terminal=False)
    assert told.endswith("01234567 REPORT Duration: 1.00 ms  Billed Duration: 1 ms")
    for message in ("START RequestId: 0 Version: 1", "END RequestId: 0"):
        assert line({**record, "stream": "system", "message": message}, terminal=False) == ""
    assert "\x1b]0;" not in line({**record, "message": "\x1b]0;title"}, terminal=True)
