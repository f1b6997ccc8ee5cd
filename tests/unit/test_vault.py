"""The vault: what is sealed, what opens it, and keys that change."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from faas.errors import Unavailable
from faas.secret import Secret
from gateway.store.secrets import Sealed
from gateway.vault import KEY_FILE, Vault, key_file

CANARY = "canary-of-the-vault"


def a_row(name: str = "db-password", version: int = 1, namespace: str = "default") -> Sealed:
    return Sealed(namespace, name, version, "", b"", 0, 1.0, "admin")


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    made = Vault(tmp_path / KEY_FILE)
    made.load()
    made.ensure()
    return made


def test_what_is_sealed_is_opened_by_the_same_file_and_is_never_the_same_twice(vault: Vault, tmp_path: Path) -> None:
    row, again = (vault.seal(a_row(), Secret(CANARY)) for _ in range(2))
    assert row.data != again.data
    assert CANARY.encode() not in row.data
    later = Vault(key_file(tmp_path))
    later.load()
    assert later.open(row).reveal() == later.open(again).reveal() == CANARY
    assert (row.key, row.size) == (later.key, len(CANARY))


@pytest.mark.parametrize(
    "changes",
    [{"namespace": "team"}, {"name": "other"}, {"version": 2}, {"data": b"x" * 40}, {"data": b""}],
)
def test_a_value_opens_at_its_own_place_alone(vault: Vault, changes: dict[str, object]) -> None:
    row = vault.seal(a_row(), Secret(CANARY))
    with pytest.raises(Unavailable, match="damaged") as caught:
        vault.open(replace(row, **changes))  # type: ignore[arg-type]
    assert CANARY not in caught.value.message


def test_the_key_is_made_at_the_first_need_for_the_server_alone(tmp_path: Path) -> None:
    made = Vault(tmp_path / KEY_FILE)
    made.load()
    assert list(tmp_path.iterdir()) == []
    made.ensure()
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    before = made.key
    made.ensure()
    assert made.key == before


def test_a_file_that_is_open_to_others_is_closed_to_them(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).chmod(0o644)
    Vault(tmp_path / KEY_FILE).load()
    vault.load()
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


def test_both_keys_open_until_a_rotation_is_over_also_after_a_crash(vault: Vault, tmp_path: Path) -> None:
    old = vault.seal(a_row(), Secret(CANARY))
    vault.begin_rotation()
    new = vault.seal(a_row(), Secret(CANARY))
    half, copy = tmp_path / f"{KEY_FILE}.0a1b2c3d", tmp_path / f"{KEY_FILE}.2030-01-01"
    half.write_text("half")  # of a crash while it was written
    copy.write_text("somebody's own")
    crashed = Vault(tmp_path / KEY_FILE)
    crashed.load()
    assert (half.exists(), copy.exists()) == (False, True)
    assert crashed.is_rotating
    assert (crashed.key, crashed.open(old).reveal(), crashed.open(new).reveal()) == (new.key, CANARY, CANARY)
    crashed.end_rotation()
    after = Vault(tmp_path / KEY_FILE)
    after.load()
    assert not after.is_rotating
    assert after.open(new).reveal() == CANARY
    assert not after.knows(old)
    with pytest.raises(Unavailable, match="its key is not here"):
        after.open(old)


@pytest.mark.parametrize("content", ["", "# nothing\n", "id\n", "id bm8=\n", "id !!!\n"])
def test_a_file_that_holds_no_key_is_said_so_and_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / KEY_FILE).write_text(content)
    with pytest.raises(Unavailable, match="holds no key"):
        Vault(tmp_path / KEY_FILE).load()
    assert (tmp_path / KEY_FILE).read_text() == content


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / KEY_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable, match="cannot be read"):
        Vault(tmp_path / KEY_FILE).load()
