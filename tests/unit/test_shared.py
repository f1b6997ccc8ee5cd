"""What the servers of one machine share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker import shared


@pytest.mark.parametrize("times", [0, 3])
def test_a_folder_is_made_while_others_take_its_empty_parent_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    parent, real = tmp_path / "faas", os.mkdir
    left = times

    def mkdir(path: Path, mode: int = 0o777) -> None:
        nonlocal left
        real(path, mode)
        if path == parent and left:
            left -= 1
            parent.rmdir()

    monkeypatch.setattr("os.mkdir", mkdir)
    shared.make(parent / "mine", 0o711)
    assert (parent / "mine").stat().st_mode & 0o777 == 0o711
    assert left == 0
    shared.make(parent / "mine")  # it may be there


def test_what_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for above in ("file", "file/more"):
        with pytest.raises(OSError, match="file"):
            shared.make(tmp_path / above / "mine")


def test_a_name_is_one_servers_until_it_gives_it_back() -> None:
    name = f"test-{os.getpid()}"
    held = shared.claim(name)
    assert held is not None
    assert shared.claim(name) is None
    held.close()
    again = shared.claim(name)
    assert again is not None
    again.close()
