"""New databases, made once in a run and copied after that: to migrate one takes five times as long as all else that
a gateway does at its start, and a thousand tests begin with one.

Servers in processes of their own migrate as ever, and `tests/unit/test_state.py` looks at what the scripts make.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from faas.state import schema
from faas.state.session import Database
from registry.index.index import MIGRATIONS

OURS = (schema.MIGRATIONS, MIGRATIONS)  # whose scripts do not change while tests run


def copied(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Have `Database.open` begin a file that is not there as a copy of one in `folder` that it has migrated itself."""
    really = Database.open
    made: dict[Path, Path] = {}

    def is_new(url: str) -> bool:
        return _file(url).parent.is_dir() and not _file(url).exists()

    async def opened(url: str, migrations: Path = schema.MIGRATIONS) -> Database:
        if migrations in OURS and is_new(url):
            if migrations not in made:
                template = folder / f"{len(made)}.db"
                await (await really(f"sqlite+aiosqlite:///{template}", migrations)).close()
                made[migrations] = template
            shutil.copyfile(made[migrations], _file(url))
        return await really(url, migrations)

    patch.setattr(Database, "open", opened)


def _file(url: str) -> Path:
    return Path(url.partition(":///")[2])
