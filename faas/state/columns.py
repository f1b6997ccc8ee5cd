"""What every page of tables shares: the one `metadata`, and the columns that name something."""

from __future__ import annotations

from sqlalchemy import Column, MetaData, String

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def name(column: str, *, key: bool = False) -> Column[str]:
    return Column(column, String(128), primary_key=key, nullable=False)
